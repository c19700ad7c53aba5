"""Own the journal of a staged conversion: what it is of, which files are whole, whether it goes out.

One JSON value a line, each with its CRC-32 and saved to the disk before the next step. A torn last
line is the trace of a kill while it was written, and means nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

from codellama_convert.errors import OutputError, shown
from codellama_convert.staging.record_values import (
    FileSum,
    SealedFile,
    file_sums_in,
    fingerprint_in,
    sealed_file_in,
)
from codellama_convert.storage.blocks import first_line, some_written
from codellama_convert.storage.held_folder import HeldFolder

JOURNAL_NAME = "journal.jsonl"
# What file systems without renames say, such as object stores that are mounted.
_CANNOT_RENAME = (errno.EPERM, errno.ENOSYS, errno.EXDEV, errno.EOPNOTSUPP)

# A journal of the largest models has 2 MB, and its longest line, where all is in one file, 1 MB.
_MAX_BYTES = 8 << 20
_MAX_LINE_BYTES = 2 << 20
_MAX_DIFFERENCES = 8  # that are named
_NO_INPUTS = ("options", "version")  # every other key of a fingerprint names a file that is read


@dataclass(slots=True)
class Journal:
    """What a staging folder holds.

    Attributes:
        fingerprint: The inputs and options that it is of.
        sealed: The whole files, by name.
        publishing: What goes out, by name, once that has begun.
    """

    fingerprint: dict[str, Any]
    sealed: dict[str, SealedFile] = field(default_factory=dict)
    publishing: dict[str, FileSum] = field(default_factory=dict)

    @property
    def holds_work(self) -> bool:
        """Whether anything is lost without it."""
        return bool(self.sealed or self.publishing)


def fingerprint_sha256(fingerprint: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the inputs and options of a conversion."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()


def as_journaled(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs and options of a conversion as a journal gives them back."""
    journaled: dict[str, Any] = json.loads(json.dumps(fingerprint))
    return journaled


def differences(staged: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Name what differs between two conversions: options with both values, input files without.

    Args:
        staged: Fingerprint of what lies in the staging folder.
        wanted: Fingerprint of what is asked for.

    Returns:
        One text a difference.
    """
    texts = []
    for key in _unequal(staged, wanted):
        there, now = staged.get(key), wanted.get(key)
        if key not in _NO_INPUTS:
            texts.append(_other_input(key, there, now))
        elif isinstance(there, dict) and isinstance(now, dict):
            texts += [_values(one, there.get(one), now.get(one)) for one in _unequal(there, now)]
        else:
            texts.append(_values(key, there, now))
    return texts[:_MAX_DIFFERENCES]


def is_of_other_inputs(staged: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Return whether two conversions read other files."""
    return any(key not in _NO_INPUTS for key in _unequal(staged, wanted))


def _unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in {*one, *other} if one.get(key) != other.get(key))


def _values(key: str, there: object, now: object) -> str:
    return f"{key:.80} is {shown(there)} there and {shown(now)} now"


def _other_input(name: str, there: object, now: object) -> str:
    if there is None or now is None:
        return f"{name:.80} is read {'there' if now is None else 'now'} only"
    return f"{name:.80} is not the same file"


def read_journal(staging: HeldFolder, name: str = JOURNAL_NAME) -> Journal | None:
    """Read a journal up to its first line that is torn, damaged or not one that we write.

    Args:
        staging: The folder that it is in.
        name: Its name there.

    Returns:
        What it says, or None where there is none or its first line says nothing.

    Raises:
        OutputError: If it cannot be read, or is not a file of ours.
    """
    try:
        with os.fdopen(staging.open(name, os.O_RDONLY), "rb") as file:
            return _read(file)
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise OutputError(
            f"cannot read: {first_line(problem)}",
            path=staging.path / name,
            hint="--restart discards it",
        ) from problem


def _read(file: BinaryIO) -> Journal | None:
    journal: Journal | None = None
    n_left = _MAX_BYTES
    with suppress(ValueError, KeyError, TypeError, RecursionError):  # the first such line ends it
        while True:
            line = file.readline(min(n_left, _MAX_LINE_BYTES))
            n_left -= len(line)
            if not line.endswith(b"\n"):  # torn, too long, or the end
                break
            journal = _take(journal, _record(line))
    return journal


def _line(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(record, separators=(",", ":"))
    return f'{{"crc32":"{zlib.crc32(text.encode()):08x}","record":{text}}}\n'.encode()


def _record(line: bytes) -> dict[str, Any]:
    """Take what a line says; one wrong digit must not get into a model's record."""
    record: dict[str, Any] = json.loads(line)["record"]
    if _line(record) != line:
        raise ValueError("the line was damaged")
    return record


def _take(journal: Journal | None, record: dict[str, Any]) -> Journal:
    if journal is None:
        fingerprint = fingerprint_in(record["identity"])
        if record["fingerprint"] != fingerprint_sha256(fingerprint):
            raise ValueError("the fingerprint was changed")
        return Journal(fingerprint)
    if "publish" in record:
        journal.publishing = file_sums_in(record["publish"])
    else:
        sealed = sealed_file_in(record["file"])
        journal.sealed[sealed.name] = sealed
    return journal


def write_journal(staging: HeldFolder, journal: Journal, name: str = JOURNAL_NAME) -> None:
    """Write a whole journal beside its place and rename it there.

    Args:
        staging: The folder that it goes into.
        journal: What it says.
        name: Its name there.

    Raises:
        OutputError: If it cannot be written, or the file system cannot rename.
    """
    # The names of the first version, so that work that it staged is resumed.
    records: list[dict[str, Any]] = [
        {"fingerprint": fingerprint_sha256(journal.fingerprint), "identity": journal.fingerprint}
    ]
    records += [{"file": asdict(sealed)} for sealed in journal.sealed.values()]
    if journal.publishing:
        records.append(_publishing(journal.publishing))
    part = f"{name}.part"
    try:
        staging.remove(part)
        _write(staging.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL), *records)
        staging.rename(part, staging, name)
    except OSError as problem:
        hint = "the output folder's file system must be able to rename files"
        raise OutputError(
            f"cannot write the journal: {first_line(problem)}",
            path=staging.path / name,
            hint=hint if problem.errno in _CANNOT_RENAME else None,
        ) from problem


def append_sealed(staging: HeldFolder, sealed: SealedFile, name: str = JOURNAL_NAME) -> None:
    """Note that a file is whole; it is on the disk when this returns.

    Raises:
        OutputError: If it cannot be written.
    """
    _append(staging, {"file": asdict(sealed)}, name)


def append_publishing(staging: HeldFolder, sums: Mapping[str, FileSum]) -> None:
    """Note that everything is whole and goes out; it is on the disk when this returns.

    Raises:
        OutputError: If it cannot be written.
    """
    _append(staging, _publishing(sums), JOURNAL_NAME)


def _publishing(sums: Mapping[str, FileSum]) -> dict[str, Any]:
    return {"publish": {name: asdict(one) for name, one in sums.items()}}


def _append(staging: HeldFolder, record: dict[str, Any], name: str) -> None:
    try:
        _write(staging.open(name, os.O_WRONLY | os.O_APPEND), record)
    except OSError as problem:
        raise OutputError(
            f"cannot write the journal: {first_line(problem)}", path=staging.path / name
        ) from problem


def _write(fd: int, *records: dict[str, Any]) -> None:
    # Without a buffer: closing one after a failed write would write it once more.
    with os.fdopen(fd, "wb", buffering=0) as file:
        left = memoryview(b"".join(_line(record) for record in records))
        while left:
            left = left[some_written(file.write(left)) :]
        os.fsync(fd)
