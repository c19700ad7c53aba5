"""Own the comparison of a tokenizer.json that is too long to be parsed: byte by byte, merge by merge."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from codellama_convert.errors import VerifyError
from codellama_convert.storage.input_file import InputFile
from codellama_convert.verify.output_files import CONVERT_AGAIN

# The merges are the last key of the model, and the model is that of the file.
_BEFORE_MERGES, _AFTER_MERGES, _END = b',\n    "merges": [\n      ', b"\n    ]", b"\n  }\n}"
_BETWEEN_MERGES = b",\n      "
_EMPTY_END = b"{}" + _END
_PIECES, _BLOCK_BYTES = 4096, 1 << 16
_spelled = json.JSONEncoder(ensure_ascii=False).encode


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
    for expected in _before_merges(whole, vocabulary):
        found = file.read_exact(position, min(len(expected), file.n_bytes - position))
        if found != expected:
            pairs = zip(found, expected, strict=False)
            at = next((n for n, (one, other) in enumerate(pairs) if one != other), None)
            if at is None:
                return f"it ends after {file.n_bytes} bytes"
            return f"byte {position + at} is 0x{found[at]:02x}, expected 0x{expected[at]:02x}"
        position += len(expected)
    end = file.n_bytes - len(_AFTER_MERGES + _END)
    if end < position or file.read_exact(end, len(_AFTER_MERGES + _END)) != _AFTER_MERGES + _END:
        return "it does not end as it should"
    return wrong_merge(_merges(file, position, end))


def _before_merges(whole: Mapping[str, Any], vocabulary: Iterable[str]) -> Iterator[bytes]:
    """Spell everything up to the first merge, some thousand pieces at a time."""
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
    yield b"\n    }" + _BEFORE_MERGES


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
            f"{spelled[:80]!r} stands in the place of a merge", path=file.path, hint=CONVERT_AGAIN
        )
    return merge
