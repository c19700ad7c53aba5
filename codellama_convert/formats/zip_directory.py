"""Own the end record and the central directory of a zip archive: where each entry is said to lie.

Sizes are checked before anything is
read or made of them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from operator import attrgetter
from typing import NamedTuple

from codellama_convert.errors import CheckpointError
from codellama_convert.storage.input_file import InputFile

# Sources: PKWARE APPNOTE.TXT 6.3 sections 4.3.12 to 4.5.3; torch's caffe2/serialize/inline_container.
_END = struct.Struct("<4s4H2IH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_CENTRAL = struct.Struct("<4s6H3I5H2I")

HAS_DESCRIPTOR = 0x0008
_NAME_IS_UTF8 = 0x0800
_SUPPORTED_FLAGS = HAS_DESCRIPTOR | _NAME_IS_UTF8
_IN_EXTRA_16 = 0xFFFF
IN_EXTRA_32 = 0xFFFFFFFF

# 70B in 8 ranks has 728 entries and a directory of 60 kB a rank; the caps keep a forged directory
# from costing more than some 20 MB and a second.
_MAX_ENTRIES = 20_000
_MAX_DIRECTORY_BYTES = 4 << 20
_MAX_EXTRA_FIELDS = 64
MAX_SHOWN = 80

DAMAGED_HINT = "the file is damaged or forged, download it again"
_REZIPPED_HINT = "torch.save stores entries uncompressed - was the file re-zipped?"
TORCHSCRIPT = "is a TorchScript archive, not one that torch.save wrote"
TORCHSCRIPT_HINT = "save the weights instead: torch.save(torch.jit.load(FILE).state_dict(), ...)"


class ListedEntry(NamedTuple):
    """An entry as the central directory has it.

    Attributes:
        raw_name: Its name's bytes.
        flags: Of the zip format; none but those of a stream and of UTF-8.
        crc: Its CRC-32.
        n_bytes: Its size.
        header_offset: Where its local header is said to be.
    """

    raw_name: bytes
    flags: int
    crc: int
    n_bytes: int
    header_offset: int


def read_directory(file: InputFile) -> tuple[bytes, int, list[ListedEntry]]:
    """Read the central directory.

    Args:
        file: The open file.

    Returns:
        Its bytes, its position in the file, and the entries by the position of their headers.

    Raises:
        CheckpointError: If it is damaged, implausible, or lists an entry that is compressed,
            encrypted or of two sizes.
    """
    offset, n_bytes, n_entries = _find_directory(file)
    directory = file.read_exact(offset, n_bytes)
    listed = sorted(_parse_directory(file, directory, n_entries), key=attrgetter("header_offset"))
    if listed and listed[-1].header_offset >= offset:
        raise CheckpointError(
            f"entry {show_name(listed[-1].raw_name)!r} is said to begin at byte "
            f"{listed[-1].header_offset}, after all entries",
            path=file.path,
            hint=DAMAGED_HINT,
        )
    return directory, offset, listed


def _find_directory(file: InputFile) -> tuple[int, int, int]:
    """Find the central directory: its offset, its size in bytes and its number of entries."""
    end_offset = _find_end_record(file)
    fields = _END.unpack(file.read_exact(end_offset, _END.size))
    _, disk, directory_disk, n_here, n_entries, n_bytes, offset, _ = fields
    limit = end_offset
    if (
        _IN_EXTRA_16 in (n_here, n_entries)
        or IN_EXTRA_32 in (n_bytes, offset)
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


def _parse_directory(file: InputFile, directory: bytes, n_entries: int) -> Iterator[ListedEntry]:
    position = 0
    for _ in range(n_entries):
        if position + _CENTRAL.size > len(directory):
            raise _damaged_directory(file)
        (
            magic, _, _, flags, method, _, _, crc, packed, size, n_name, n_extra, n_comment, disk,
            _, _, header_offset,
        ) = _CENTRAL.unpack_from(directory, position)  # fmt: skip
        name_at = position + _CENTRAL.size
        extra_at = name_at + n_name
        position = extra_at + n_extra + n_comment
        if magic != b"PK\x01\x02" or position > len(directory):
            raise _damaged_directory(file)
        raw_name = directory[name_at:extra_at]
        extra = directory[extra_at : extra_at + n_extra]
        if IN_EXTRA_32 in (size, packed, header_offset):
            size, packed, header_offset = widen(file, extra, size, packed, header_offset)
        if flags & ~_SUPPORTED_FLAGS or method:
            raise _not_stored(file, raw_name, flags, method)
        if packed != size or disk not in (0, _IN_EXTRA_16):
            raise CheckpointError(
                f"entry {show_name(raw_name)!r} has two sizes, {packed} and {size} bytes",
                path=file.path,
                hint=DAMAGED_HINT,
            )
        yield ListedEntry(raw_name, flags, crc, size, header_offset)
    if position != len(directory):
        raise _damaged_directory(file)


def _not_stored(file: InputFile, raw_name: bytes, flags: int, method: int) -> CheckpointError:
    """Say why the bytes of an entry are not those that were packed."""
    problem = f"is compressed (method {method})"
    if flags & ~_SUPPORTED_FLAGS:
        problem = f"is encrypted or uses unsupported zip flags {flags:#x}"
    elif raw_name.split(b"/")[1:2] == [b"code"]:
        return CheckpointError(TORCHSCRIPT, path=file.path, hint=TORCHSCRIPT_HINT)
    return CheckpointError(
        f"entry {show_name(raw_name)!r} {problem}", path=file.path, hint=_REZIPPED_HINT
    )


def _damaged_directory(file: InputFile) -> CheckpointError:
    return CheckpointError(
        "the central directory is damaged", path=file.path, hint="download it again"
    )


def widen(file: InputFile, extra: bytes, *narrow: int) -> tuple[int, ...]:
    """Replace the fields that say 0xFFFFFFFF by their 64-bit values from the zip64 extra field."""
    n_missing, position = narrow.count(IN_EXTRA_32), 0
    for _ in range(_MAX_EXTRA_FIELDS):
        if position + 4 > len(extra):
            break
        kind, n_bytes = struct.unpack_from("<2H", extra, position)
        body = extra[position + 4 : position + 4 + n_bytes]
        if kind == 0x0001 and len(body) >= 8 * n_missing:
            wide = iter(struct.unpack_from(f"<{n_missing}Q", body))
            return tuple([next(wide) if one == IN_EXTRA_32 else one for one in narrow])
        position += 4 + n_bytes
    raise CheckpointError(
        "an entry lacks its zip64 sizes", path=file.path, hint="download it again"
    )


def show_name(raw_name: bytes) -> str:
    """Return an entry's name for a message; it may have 64 kB and be no UTF-8."""
    return raw_name[:MAX_SHOWN].decode("utf-8", "backslashreplace")
