"""Own the reading of conversion.json: every value of the type that it should have, and its own sum."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from codellama_convert.errors import VerifyError, shown
from codellama_convert.model.asked import (
    RECORD_NAME,
    Asked,
    AskedRanks,
    parse_asked,
    parse_asked_ranks,
)
from codellama_convert.plan.ranks.original import Original, parse_original
from codellama_convert.storage.folders import names_in
from codellama_convert.verify.output_files import (
    Complain,
    is_plain_name,
    parse_json,
    read_small,
)
from codellama_convert.verify.record_spelling import wrong_keys, wrong_sum
from codellama_convert.verify.report import Problems

Entry = TypeVar("Entry")

# 65B in 64 ranks has 723 tensors with a sum for each rank: 1.07 MB.
_MAX_BYTES = 5 << 18


@dataclass(frozen=True, slots=True)
class FileSums:
    """Size and sums of a file; `sha256` is None where it was not asked for."""

    size: int
    crc32: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class TensorSums:
    """Place, form, size and sum of a tensor, and how many of its values are odd."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    crc32: str
    became_zero: int = 0
    nonfinite: int = 0


@dataclass(frozen=True, slots=True)
class PartSums:
    """Form of a tensor of ranks, the sum of what each of them has of it, and its odd values."""

    dtype: str
    shape: tuple[int, ...]
    crc32s: tuple[str, ...]
    became_zero: int = 0
    nonfinite: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """conversion.json, every value of the type that it should have.

    Attributes:
        version: Of the program that wrote it.
        model: What it says that was converted; None for a tokenizer alone.
        files: What it says of each file, by name.
        tensors: What it says of each tensor in Hugging Face's format, by name.
        parts: What it says of each tensor of ranks, by name.
        source: What it says of each file of the source that holds weights, by name.
        options: What the conversion was asked for, as it says.
        asked: The same, those that can be asked for.
        asked_ranks: The same of a conversion into ranks; None for another.
        original: How the ranks were saved, as it says; None where it does not.
    """

    version: str
    model: str | None
    files: dict[str, FileSums]
    tensors: dict[str, TensorSums]
    parts: dict[str, PartSums]
    source: dict[str, FileSums]
    options: dict[str, Any]
    asked: Asked
    asked_ranks: AskedRanks | None
    original: Original | None = None


def read_record(output_dir: Path, complain: Complain) -> Record | None:
    """Read an output's record.

    Args:
        output_dir: What was converted.
        complain: Called for each thing that a conversion would not have written.

    Returns:
        It, or None where there is none.

    Raises:
        VerifyError: If it is not a record.
    """
    if RECORD_NAME not in names_in(output_dir, error=VerifyError):
        return None
    path = output_dir / RECORD_NAME
    raw = read_small(path, _MAX_BYTES)
    content = parse_json(raw, path)
    try:
        options = _object(content.get("options"), "options")
        asked_ranks = parse_asked_ranks(options)
        is_of_ranks = asked_ranks is not None
        record = Record(
            version=_version(content.get("converter")),
            model=_model(content),
            files=_entries(content, "files", _file_sums),
            tensors={} if is_of_ranks else _entries(content, "tensors", _tensor_sums),
            parts=_entries(content, "tensors", _part_sums) if is_of_ranks else {},
            source=_entries(content, "source", _rank_sums),
            options=options,
            asked=Asked() if is_of_ranks else parse_asked(options),
            asked_ranks=asked_ranks,
            original=parse_original(content["original"]) if "original" in content else None,
        )
        _require_texts(content.get("notes"))
    except ValueError as problem:
        raise VerifyError(f"is not a conversion's record: {problem}", path=path) from problem
    for line in (
        *wrong_sum(raw),
        *wrong_keys(content, of_ranks=is_of_ranks),
        *_missing_digests(record),
    ):
        complain(line, file=RECORD_NAME)
    return record


def readable_record(output_dir: Path, problems: Problems) -> Record | None:
    """Read an output's record; a file that is not one is a problem beside others."""
    try:
        return read_record(output_dir, problems.add)
    except VerifyError as problem:
        problems.add_error(problem)
        return None


def _missing_digests(record: Record) -> Iterator[str]:
    """Name the files without a SHA-256 where others have one: all were asked for, or none."""
    lacking = sorted(name for name, sums in record.files.items() if sums.sha256 is None)
    if len(lacking) < len(record.files):
        yield from (f"files: {shown(name)} lacks the SHA-256 that others have" for name in lacking)


def _version(value: object) -> str:
    found = _object(value, "converter")
    if found.get("name") != "codellama-convert" or not isinstance(found.get("version"), str):
        raise ValueError(f"converter is {shown(value)}")
    if len(found) > 2:
        raise ValueError("converter has more than a name and a version")
    version: str = found["version"]
    return version


def _model(content: Mapping[str, Any]) -> str | None:
    if "model" not in content:
        raise ValueError("model is missing")
    value = content["model"]
    if value is not None and not isinstance(value, str):
        raise ValueError(f"model is {shown(value)}, not a string")
    return value


def _require_texts(value: object) -> None:
    if not isinstance(value, list) or not all(isinstance(note, str) for note in value):
        raise ValueError(f"notes are {shown(value)}, not a list of strings")


def _entries(
    content: Mapping[str, Any], key: str, read: Callable[[dict[str, Any]], Entry]
) -> dict[str, Entry]:
    found = _object(content.get(key), key)
    if key != "tensors" and not all(map(is_plain_name, found)):
        raise ValueError(f"{key} has a name that is not a file name")
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


def _rank_sums(entry: dict[str, Any]) -> FileSums:
    return FileSums(_size(entry["size"]), _digits(entry["crc32"], 8))


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
        became_zero=_count(entry, "became_zero"),
        nonfinite=_count(entry, "nonfinite"),
    )


def _part_sums(entry: dict[str, Any]) -> PartSums:
    shape, crcs = entry["shape"], entry["crc32"]
    if type(shape) is not list or type(crcs) is not list or type(entry["dtype"]) is not str:
        raise ValueError("a value of another type")
    return PartSums(
        dtype=entry["dtype"],
        shape=tuple(_size(n) for n in shape),
        crc32s=tuple(_digits(crc, 8) for crc in crcs),
        became_zero=_count(entry, "became_zero"),
        nonfinite=_count(entry, "nonfinite"),
    )


def _count(entry: dict[str, Any], kind: str) -> int:
    """Read a count, which is left out where there is nothing to count."""
    if kind not in entry:
        return 0
    if entry[kind] == 0:
        raise ValueError("a count of nothing")
    return _size(entry[kind])


def _size(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("no size")
    return value


def _digits(value: object, n_digits: int) -> str:
    if type(value) is not str or not re.fullmatch(rf"[0-9a-f]{{{n_digits}}}", value):
        raise ValueError("no sum")
    return value
