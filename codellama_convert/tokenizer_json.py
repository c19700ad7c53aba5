"""Own tokenizer.json: the vocabulary, the merges and the frame around them, without any library.

It must not know of transformers' own files, nor of what the model was tuned for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

from codellama_convert.sentencepiece_model import PieceType, SentencePieceModel

# Source: meta-llama/codellama llama/tokenizer.py. Their ids differ between models.
INFILLING_PIECES = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")
STEP_PIECE = "<step>"


def merges(model: SentencePieceModel) -> Iterator[tuple[str, str]]:
    """List the pairs that BPE joins, the earliest first.

    SentencePiece joins whatever pair makes the piece of the highest score; a list of pairs says the
    same if it holds every split of every piece. Of equal scores (runs of spaces) the longer left
    half goes first: the shorter first breaks runs of 17 spaces and more.

    Args:
        model: The pieces; only normal ones are made by joining.

    Yields:
        The left and the right half of a piece, both pieces themselves.
    """
    ids = {
        piece.text: number
        for number, piece in enumerate(model.pieces)
        # The text to be joined holds U+2581 for each space, so a piece with a space never occurs.
        if piece.type is PieceType.NORMAL and " " not in piece.text
    }
    by_score = sorted(ids, key=lambda text: (-model.pieces[ids[text]].score, ids[text]))
    for _, tied in groupby(by_score, key=lambda text: model.pieces[ids[text]].score):
        splits = [
            (-cut, cut - len(text), ids[text], text[:cut], text[cut:])
            for text in tied
            for cut in range(1, len(text))
            if text[:cut] in ids and text[cut:] in ids
        ]
        # Of one piece no two splits have the same length of the left half: no further key needed.
        splits.sort(key=itemgetter(0, 1, 2))
        for *_, left, right in splits:
            yield left, right


def tokenizer_json(model: SentencePieceModel) -> bytes:
    """Write tokenizer.json as transformers 4.57 does, with merges as strings, not pairs.

    Every release of tokenizers reads strings; those up to 0.19 read nothing else.

    Args:
        model: The tokenizer.model of the checkpoint.

    Returns:
        The file's bytes, UTF-8.
    """
    quote = json.JSONEncoder(ensure_ascii=False).encode
    frame = json.dumps(_tokenizer_frame(model), indent=2, ensure_ascii=False)
    # A quotation mark inside a JSON string is escaped, so these two can only be the keys.
    head, rest = frame.split('"vocab": {}')
    middle, tail = rest.split('"merges": []')
    vocab = ",\n".join(
        f"      {quote(piece.text)}: {number}" for number, piece in enumerate(model.pieces)
    )
    pairs = ",\n".join(f"      {quote(f'{left} {right}')}" for left, right in merges(model))
    merge_list = f"[\n{pairs}\n    ]" if pairs else "[]"
    return "".join(
        (head, f'"vocab": {{\n{vocab}\n    }}', middle, f'"merges": {merge_list}', tail)
    ).encode()


def _tokenizer_frame(model: SentencePieceModel) -> dict[str, Any]:
    """Build tokenizer.json without its two long lists; the order of keys is the library's."""
    unk, bos = model.pieces[model.unk_id].text, model.pieces[model.bos_id].text
    first, second = ({"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB"))
    bos_first, bos_second = ({"SpecialToken": {"id": bos, "type_id": n}} for n in (0, 1))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(model),
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos_first, first],
            "pair": [bos_first, first, bos_second, second],
            "special_tokens": {bos: {"id": bos, "ids": [model.bos_id], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unk,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {},
            "merges": [],
        },
    }


def _added_tokens(model: SentencePieceModel) -> list[dict[str, Any]]:
    """List the pieces that are looked for in the text before anything else, by id."""
    # Infilling pieces are normal ones; unless named here, they stay in decoded fillings.
    named = (*INFILLING_PIECES, STEP_PIECE)
    kinds = (PieceType.UNKNOWN, PieceType.CONTROL, PieceType.USER_DEFINED)
    return [
        {
            "id": number,
            "content": piece.text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": piece.text in named or piece.type is not PieceType.USER_DEFINED,
        }
        for number, piece in enumerate(model.pieces)
        if piece.type in kinds or piece.text in named
    ]
