"""Own the reading of conversion.json: every value of the type that it should have.

Know nothing of how it is written, nor of whether it is true.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from codellama_convert.errors import VerifyError, shown
from codellama_convert.output_reader import (
    CONVERSION_NAME,
    MAX_LIST_BYTES,
    is_plain_name,
    json_file,
    names_in,
)

Entry = TypeVar("Entry")


@dataclass(frozen=True, slots=True)
class FileSums:
    """Size and sums of a file; `sha256` is None where it was not asked for."""

    size: int
    crc32: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class TensorSums:
    """Place, form, size and sum of a tensor."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    crc32: str


@dataclass(frozen=True, slots=True)
class Record:
    """conversion.json, every value of the type that it should have.

    Attributes:
        files: What it says of each file, by name.
        tensors: What it says of each tensor, by name.
        source: What it says of each rank, by name.
        options: What the conversion was asked for, as it says.
    """

    files: dict[str, FileSums]
    tensors: dict[str, TensorSums]
    source: dict[str, FileSums]
    options: dict[str, Any]


def read_record(output_dir: Path) -> Record | None:
    """Read an output's record.

    Args:
        output_dir: What was converted.

    Returns:
        It, or None where there is none.

    Raises:
        VerifyError: If it is no record.
    """
    if CONVERSION_NAME not in names_in(output_dir):
        return None
    path = output_dir / CONVERSION_NAME
    content = json_file(path, MAX_LIST_BYTES)
    try:
        return Record(
            files=_entries(content, "files", _file_sums),
            tensors=_entries(content, "tensors", _tensor_sums),
            source=_entries(content, "source", _file_sums),
            options=_object(content.get("options"), "options"),
        )
    except ValueError as problem:
        raise VerifyError(f"is not a conversion's record: {problem}", path=path) from problem


def _entries(
    content: Mapping[str, Any], key: str, read: Callable[[dict[str, Any]], Entry]
) -> dict[str, Entry]:
    found = _object(content.get(key), key)
    if key != "tensors" and not all(map(is_plain_name, found)):
        raise ValueError(f"{key} has a name that is no file's")
    entries = {}
    for name, value in found.items():
        try:
            entries[name] = read(_object(value, name))
        except (KeyError, ValueError) as problem:  # noqa: PERF203 - a few hundred entries
            raise ValueError(f"the entry of {shown(name)} in {key} is damaged") from problem
    return entries


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {shown(value)}, not an object")  # noqa: TRY004 - of the file
    return value


def _file_sums(entry: dict[str, Any]) -> FileSums:
    sha256 = entry.get("sha256")
    if sha256 is not None:
        _digits(sha256, 64)
    return FileSums(_size(entry["size"]), _digits(entry["crc32"], 8), sha256)


def _tensor_sums(entry: dict[str, Any]) -> TensorSums:
    shape = entry["shape"]
    if (
        type(shape) is not list
        or not is_plain_name(entry["file"])
        or type(entry["dtype"]) is not str
    ):
        raise ValueError("a value of another type")
    return TensorSums(
        file=entry["file"],
        dtype=entry["dtype"],
        shape=tuple(_size(n) for n in shape),
        size=_size(entry["size"]),
        crc32=_digits(entry["crc32"], 8),
    )


def _size(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("no size")
    return value


def _digits(value: object, n_digits: int) -> str:
    if type(value) is not str or not re.fullmatch(rf"[0-9a-f]{{{n_digits}}}", value):
        raise ValueError("no sum")
    return value
