"""Own what a line of a journal says: every value of the type and in the range that it must have.

Somebody else may have written the line. Whatever is wrong with it is a ValueError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from codellama_convert.storage.checksums import SourceSums

_MAX_NAME_LENGTH = 1024
_MAX_SIZE = (1 << 63) - 1
_MAX_CRC = (1 << 32) - 1
_MAX_DEPTH = 4  # of a fingerprint, which has 2


@dataclass(frozen=True, slots=True)
class FileSum:
    """What distinguishes a file from any other of its name.

    Attributes:
        n_bytes: Its size.
        crc32: Of all its bytes.
    """

    n_bytes: int
    crc32: int


@dataclass(frozen=True, slots=True)
class SealedFile:
    """A staged file that is whole and on the disk.

    Attributes:
        name: Its final name.
        n_bytes: Its size.
        crc32: Of all its bytes.
        tensors: CRC-32 of each tensor's bytes.
        became_zero: By tensor, how many values a cast made zero, here or in a file of the same pass.
        nonfinite: By tensor, how many values are infinities or NaNs, likewise.
        source: For each file of the source, what was read to write this one, and no other.
    """

    name: str
    n_bytes: int
    crc32: int
    tensors: dict[str, int]
    became_zero: dict[str, int]
    nonfinite: dict[str, int]
    source: list[SourceSums]


def fingerprint_in(value: object) -> dict[str, Any]:
    """Read the inputs and options of a conversion: any plain values, but not of any depth."""
    found = _object(value)
    _refuse_depth(found, _MAX_DEPTH)
    return found


def sealed_file_in(value: object) -> SealedFile:
    """Read the record of a sealed file."""
    entry = _object(value, SealedFile.__slots__)
    return SealedFile(
        name=_name(entry["name"]),
        n_bytes=_number(entry["n_bytes"], _MAX_SIZE),
        crc32=_number(entry["crc32"], _MAX_CRC),
        tensors=_numbers(entry["tensors"], _MAX_CRC),
        became_zero=_numbers(entry["became_zero"], _MAX_SIZE),
        nonfinite=_numbers(entry["nonfinite"], _MAX_SIZE),
        source=[_source_sums(one) for one in _list(entry["source"])],
    )


def file_sums_in(value: object) -> dict[str, FileSum]:
    """Read what goes out, by name."""
    return {_name(name): _file_sum(one) for name, one in _object(value).items()}


def _file_sum(value: object) -> FileSum:
    entry = _object(value, FileSum.__slots__)
    return FileSum(_number(entry["n_bytes"], _MAX_SIZE), _number(entry["crc32"], _MAX_CRC))


def _source_sums(value: object) -> SourceSums:
    return {_name(storage): _pieces(one) for storage, one in _object(value).items()}


def _pieces(value: object) -> list[tuple[int, int, int, int]]:
    pieces = [_piece(one) for one in _list(value)]
    for (number, _, end, _), (next_number, start, _, _) in pairwise(pieces):
        if (number, end) > (next_number, start if number == next_number else end):
            raise ValueError("pieces overlap, or are not in order")
    return pieces


def _piece(value: object) -> tuple[int, int, int, int]:
    number, start, end, crc = _list(value)
    piece = (
        _number(number, _MAX_SIZE), _number(start, _MAX_SIZE),
        _number(end, _MAX_SIZE), _number(crc, _MAX_CRC),
    )  # fmt: skip
    if start >= end:
        raise ValueError("a piece is empty")
    return piece


def _object(value: object, keys: Iterable[str] | None = None) -> dict[str, Any]:
    if type(value) is not dict or (keys is not None and value.keys() != set(keys)):
        raise ValueError("another object was expected")
    return value


def _list(value: object) -> list[Any]:
    if type(value) is not list:
        raise ValueError("a list was expected")
    return value


def _name(value: object) -> str:
    if type(value) is not str or not 0 < len(value) <= _MAX_NAME_LENGTH:
        raise ValueError("a name was expected")
    return value


def _number(value: object, largest: int) -> int:
    if type(value) is not int or not 0 <= value <= largest:  # True is not a number
        raise ValueError("a number was expected")
    return value


def _numbers(value: object, largest: int) -> dict[str, int]:
    return {_name(name): _number(one, largest) for name, one in _object(value).items()}


def _refuse_depth(value: object, deepest: int) -> None:
    inner: Iterable[object] = ()
    if isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, list):
        inner = value
    for one in inner:
        if deepest == 0:
            raise ValueError("nested too deeply")
        _refuse_depth(one, deepest - 1)
