"""Own the zip container of a .pth file: which entry lies where; know nothing of tensors.

`torch.load` and `zipfile` believe different parts of a damaged or forged archive. Here every part
must say the same: the end record, the central directory, each local header and data descriptor.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from codellama_convert.errors import CheckpointError
from codellama_convert.input_file import InputFile

# Sources: PKWARE APPNOTE.TXT 6.3 sections 4.3.7 to 4.5.3; torch's caffe2/serialize/inline_container.
_END = struct.Struct("<4s4H2IH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_DESCRIPTOR_32 = struct.Struct("<4s3I")
_DESCRIPTOR_64 = struct.Struct("<4sI2Q")

_HAS_DESCRIPTOR = 0x0008
_NAME_IS_UTF8 = 0x0800
_IN_EXTRA_16 = 0xFFFF
_IN_EXTRA_32 = 0xFFFFFFFF

# 70B in 8 ranks has 728 entries and a directory of 60 kB a rank; the caps keep a forged directory
# from costing more than some 20 MB and a second.
_MAX_ENTRIES = 20_000
_MAX_DIRECTORY_BYTES = 4 << 20
_MAX_EXTRA_FIELDS = 64
_MAX_SHOWN = 80

DAMAGED_HINT = "the file is damaged or forged, download it again"
_REZIPPED_HINT = "torch.save stores entries uncompressed - was the file re-zipped?"

_MAGIC_BYTES = 512
_ORIGINAL = "use the original checkpoint that Meta released"
# Where a file's magic stands, what it is, what such a file is called, what to do.
_OTHER_KINDS = (
    (0, b"version https://git-lfs", "is a Git LFS pointer", "run git lfs pull"),
    (257, b"ustar", "is a tar archive", "unpack it first"),
    (0, b"\x1f\x8b", "is a gzip file", "unpack it first"),
    (0, b"GGUF", "is a GGUF file", _ORIGINAL),
    # Eight bytes tell the length of its header, under 100 MB; the header is JSON.
    (5, b'\0\0\0{"', "is a safetensors file", _ORIGINAL),
)
_LEGACY_MAGIC = (
    b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # torch.serialization.MAGIC_NUMBER
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored member of the archive.

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
        entries: By name below the root folder.
        directory_sha256: Of the central directory, which holds every size and CRC-32.
    """

    entries: dict[str, Entry]
    directory_sha256: str


@dataclass(frozen=True, slots=True)
class _Record:
    """An entry as the central directory tells it."""

    raw_name: bytes
    flags: int
    crc: int
    n_bytes: int
    header_offset: int


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
    directory_offset, directory_bytes, n_entries = _find_directory(file)
    directory = file.read_exact(directory_offset, directory_bytes)
    records = sorted(_parse_directory(file, directory, n_entries), key=lambda r: r.header_offset)
    entries: dict[str, Entry] = {}
    root: str | None = None
    ends = [record.header_offset for record in records[1:]] + [directory_offset]
    if records and records[0].header_offset != 0:
        raise CheckpointError(
            "is not a PyTorch zip archive (it does not begin with one)",
            path=file.path,
            hint=DAMAGED_HINT,
        )
    for record, end in zip(records, ends, strict=True):
        root, name = _split_name(file, record.raw_name, root)
        entry = _check_local_header(file, record, name, end)
        if name.endswith("/") or not name:
            continue  # a folder's own entry, as re-zipping tools write them
        if name in entries:
            raise CheckpointError(
                f"two entries named {name[:_MAX_SHOWN]!r} (duplicate)",
                path=file.path,
                hint=DAMAGED_HINT,
            )
        entries[name] = entry
    return Archive(entries, hashlib.sha256(directory).hexdigest())


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


def describe_other_kind(head: bytes) -> tuple[str, str] | None:
    """Tell what a file is that should have been something else.

    Args:
        head: Its first 512 bytes, or all of it.

    Returns:
        What it is and what to do, or None if its beginning tells nothing.
    """
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        return "is an HTML page", "the download failed (often an expired link); download it again"
    for offset, magic, what, hint in _OTHER_KINDS:
        if head.startswith(magic, offset):
            return what, hint
    return None


def _refuse_other_kinds(file: InputFile) -> None:
    if file.n_bytes == 0:
        raise CheckpointError("the file is empty", path=file.path, hint="download it again")
    head = file.read_exact(0, min(_MAGIC_BYTES, file.n_bytes))
    other = describe_other_kind(head)
    if other is not None:
        raise CheckpointError(other[0], path=file.path, hint=other[1])
    if _LEGACY_MAGIC[:9] in head[:32]:
        raise CheckpointError(
            "is in the legacy (pre-1.6, non-zip) torch format",
            path=file.path,
            hint="load and re-save it with torch.save",
        )
    if not head.startswith(b"PK\x03\x04"):
        raise CheckpointError(
            "is not a PyTorch zip archive", path=file.path, hint="download it again"
        )


def _find_directory(file: InputFile) -> tuple[int, int, int]:
    """Find the central directory: its offset, its size in bytes and its number of entries."""
    end_offset = _find_end_record(file)
    fields = _END.unpack(file.read_exact(end_offset, _END.size))
    _, disk, directory_disk, n_here, n_entries, n_bytes, offset, _ = fields
    limit = end_offset
    if (
        _IN_EXTRA_16 in (n_here, n_entries)
        or _IN_EXTRA_32 in (n_bytes, offset)
        or (
            end_offset >= _END64_LOCATOR.size
            and file.read_exact(end_offset - _END64_LOCATOR.size, 4) == b"PK\x06\x07"
        )
    ):
        limit, disks, n_here, n_entries, n_bytes, offset = _read_end64(file, end_offset)
        disk, directory_disk = disks
    if disk or directory_disk or n_here != n_entries:
        raise CheckpointError(
            "is one part of a split zip archive", path=file.path, hint="join its parts first"
        )
    if (
        n_entries > _MAX_ENTRIES
        or n_bytes > _MAX_DIRECTORY_BYTES
        or n_bytes < n_entries * _CENTRAL.size
        or offset + n_bytes != limit
    ):
        raise CheckpointError(
            f"has an implausible central directory ({n_entries} entries, {n_bytes} bytes)",
            path=file.path,
            hint="the file is damaged, download it again",
        )
    return offset, n_bytes, n_entries


def _find_end_record(file: InputFile) -> int:
    tail_bytes = min(file.n_bytes, _END.size + 0xFFFF)
    tail = file.read_exact(file.n_bytes - tail_bytes, tail_bytes)
    # The very end first: the record's own fields may spell its signature.
    at = tail.rfind(b"PK\x05\x06", 0, tail_bytes - _END.size + 4)
    if at < 0 or at + _END.size > tail_bytes:
        raise CheckpointError(
            "no end-of-central-directory record",
            path=file.path,
            hint="the file is truncated (incomplete download?)",
        )
    after = tail_bytes - at - _END.size
    if after:
        raise CheckpointError(
            f"{after} bytes after the end of the archive",
            path=file.path,
            hint="the file is damaged, download it again",
        )
    return file.n_bytes - _END.size


def _read_end64(
    file: InputFile, end_offset: int
) -> tuple[int, tuple[int, int], int, int, int, int]:
    """Read the zip64 end record; the first value is its own position."""
    locator_offset = end_offset - _END64_LOCATOR.size
    if locator_offset >= _END64.size:
        magic, disk, end64_offset, _ = _END64_LOCATOR.unpack(
            file.read_exact(locator_offset, _END64_LOCATOR.size)
        )
        # The record may carry extensible data, but torch, Python and zip write none.
        if magic == b"PK\x06\x07" and end64_offset == locator_offset - _END64.size:
            fields = _END64.unpack(file.read_exact(end64_offset, _END64.size))
            if fields[0] == b"PK\x06\x06":
                _, _, _, _, this_disk, directory_disk, n_here, n_entries, n_bytes, offset = fields
                return (
                    end64_offset,
                    (disk or this_disk, directory_disk),
                    n_here,
                    n_entries,
                    n_bytes,
                    offset,
                )
    raise CheckpointError(
        "has a damaged zip64 end record", path=file.path, hint="download it again"
    )


def _parse_directory(file: InputFile, directory: bytes, n_entries: int) -> Iterator[_Record]:
    position = 0
    for _ in range(n_entries):
        if position + _CENTRAL.size > len(directory):
            raise _damaged_directory(file)
        fields = _CENTRAL.unpack_from(directory, position)
        magic, _, _, flags, method, _, _, crc, packed, size, n_name, n_extra, n_comment = fields[
            :13
        ]
        disk, _, _, header_offset = fields[13:]
        name_at = position + _CENTRAL.size
        extra_at = name_at + n_name
        position = extra_at + n_extra + n_comment
        if magic != b"PK\x01\x02" or position > len(directory):
            raise _damaged_directory(file)
        raw_name = directory[name_at:extra_at]
        shown = _show(raw_name)
        extra = directory[extra_at : extra_at + n_extra]
        size, packed, header_offset = _widen(file, extra, size, packed, header_offset)
        if flags & ~(_HAS_DESCRIPTOR | _NAME_IS_UTF8):
            raise CheckpointError(
                f"entry {shown!r} is encrypted or uses unsupported zip flags {flags:#x}",
                path=file.path,
                hint=_REZIPPED_HINT,
            )
        if method != 0:
            raise CheckpointError(
                f"entry {shown!r} is compressed (method {method})",
                path=file.path,
                hint=_REZIPPED_HINT,
            )
        if packed != size or disk not in (0, _IN_EXTRA_16):
            raise CheckpointError(
                f"entry {shown!r} has two sizes, {packed} and {size} bytes",
                path=file.path,
                hint=DAMAGED_HINT,
            )
        yield _Record(raw_name, flags, crc, size, header_offset)
    if position != len(directory):
        raise _damaged_directory(file)


def _damaged_directory(file: InputFile) -> CheckpointError:
    return CheckpointError(
        "the central directory is damaged", path=file.path, hint="download it again"
    )


def _widen(file: InputFile, extra: bytes, *narrow: int) -> tuple[int, ...]:
    """Replace the fields that say 0xFFFFFFFF by their 64-bit values from the zip64 extra field."""
    missing = [value == _IN_EXTRA_32 for value in narrow]
    if not any(missing):
        return narrow
    position = 0
    for _ in range(_MAX_EXTRA_FIELDS):
        if position + 4 > len(extra):
            break
        kind, n_bytes = struct.unpack_from("<2H", extra, position)
        body = extra[position + 4 : position + 4 + n_bytes]
        if kind == 0x0001 and len(body) >= 8 * sum(missing):
            wide = iter(struct.unpack_from(f"<{len(body) // 8}Q", body))
            return tuple(
                next(wide) if is_missing else value
                for value, is_missing in zip(narrow, missing, strict=True)
            )
        position += 4 + n_bytes
    raise CheckpointError(
        "an entry lacks its zip64 sizes", path=file.path, hint="download it again"
    )


def _show(raw_name: bytes) -> str:
    """Give an entry's name for a message; it may have 64 kB and be no UTF-8."""
    return raw_name[:_MAX_SHOWN].decode("utf-8", "backslashreplace")


def _split_name(file: InputFile, raw_name: bytes, root: str | None) -> tuple[str, str]:
    """Give the root folder and the name below it; every entry must share one root."""
    full = raw_name.decode("utf-8", "replace")
    first, slash, name = full.partition("/")
    unsafe = not slash or not first or any(c in full for c in "\\\0\ufffd")
    parts = name.split("/")
    if unsafe or ".." in (first, *parts) or root not in (None, first):
        raise CheckpointError(
            f"unexpected entry name {_show(raw_name)!r}",
            path=file.path,
            hint="a PyTorch file has one root folder and plain names; nothing was extracted",
        )
    return first, name


def _check_local_header(file: InputFile, record: _Record, name: str, end: int) -> Entry:
    """Check an entry's local header and descriptor; the entry must end at or before `end`."""
    start = record.header_offset
    shown = _show(record.raw_name)
    damaged = CheckpointError(
        f"entry {shown!r}: the local header is damaged or names another entry",
        path=file.path,
        hint="download it again",
    )
    overlaps = CheckpointError(
        f"entry {shown!r} overlaps the next one",
        path=file.path,
        hint=DAMAGED_HINT,
    )
    if start + _LOCAL.size + len(record.raw_name) > end:
        raise overlaps
    header = file.read_exact(start, _LOCAL.size + len(record.raw_name))
    magic, _, flags, method, _, _, crc, packed, size, n_name, n_extra = _LOCAL.unpack_from(header)
    same = magic == b"PK\x03\x04" and flags == record.flags and method == 0
    if not same or n_name != len(record.raw_name) or header[_LOCAL.size :] != record.raw_name:
        raise damaged
    # Only the local header locates the data: its extra field may differ from the directory's.
    data_offset = start + _LOCAL.size + n_name + n_extra
    data_end = data_offset + record.n_bytes
    if data_end > end:
        raise overlaps
    deferred = bool(flags & _HAS_DESCRIPTOR)
    if _IN_EXTRA_32 in (packed, size):
        extra = file.read_exact(start + _LOCAL.size + n_name, n_extra)
        if not deferred:
            size, packed = _widen(file, extra, size, packed)
    if not deferred and (size, packed, crc) != (record.n_bytes, record.n_bytes, record.crc):
        raise damaged
    if deferred:
        _check_descriptor(file, record, data_end, end, damaged)
    # torch writes CRC 0 for "not computed"; the CRC-32 of nothing is 0 as well.
    known = record.crc != 0 or record.n_bytes == 0
    return Entry(name, data_offset, record.n_bytes, record.crc if known else None)


def _check_descriptor(
    file: InputFile, record: _Record, data_end: int, end: int, damaged: CheckpointError
) -> None:
    """Check the CRC-32 and sizes that follow the data of an entry that was written as a stream."""
    expected = (b"PK\x07\x08", record.crc, record.n_bytes, record.n_bytes)
    for form in (_DESCRIPTOR_32, _DESCRIPTOR_64):
        if data_end + form.size <= end:
            found = form.unpack(file.read_exact(data_end, form.size))
            if found == expected:
                return
    raise damaged
