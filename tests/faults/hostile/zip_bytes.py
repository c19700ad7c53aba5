"""Own zip archives spelled byte by byte, so that they can lie in any place."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Member:
    """One entry of an archive; `local` and `central` override what the two headers say.

    Keys of both: name, flags, method, crc, packed, size, extra, n_extra, magic; of `central` also
    offset, disk, comment. `descriptor` is what follows the data.
    """

    name: str
    content: bytes
    local: dict[str, Any] = field(default_factory=dict)
    central: dict[str, Any] = field(default_factory=dict)
    descriptor: bytes = b""


def stream_member(name: str, content: bytes) -> Member:
    """Make a member as a writer does that cannot seek: sizes and CRC-32 follow the data."""
    crc = zlib.crc32(content)
    return Member(
        name,
        content,
        local={"flags": 8, "crc": 0, "packed": 0, "size": 0},
        central={"flags": 8},
        descriptor=b"PK\x07\x08" + struct.pack("<3I", crc, len(content), len(content)),
    )


def write_zip(
    members: Sequence[Member],
    *,
    front: bytes = b"",
    back: bytes = b"",
    end: Mapping[str, int] | None = None,
    end64: Mapping[str, int] | None = None,
    in_front_of_end: bytes = b"",
) -> bytes:
    """Write an archive; PKWARE's APPNOTE sections 4.3.7, 4.3.9, 4.3.12, 4.3.14 to 4.3.16.

    Args:
        members: In order.
        front: Bytes before the first local header, not counted in offsets.
        back: Bytes behind the end record.
        end: What the end record says instead of the truth: disk, directory_disk, n_here,
            n_entries, n_bytes, offset, n_comment.
        end64: The same of a zip64 end record, which is written if this is not None; also
            magic, locator_magic, locator_offset.
        in_front_of_end: Bytes between the directory and the end record.
    """
    body = bytearray()
    directory = bytearray()
    for member in members:
        truth = {
            "magic": b"PK\x03\x04",
            "name": member.name,
            "flags": 0,
            "method": 0,
            "crc": zlib.crc32(member.content),
            "packed": len(member.content),
            "size": len(member.content),
            "extra": b"",
        }
        said = truth | member.local
        name, extra = _raw(said["name"]), said["extra"]
        offset = len(body)
        body += struct.pack(
            "<4s5H3I2H",
            *(said["magic"], 20, said["flags"], said["method"], 0, 0),
            *(said["crc"], said["packed"], said["size"]),
            *(len(name), said.get("n_extra", len(extra))),
        )
        body += name + extra + member.content + member.descriptor
        said = truth | {"magic": b"PK\x01\x02", "offset": offset} | member.central
        name, extra, comment = _raw(said["name"]), said["extra"], said.get("comment", b"")
        directory += struct.pack(
            "<4s6H3I5H2I",
            *(said["magic"], 20, 20, said["flags"], said["method"], 0, 0),
            *(said["crc"], said["packed"], said["size"]),
            *(len(name), said.get("n_extra", len(extra)), len(comment)),
            *(said.get("disk", 0), 0, 0, said["offset"]),
        )
        directory += name + extra + comment
    truth = {
        "disk": 0,
        "directory_disk": 0,
        "n_here": len(members),
        "n_entries": len(members),
        "n_bytes": len(directory),
        "offset": len(body),
        "n_comment": 0,
    }
    tail = bytes(directory) + in_front_of_end
    if end64 is not None:
        tail += _end64(truth | dict(end64), len(body) + len(tail))
    said = truth | dict(end or {})
    tail += struct.pack(
        "<4s4H2IH",
        *(b"PK\x05\x06", said["disk"], said["directory_disk"], said["n_here"], said["n_entries"]),
        *(said["n_bytes"], said["offset"], said["n_comment"]),
    )
    return front + bytes(body) + tail + back


def _raw(name: str | bytes) -> bytes:
    return name if isinstance(name, bytes) else name.encode()


def _end64(said: Mapping[str, Any], position: int) -> bytes:
    record = struct.pack(
        "<4sQ2H2I4Q",
        *(said.get("magic", b"PK\x06\x06"), 44, 45, 45, said["disk"], said["directory_disk"]),
        *(said["n_here"], said["n_entries"], said["n_bytes"], said["offset"]),
    )
    locator = struct.pack(
        "<4sIQI",
        said.get("locator_magic", b"PK\x06\x07"),
        0,
        said.get("locator_offset", position),
        1,
    )
    return record + locator


def zip64_extra(*values: int) -> bytes:
    """Write a zip64 extra field (APPNOTE 4.5.3)."""
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values)


def zip_offset(path: Path, suffix: str) -> int:
    """Tell where zipfile finds an entry's data."""
    with zipfile.ZipFile(path) as archive:
        entry = next(e for e in archive.infolist() if e.filename.endswith(suffix))
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        *_, n_name, n_extra = struct.unpack("<4s5H3I2H", file.read(30))
    return entry.header_offset + 30 + n_name + n_extra


def rezip(path: Path, **how: Any) -> None:
    """Write an archive again, with zipfile."""
    with zipfile.ZipFile(path) as old:
        content = {entry.filename: old.read(entry) for entry in old.infolist()}
    deflated = how.get("deflated", lambda _name: False)
    with zipfile.ZipFile(path, "w") as new:
        root = next(iter(content)).split("/")[0]
        for folder in how.get("folders", ()):
            new.writestr(zipfile.ZipInfo(f"{root}/{folder}"), b"")
        for name, raw in content.items():
            method = zipfile.ZIP_DEFLATED if deflated(name) else zipfile.ZIP_STORED
            with new.open(_info(name, method), "w", force_zip64=how.get("zip64", False)) as entry:
                entry.write(raw)


def _info(name: str, method: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.compress_type = method
    return info


def sparse(path: Path, head: bytes, hole: int, tail: bytes) -> None:
    with path.open("wb") as file:
        file.write(head)
        file.seek(hole, os.SEEK_CUR)
        file.write(tail)


def put_with_hole(path: Path, members: Sequence[Member], last: str, n_bytes: int) -> None:
    """Write an archive whose last entry is a hole in the file, its CRC-32 not computed."""
    said = {"size": n_bytes, "packed": n_bytes, "crc": 0}
    hole = Member(last, b"", local=dict(said), central=dict(said))
    raw = write_zip([*members, hole])
    at, n_entries = raw.index(b"PK\x01\x02"), len(members) + 1
    directory = raw[at:-22]
    end = struct.pack(
        "<4s4H2IH",
        *(b"PK\x05\x06", 0, 0, n_entries, n_entries, len(directory), at + n_bytes, 0),
    )
    sparse(path, raw[:at], n_bytes, directory + end)
