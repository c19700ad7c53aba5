"""Own how a tokenizer.json is spelled; one too long to be parsed is compared byte by byte."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from codellama_convert.errors import VerifyError
from codellama_convert.storage.input_file import InputFile
from codellama_convert.verify.output_files import CONVERT_AGAIN, describe_other_byte

# The merges are the last key of the model, and the model is that of the file.
_BEFORE_MERGES, _AFTER_MERGES, _END = b',\n    "merges": [\n      ', b"\n    ]", b"\n  }\n}"
_BETWEEN_MERGES = b",\n      "
_EMPTY_END = b"{}" + _END
_PIECES, _BLOCK_BYTES = 4096, 1 << 16
_spelled = json.encoder.encode_basestring  # of JSONEncoder.encode, half the time is not this
# The library's fast encoder knows no indent; but one level of it is only a longer separator.
_spelled_all = json.JSONEncoder(
    ensure_ascii=False, separators=(_BETWEEN_MERGES.decode(), ": ")
).encode


def what_differs(
    file: InputFile,
    whole: Mapping[str, Any],
    vocabulary: Iterable[str],
    wrong_merge: Callable[[Iterator[str]], str | None],
) -> str | None:
    """Compare a file with what should stand in it.

    Args:
        file: The open file.
        whole: What it should hold, the vocabulary of its model empty and the merges missing.
        vocabulary: The text of each piece, by id; there is one at least.
        wrong_merge: Describes what is wrong with the merges that are found.

    Returns:
        What differs first; None if nothing does.

    Raises:
        VerifyError: If it cannot be read, or its merges are spelled in another way.
    """
    position = 0
    for expected in chain(_before_merges(whole, vocabulary), [_BEFORE_MERGES]):
        found = file.read_exact(position, min(len(expected), file.n_bytes - position))
        if found != expected:
            return describe_other_byte(found, expected, position)
        position += len(expected)
    end = file.n_bytes - len(_AFTER_MERGES + _END)
    if end < position or file.read_exact(end, len(_AFTER_MERGES + _END)) != _AFTER_MERGES + _END:
        return "it does not end as it should"
    return wrong_merge(_merges(file, position, end))


def spelled(
    whole: Mapping[str, Any], vocabulary: Iterable[str], merges: Sequence[str]
) -> Iterator[bytes]:
    """Spell a file as it should stand there, piece by piece.

    Args:
        whole: As for `what_differs`.
        vocabulary: The text of each piece, by id; there is one at least.
        merges: As they stand in the file.
    """
    yield from _before_merges(whole, vocabulary)
    if merges:
        yield _BEFORE_MERGES + _spelled_all(merges)[1:-1].encode() + _AFTER_MERGES
    else:
        yield b',\n    "merges": []'
    yield _END


def _before_merges(whole: Mapping[str, Any], vocabulary: Iterable[str]) -> Iterator[bytes]:
    """Spell everything up to the merges, some thousand pieces at a time."""
    pieces = json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(whole)
    held = b""
    while batch := "".join(islice(pieces, _PIECES)).encode():
        yield held[: -len(_EMPTY_END)]
        held = held[-len(_EMPTY_END) :] + batch
    assert held.endswith(_EMPTY_END)
    yield held.removesuffix(_EMPTY_END) + b"{"
    lines = (
        f"{',' if number else ''}\n      {_spelled(text)}: {number}"
        for number, text in enumerate(vocabulary)
    )
    while batch := "".join(islice(lines, _PIECES)).encode():
        yield batch
    yield b"\n    }"


def _merges(file: InputFile, start: int, end: int) -> Iterator[str]:
    rest = b""
    for at in range(start, end, _BLOCK_BYTES):
        rest += file.read_exact(at, min(_BLOCK_BYTES, end - at))
        *whole, rest = rest.split(_BETWEEN_MERGES)
        yield from (_merge(file, spelled) for spelled in whole)
        if len(rest) > _BLOCK_BYTES:
            break
    yield _merge(file, rest)


def _merge(file: InputFile, spelled: bytes) -> str:
    try:
        merge = json.loads(spelled)
    except ValueError:
        merge = None
    if type(merge) is not str or _spelled(merge).encode() != spelled:
        raise VerifyError(
            f"{spelled[:80]!r} stands where a merge belongs", path=file.path, hint=CONVERT_AGAIN
        )
    return merge
