"""Own the journal of a staged conversion: what it is of, which files are whole, whether it goes out.

One JSON value a line, each with its CRC-32 and saved to the disk before the next step. A torn last
line is the trace of a kill while it was written, and means nothing. Know nothing of how files are
written.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from codellama_convert.errors import OutputError
from codellama_convert.files import first_line, some_written

JOURNAL_NAME = "journal.jsonl"
# What file systems without renames say, such as object stores that are mounted.
_CANNOT_RENAME = (errno.EPERM, errno.ENOSYS, errno.EXDEV, errno.EOPNOTSUPP)

# What was read of a rank to write a file: by storage, each (pass, start, end, crc), in order.
SourceSums = dict[str, list[tuple[int, int, int, int]]]


@dataclass(frozen=True, slots=True)
class FileSum:
    """What tells a file from any other of its name.

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
        became_zero: By tensor, how many values a cast made zero.
        nonfinite: By tensor, how many values are infinities or NaNs.
        source: For each rank, what was read to write this file, and no other.
    """

    name: str
    n_bytes: int
    crc32: int
    tensors: dict[str, int]
    became_zero: dict[str, int]
    nonfinite: dict[str, int]
    source: list[SourceSums]


@dataclass(slots=True)
class Journal:
    """What a staging folder holds.

    Attributes:
        identity: The inputs and options that it is of.
        sealed: The whole files, by name.
        publishing: What goes out, by name, once that has begun.
    """

    identity: dict[str, Any]
    sealed: dict[str, SealedFile] = field(default_factory=dict)
    publishing: dict[str, FileSum] = field(default_factory=dict)


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Give the SHA-256 of the inputs and options of a conversion."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def differences(staged: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Name what differs between two conversions, with both values.

    Args:
        staged: Identity of what lies in the staging folder.
        wanted: Identity of what is asked for.

    Returns:
        One text a difference.
    """
    texts = []
    for key in sorted({*staged, *wanted}):
        there, now = staged.get(key), wanted.get(key)
        if isinstance(there, dict) and isinstance(now, dict):
            texts += differences(there, now)
        elif there != now:
            texts.append(f"{key} is {json.dumps(there)} there and {json.dumps(now)} now")
    return texts


def read_journal(path: Path) -> Journal | None:
    """Read a journal up to its first torn line.

    Args:
        path: The file.

    Returns:
        What it says, or None where there is none or its first line is torn.

    Raises:
        OutputError: If it cannot be read.
    """
    hint = "--restart drops it"
    flags = os.O_RDONLY
    for name in ("O_CLOEXEC", "O_NONBLOCK", "O_NOFOLLOW", "O_BINARY"):
        flags |= getattr(os, name, 0)
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            lines = file.read().split(b"\n") if is_regular else []
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise OutputError(f"cannot read: {first_line(problem)}", path=path, hint=hint) from problem
    if not is_regular:
        raise OutputError("cannot read: is not a regular file", path=path, hint=hint)
    journal: Journal | None = None
    with suppress(ValueError, KeyError, TypeError, RecursionError):  # the first torn line ends it
        for line in lines[:-1]:  # what follows the last newline is torn, or nothing
            journal = _take(journal, _record(line))
    return journal


def _line(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(record, separators=(",", ":"))
    return f'{{"crc32":"{zlib.crc32(text.encode()):08x}","record":{text}}}\n'.encode()


def _record(line: bytes) -> dict[str, Any]:
    """Take what a line says; one wrong digit must not get into a model's record."""
    record: dict[str, Any] = json.loads(line)["record"]
    if _line(record) != line + b"\n":
        raise ValueError("the line was damaged")
    return record


def _take(journal: Journal | None, record: dict[str, Any]) -> Journal:
    if journal is None:
        if record["fingerprint"] != fingerprint(record["identity"]):
            raise ValueError("the identity was changed")
        return Journal(record["identity"])
    if "publish" in record:
        sums = dict(record["publish"])
        journal.publishing = {name: FileSum(**one) for name, one in sums.items()}
    else:
        sealed = SealedFile(**record["file"])
        journal.sealed[sealed.name] = sealed
    return journal


def write_journal(path: Path, journal: Journal) -> None:
    """Write a whole journal beside its place and rename it there.

    Args:
        path: Its place.
        journal: What it says.

    Raises:
        OutputError: If it cannot be written, or the file system cannot rename.
    """
    records: list[dict[str, Any]] = [
        {"fingerprint": fingerprint(journal.identity), "identity": journal.identity}
    ]
    records += [{"file": asdict(sealed)} for sealed in journal.sealed.values()]
    if journal.publishing:
        records.append(_publishing(journal.publishing))
    part = path.with_name(path.name + ".part")
    try:
        part.unlink(missing_ok=True)
        _append(part, *records)
        part.replace(path)
    except OSError as problem:
        hint = "the output folder's file system must be able to rename files"
        raise OutputError(
            f"cannot write the journal: {first_line(problem)}",
            path=path,
            hint=hint if problem.errno in _CANNOT_RENAME else None,
        ) from problem


def append_sealed(path: Path, sealed: SealedFile) -> None:
    """Note that a file is whole; it is on the disk when this returns.

    Raises:
        OutputError: If it cannot be written.
    """
    _append_or_refuse(path, {"file": asdict(sealed)})


def append_publishing(path: Path, sums: Mapping[str, FileSum]) -> None:
    """Note that everything is whole and goes out; it is on the disk when this returns.

    Raises:
        OutputError: If it cannot be written.
    """
    _append_or_refuse(path, _publishing(sums))


def _publishing(sums: Mapping[str, FileSum]) -> dict[str, Any]:
    return {"publish": {name: asdict(one) for name, one in sums.items()}}


def _append_or_refuse(path: Path, record: dict[str, Any]) -> None:
    try:
        _append(path, record)
    except OSError as problem:
        raise OutputError(
            f"cannot write the journal: {first_line(problem)}", path=path
        ) from problem


def _append(path: Path, *records: dict[str, Any]) -> None:
    # Without a buffer: closing one after a failed write would write it once more.
    with path.open("ab", buffering=0) as file:
        left = memoryview(b"".join(_line(record) for record in records))
        while left:
            left = left[some_written(file.write(left)) :]
        os.fsync(file.fileno())
