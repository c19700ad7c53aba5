"""Own the check of tokenizer.json where tokenizer.model is SentencePiece's.

What it should hold is spelled here a second time, so that a mistake of the writer is seen: the
merges are not generated and compared, they are compared with the rule that orders them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from codellama_convert.errors import VerifyError, shown
from codellama_convert.formats.sentencepiece import SentencePieceModel
from codellama_convert.formats.sentencepiece_message import PieceType
from codellama_convert.storage.input_file import InputFile
from codellama_convert.verify.output_files import parse_json
from codellama_convert.verify.report import Problems
from codellama_convert.verify.tokenizer.long_json import spelled, what_differs

_SPACE = "\u2581"
INFILLING = tuple(f"{_SPACE}<{name}>" for name in ("PRE", "SUF", "MID", "EOT"))
STEP = "<step>"
# Llama 2's tokenizer.json has 1.9 MB; a larger one would take too much memory to parse.
_MAX_PARSED_BYTES = 5 << 19
_MORE_BRACKETS = 1 << 10  # lists and objects beside those in pieces: the frame, and what differs


def check_tokenizer_json(folder: Path, model: SentencePieceModel, problems: Problems) -> None:
    """Compare tokenizer.json with what the source's tokenizer.model makes of it.

    Args:
        folder: The output.
        model: The source.
        problems: Gets what differs.

    Raises:
        VerifyError: If it cannot be read.
    """
    name = "tokenizer.json"
    cuts = _count_cuts(model)
    settings = _bpe_settings(model)
    with InputFile(folder / name, error=VerifyError) as file:
        if file.n_bytes > _MAX_PARSED_BYTES:
            whole = _frame(model) | {"model": settings | {"vocab": {}}}
            wrong_pair = partial(_wrong_pair, model=model, n_expected=sum(cuts.values()))
            wrong = what_differs(file, whole, model.pieces.texts, wrong_pair)
            if wrong is not None:
                problems.add(wrong, file=name)
            return
        raw = file.read_exact(0, file.n_bytes)
    found = _parse_tokenizer_json(raw, folder / name, model, cuts)
    bpe = found.pop("model", None)
    if not isinstance(bpe, dict):
        problems.add(f"model is {shown(bpe)}, not an object", file=name)
        return
    vocabulary, merges = bpe.pop("vocab", None), bpe.pop("merges", None)
    frame = _frame(model)
    differs = problems.add_differences(name, found, frame)
    differs = problems.add_differences(name, bpe, settings, part="model") or differs
    wrong = _wrong_piece(vocabulary, model) or _wrong_merge(
        merges, model, n_expected=sum(cuts.values())
    )
    if wrong is not None:
        problems.add(wrong, file=name)
    elif not differs:
        # The merges are right as they stand: what is left is how the file is spelled around them.
        whole = frame | {"model": settings | {"vocab": {}}}
        problems.add_spelling(name, raw, spelled(whole, model.pieces.texts, merges))


def _parse_tokenizer_json(
    content: bytes, path: Path, model: SentencePieceModel, cuts: Mapping[str, int]
) -> dict[str, Any]:
    """Parse what has not many more lists and objects than there should be: each takes 64 bytes."""
    max_brackets = _MORE_BRACKETS
    for text in model.pieces.texts:
        if n_brackets := _n_brackets(text):
            # In the vocabulary, and in each of its merges.
            max_brackets += n_brackets * (1 + cuts.get(text, 0))
    for token in _added_tokens(model):
        max_brackets += 1 + _n_brackets(token["content"])
    if content.count(b"[") + content.count(b"{") > max_brackets:
        raise VerifyError("holds too many lists and objects for its model", path=path)
    return parse_json(content, path)


def _n_brackets(text: str) -> int:
    return text.count("[") + text.count("{")


def _wrong_piece(vocabulary: object, model: SentencePieceModel) -> str | None:
    """Describe the first piece whose id is not its place in the source."""
    if not isinstance(vocabulary, dict):
        return f"vocab is {shown(vocabulary)}, not an object"
    for number, text in enumerate(model.pieces.texts):
        found = vocabulary.get(text)
        if type(found) is not int or found != number:
            return f"piece {text!r} has id {shown(found)}, expected {number}"
    if len(vocabulary) != model.n_pieces:
        return f"vocab has {len(vocabulary)} pieces, expected {model.n_pieces}"
    return None


def _wrong_merge(merges: object, model: SentencePieceModel, *, n_expected: int) -> str | None:
    if not isinstance(merges, list):
        return f"merges are {shown(merges)}, not a list"
    return _wrong_pair(merges, model, n_expected=n_expected)


def _wrong_pair(
    merges: Iterable[object], model: SentencePieceModel, *, n_expected: int
) -> str | None:
    """Describe the first pair that stands where it may not, or say that some are missing.

    Every cut of a normal piece into two others stands there once; the higher the score of the whole
    the earlier, of equal scores first the longer left half, then the longer right one, then by id.
    """
    known = {
        text: (-score, number)
        for number, (text, score, kind) in enumerate(model.pieces)
        if kind is PieceType.NORMAL and " " not in text
    }
    last: tuple[float, int, int, int] | None = None
    n_found = 0
    for number, pair in enumerate(merges):
        n_found += 1
        left, _, right = pair.partition(" ") if isinstance(pair, str) else ("", "", "")
        whole = known.get(left + right)
        if whole is None or left not in known or right not in known:
            return f"merge {number} is {shown(pair)}, which does not make a piece"
        place = (whole[0], -len(left), -len(right), whole[1])
        if last is not None and place <= last:
            return f"merge {number} is {shown(pair)}, which belongs further up"
        last = place
    if n_found != n_expected:
        return f"{n_found} merges, expected {n_expected}"
    return None


def _count_cuts(model: SentencePieceModel) -> dict[str, int]:
    """Count in how many ways each piece is two others; a space is never in a text that is merged."""
    known = {text for text in model.pieces.texts_of(PieceType.NORMAL) if " " not in text}
    cuts = {}
    for text in known:
        n_cuts = 0
        for cut in range(1, len(text)):
            if text[:cut] in known and text[cut:] in known:
                n_cuts += 1
        cuts[text] = n_cuts
    return cuts


def _frame(model: SentencePieceModel) -> dict[str, Any]:
    """Spell what surrounds the model in tokenizer.json, after the tokenizers library's own files."""
    bos = model.pieces[model.bos_id].text
    bos_first, bos_second = ({"SpecialToken": {"id": bos, "type_id": n}} for n in (0, 1))
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(_added_tokens(model)),
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": _SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
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
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
    }


def _bpe_settings(model: SentencePieceModel) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": model.pieces[model.unk_id].text,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
    }


def _added_tokens(model: SentencePieceModel) -> Iterator[dict[str, Any]]:
    """Yield, by id, the pieces that are looked for in a text before it is cut any further."""
    for number, (text, _, kind) in enumerate(model.pieces):
        user_defined = kind is PieceType.USER_DEFINED
        named = text in INFILLING or text == STEP
        if named or user_defined or kind in (PieceType.UNKNOWN, PieceType.CONTROL):
            yield {
                "id": number,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": named or not user_defined,
            }
