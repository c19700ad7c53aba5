"""Own the zip container of a .pth file: which entry lies where.

`torch.load` and `zipfile` believe different parts of a damaged or forged archive. Here every part
must say the same: the end record, the central directory, each local header and data descriptor.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from typing import NamedTuple

from codellama_convert.errors import CheckpointError
from codellama_convert.formats.file_kinds import HEAD_BYTES, refuse_other_kind
from codellama_convert.formats.zip_directory import (
    DAMAGED_HINT,
    HAS_DESCRIPTOR,
    IN_EXTRA_32,
    MAX_SHOWN,
    ListedEntry,
    read_directory,
    show_name,
    widen,
)
from codellama_convert.storage.input_file import InputFile

# Sources: PKWARE APPNOTE.TXT 6.3 sections 4.3.7 and 4.3.9; torch's caffe2/serialize/inline_container.
_LOCAL = struct.Struct("<4s5H3I2H")
_DESCRIPTOR_32 = struct.Struct("<4s3I")
_DESCRIPTOR_64 = struct.Struct("<4sI2Q")
_READ_AHEAD_BYTES = 512  # a descriptor, and the header and name behind it
_UNSAFE_IN_NAMES = frozenset("\\\0\ufffd")


class Entry(NamedTuple):
    """One stored member of the archive; a tuple, as `ListedEntry` is.

    Attributes:
        name: Its name below the archive's root folder, such as "data/17".
        offset: Its first byte's position in the file.
        n_bytes: Its size.
        crc: Its CRC-32, or None where the writer did not compute one (torch writes 0 then).
    """

    name: str
    offset: int
    n_bytes: int
    crc: int | None


@dataclass(frozen=True, slots=True)
class Archive:
    """What a .pth file holds, every statement about it checked against the others.

    Attributes:
        root: The folder that every entry lies in; torch calls it after the file that it writes.
        entries: By name below the root folder, case-folded as torch's reader compares names.
        directory_sha256: Of the central directory, which holds every size and CRC-32.
    """

    root: str
    entries: dict[str, Entry]
    directory_sha256: str


class _Nearby:
    """Short ranges of a file, read from front to back: those that lie close together at once.

    What ends an entry and what begins the next one are neighbours: 405B in 16 ranks has 18,288 of
    both, and on a network each reading is a round trip.
    """

    def __init__(self, file: InputFile) -> None:
        self.file = file
        self._start, self._held = 0, b""

    def read(self, offset: int, n_bytes: int) -> bytes:
        at = offset - self._start
        if at < 0 or at + n_bytes > len(self._held):
            ahead = min(_READ_AHEAD_BYTES, self.file.n_bytes - offset)
            self._held = self.file.read_exact(offset, max(n_bytes, ahead))
            self._start, at = offset, 0
        return self._held[at : at + n_bytes]


def read_archive(file: InputFile) -> Archive:
    """Read where every entry of a .pth file lies.

    Args:
        file: The open file.

    Returns:
        Its entries; their data is not read.

    Raises:
        CheckpointError: If the file is no zip archive as torch writes them (stored entries below
            one root folder), or its parts contradict each other.
    """
    _refuse_other_kinds(file)
    directory, directory_offset, records = read_directory(file)
    entries: dict[str, Entry] = {}
    nearby = _Nearby(file)
    root: str | None = None
    ends = [record.header_offset for record in records[1:]] + [directory_offset]
    if records and records[0].header_offset != 0:
        raise CheckpointError(
            "is not a PyTorch zip archive (it does not begin like one)",
            path=file.path,
            hint=DAMAGED_HINT,
        )
    # A thousand of them lie far apart: one after another, a disk takes as long as all the rest.
    file.read_ahead((record.header_offset for record in records), _READ_AHEAD_BYTES)
    for record, end in zip(records, ends, strict=True):
        root, name = _split_name(file, record.raw_name, root)
        entry = _check_local_header(nearby, record, name, end)
        if name.endswith("/") or not name:
            continue  # a folder's own entry, as re-zipping tools write them
        # torch compares names without regard to case, and of two takes either.
        folded = name.casefold()
        if folded in entries:
            raise CheckpointError(
                f"two entries named {name[:MAX_SHOWN]!r} (duplicate; upper and lower case count as the same)",
                path=file.path,
                hint=DAMAGED_HINT,
            )
        entries[folded] = entry
    return Archive(root or "", entries, hashlib.sha256(directory).hexdigest())


def read_entry(file: InputFile, entry: Entry, max_bytes: int) -> bytes:
    """Read a small entry whole and check its CRC-32.

    Args:
        file: The open file.
        entry: Which one.
        max_bytes: The largest size that is plausible for it.

    Returns:
        Its bytes.

    Raises:
        CheckpointError: If it is larger, or its CRC-32 differs.
    """
    if entry.n_bytes > max_bytes:
        raise CheckpointError(
            f"entry {entry.name!r} has an implausible size of {entry.n_bytes} bytes",
            path=file.path,
            hint=DAMAGED_HINT,
        )
    content = file.read_exact(entry.offset, entry.n_bytes)
    crc = zlib.crc32(content)
    if entry.crc is not None and crc != entry.crc:
        raise CheckpointError(
            f"entry {entry.name!r}: CRC-32 mismatch ({crc:08x}, expected {entry.crc:08x})",
            path=file.path,
            hint="the file is corrupt, download it again",
        )
    return content


def _refuse_other_kinds(file: InputFile) -> None:
    if file.n_bytes == 0:
        raise CheckpointError("the file is empty", path=file.path, hint="download it again")
    head = file.read_exact(0, min(HEAD_BYTES, file.n_bytes))
    refuse_other_kind(head, "zip", path=file.path, error=CheckpointError)
    if not head.startswith(b"PK\x03\x04"):
        raise CheckpointError(
            "is not a PyTorch zip archive", path=file.path, hint="download it again"
        )


def _split_name(file: InputFile, raw_name: bytes, root: str | None) -> tuple[str, str]:
    """Return the root folder and the name below it; every entry must share one root."""
    full = raw_name.decode("utf-8", "replace")
    first, slash, name = full.partition("/")
    unsafe = not slash or not first or not _UNSAFE_IN_NAMES.isdisjoint(full)
    parts = name.split("/")
    if unsafe or ".." in (first, *parts) or root not in (None, first):
        raise CheckpointError(
            f"unexpected entry name {show_name(raw_name)!r}",
            path=file.path,
            hint="a PyTorch file has one root folder and plain names; nothing was extracted",
        )
    return first, name


def _check_local_header(nearby: _Nearby, record: ListedEntry, name: str, end: int) -> Entry:
    """Check an entry's local header and descriptor; the entry must end at or before `end`."""
    start, n_expected = record.header_offset, len(record.raw_name)
    if start + _LOCAL.size + n_expected > end:
        raise _overlaps(nearby.file, record)
    header = nearby.read(start, _LOCAL.size + n_expected)
    magic, _, flags, method, _, _, crc, packed, size, n_name, n_extra = _LOCAL.unpack_from(header)
    same = magic == b"PK\x03\x04" and flags == record.flags and method == 0
    if not same or n_name != n_expected or header[_LOCAL.size :] != record.raw_name:
        raise _damaged(nearby.file, record)
    # Only the local header locates the data: its extra field may differ from the directory's.
    data_offset = start + _LOCAL.size + n_name + n_extra
    data_end = data_offset + record.n_bytes
    if data_end > end:
        raise _overlaps(nearby.file, record)
    if flags & HAS_DESCRIPTOR:  # the sizes come behind the data
        is_told = _descriptor_tells(nearby, record, data_end, end)
    else:
        if IN_EXTRA_32 in (packed, size):
            extra = nearby.read(start + _LOCAL.size + n_name, n_extra)
            size, packed = widen(nearby.file, extra, size, packed)
        is_told = (size, packed, crc) == (record.n_bytes, record.n_bytes, record.crc)
    if not is_told:
        raise _damaged(nearby.file, record)
    # torch writes CRC 0 for "not computed"; the CRC-32 of nothing is 0 as well.
    known = record.crc != 0 or record.n_bytes == 0
    return Entry(name, data_offset, record.n_bytes, record.crc if known else None)


def _descriptor_tells(nearby: _Nearby, record: ListedEntry, data_end: int, end: int) -> bool:
    """Return whether the CRC-32 and sizes behind the data of a stream are those of the directory."""
    expected = (b"PK\x07\x08", record.crc, record.n_bytes, record.n_bytes)
    behind = nearby.read(data_end, min(end - data_end, _DESCRIPTOR_64.size))
    if len(behind) >= _DESCRIPTOR_32.size and _DESCRIPTOR_32.unpack_from(behind) == expected:
        return True
    return len(behind) == _DESCRIPTOR_64.size and _DESCRIPTOR_64.unpack(behind) == expected


def _damaged(file: InputFile, record: ListedEntry) -> CheckpointError:
    return CheckpointError(
        f"entry {show_name(record.raw_name)!r}: the local header is damaged or names another entry",
        path=file.path,
        hint="download it again",
    )


def _overlaps(file: InputFile, record: ListedEntry) -> CheckpointError:
    return CheckpointError(
        f"entry {show_name(record.raw_name)!r} overlaps the next one",
        path=file.path,
        hint=DAMAGED_HINT,
    )
