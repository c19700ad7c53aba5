"""Own tokenizer.json: the vocabulary, the merges and the frame around them, without any library."""

from __future__ import annotations

import json
from array import array
from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby, starmap, takewhile
from typing import Any

from codellama_convert.formats.sentencepiece import SentencePieceModel
from codellama_convert.formats.sentencepiece_message import Piece, PieceType
from codellama_convert.storage.contents import Chunked
from codellama_convert.tokenizer.streamed_json import (
    BETWEEN_LINES,
    MERGE_INDENT,
    added_token,
    begin_texts,
    count_bytes,
    empty_bpe,
    json_chunks,
)

# Source: meta-llama/codellama llama/tokenizer.py. Their ids differ between models.
INFILLING_PIECES = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")
STEP_PIECE = "<step>"

_quoted = json.encoder.encode_basestring  # of JSONEncoder.encode, half the time is not this


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
    texts = _joined_texts(model)
    scores = array("f", (piece.score for piece in model.pieces if _is_joined(piece)))
    # Stable: of one score by id. Numbers and not pieces: of 262,144 those take 20 MB.
    order = array("L", sorted(range(len(texts)), key=scores.__getitem__, reverse=True))
    known = frozenset(texts)
    for _, tied in groupby(order, key=scores.__getitem__):
        yield from _splits([texts[number] for number in tied], known)


def _joined_texts(model: SentencePieceModel) -> list[str]:
    """List the pieces that are made by joining others, by id."""
    return [text for text in model.pieces.texts_of(PieceType.NORMAL) if " " not in text]


def _is_joined(piece: Piece) -> bool:
    # The text to be joined holds U+2581 for each space, so a piece with a space never occurs.
    return piece.type is PieceType.NORMAL and " " not in piece.text


def _splits(tied: Sequence[str], known: Container[str]) -> Iterator[tuple[str, str]]:
    """Split pieces of one score: the longer left half first, then the longer right one, then by id.

    Nothing is collected and sorted: all splits of a vocabulary may be of one score.
    """
    by_length: defaultdict[int, list[str]] = defaultdict(list)
    for text in tied:
        by_length[len(text)].append(text)
    lengths = sorted(by_length, reverse=True)
    for cut in range(lengths[0] - 1, 0, -1):
        for length in takewhile(cut.__lt__, lengths):
            for text in by_length[length]:
                if text[:cut] in known and text[cut:] in known:
                    yield text[:cut], text[cut:]


def tokenizer_json(model: SentencePieceModel) -> Chunked:
    """Write tokenizer.json as transformers 4.57 does, with merges as strings, not pairs.

    Every release of tokenizers reads strings; those up to 0.19 read nothing else.

    Args:
        model: The tokenizer.model of the checkpoint.

    Returns:
        The file's size and its bytes, UTF-8.

    Raises:
        TokenizerError: If it were far larger than that of any vocabulary in use.
    """
    return Chunked(_n_bytes(model), lambda: _chunks(model, starmap(_merge_line, merges(model))))


# A conversion asks before anything is written, and again when it writes.
@lru_cache(maxsize=1)
def _n_bytes(model: SentencePieceModel) -> int:
    without_merges = sum(map(len, _chunks(model, ())))
    merge_bytes = _merge_bytes(frozenset(_joined_texts(model)))
    return count_bytes(without_merges, merge_bytes, path=model.path, n_pieces=model.n_pieces)


def _merge_bytes(known: Collection[str]) -> Iterator[int]:
    """Count what the merges of each piece take."""
    around_pair = len(f"{MERGE_INDENT} {BETWEEN_LINES}")
    for text in known:
        n_splits = 0
        for cut in range(1, len(text)):
            if text[:cut] in known and text[cut:] in known:
                n_splits += 1
        # An escape stands for one character, so all splits of a piece take the same bytes.
        if n_splits:
            yield n_splits * (around_pair + len(_quoted(text).encode()))


def _chunks(model: SentencePieceModel, merge_lines: Iterable[str]) -> Iterator[bytes]:
    vocabulary_lines = starmap(_vocabulary_line, enumerate(model.pieces.texts))
    return json_chunks(_tokenizer_frame(model), _added_tokens(model), vocabulary_lines, merge_lines)


def _vocabulary_line(number: int, text: str) -> str:
    return f"      {_quoted(text)}: {number}"


def _merge_line(left: str, right: str) -> str:
    return MERGE_INDENT + _quoted(f"{left} {right}")


def _tokenizer_frame(model: SentencePieceModel) -> dict[str, Any]:
    """Build tokenizer.json without its three long lists; the order of keys is the library's."""
    bos = model.pieces[model.bos_id].text
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": begin_texts(bos, model.bos_id),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": empty_bpe(
            unk_token=model.pieces[model.unk_id].text, byte_fallback=True, ignore_merges=False
        ),
    }


def _added_tokens(model: SentencePieceModel) -> Iterator[dict[str, Any]]:
    """Yield the pieces that are looked for in the text before anything else, by id."""
    # Infilling pieces are normal ones; unless named here, they stay in decoded fillings.
    named = {*INFILLING_PIECES, STEP_PIECE}
    user_defined = int(PieceType.USER_DEFINED)
    kinds = {int(PieceType.UNKNOWN), int(PieceType.CONTROL), user_defined}
    pieces = zip(model.pieces.texts, model.pieces.types, strict=True)
    for number, (text, kind) in enumerate(pieces):
        if kind in kinds or text in named:
            yield added_token(number, text, special=text in named or kind != user_defined)
