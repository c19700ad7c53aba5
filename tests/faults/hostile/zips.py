"""Zip archives whose entries lie."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

from tests.faults.hostile.case import accepted, many, refused
from tests.faults.hostile.rank_bytes import RANK, put, rank_file
from tests.faults.hostile.zip_bytes import Member, rezip, stream_member, zip64_extra


@refused(RANK, "compressed", "method 8", "re-zipped")
def all_entries_deflated(folder: Path) -> None:
    rezip(folder / RANK, deflated=lambda _name: True)


@refused(RANK, "data/0", "compressed", "method 8")
def one_data_entry_deflated(folder: Path) -> None:
    rezip(folder / RANK, deflated=lambda name: name.endswith("data/0"))


@refused(RANK, "data.pkl", "compressed", bomb=True)
def deflated_pickle_bomb(folder: Path) -> None:
    """160 kB on disk, 160 MB unpacked."""
    members = rank_file().members()
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(160)) + packer.flush()
    said = {"method": 8, "size": 160 << 20}
    members[0] = Member("archive/data.pkl", packed, local=dict(said), central=dict(said))
    put(folder, members)


@many(
    RANK,
    {
        "encrypted": (0x0001, "data/3", "0x1", "encrypted"),
        "encrypted-stream": (0x0809, "data/3", "0x809"),
        "strong": (0x0040, "data/3", "0x40"),
        "masked": (0x2000, "data/3", "0x2000"),
        "patched": (0x0020, "data/3", "0x20"),
    },
)
def unsupported_flags(folder: Path, flags: int) -> None:
    members = rank_file().members()
    members[5].local["flags"] = members[5].central["flags"] = flags
    put(folder, members)


@refused(RANK, "local header", "data/3")
def local_name_differs(folder: Path) -> None:
    members = rank_file().members()
    members[5].local["name"] = "archive/data/4"
    put(folder, members)


@refused(RANK, "local header", "data/3")
def local_name_is_shorter(folder: Path) -> None:
    members = rank_file().members()
    members[5].local["name"] = "archive/data/"
    put(folder, members)


@many(
    RANK,
    {
        "magic": ({"magic": b"PK\x03\x05"}, "local header", "data/3"),
        "flags": ({"flags": 0x0800}, "local header", "data/3"),
        "method": ({"method": 8}, "local header", "data/3"),
        "crc": ({"crc": 1}, "local header", "data/3"),
        "size": ({"size": 127}, "local header", "data/3"),
        "packed": ({"packed": 127}, "local header", "data/3"),
        "zip64-without-extra": ({"size": 0xFFFFFFFF, "packed": 0xFFFFFFFF}, "zip64"),
    },
)
def local_header_differs(folder: Path, said: dict[str, Any]) -> None:
    members = rank_file().members()
    members[5].local |= said
    put(folder, members)


@refused(RANK, "local header", "data/3")
def descriptor_missing(folder: Path) -> None:
    members = rank_file().members()
    members[5].local |= {"flags": 8, "crc": 0, "packed": 0, "size": 0}
    members[5].central["flags"] = 8
    put(folder, members)


@refused(RANK, "local header", "data/3")
def descriptor_of_another_crc(folder: Path) -> None:
    members = rank_file().members()
    members[5] = stream_member(members[5].name, members[5].content)
    members[5].descriptor = b"PK\x07\x08" + struct.pack("<3I", 1, 128, 128)
    put(folder, members)


@refused(RANK, "data/2", "overlaps")
def local_extra_length_lies(folder: Path) -> None:
    members = rank_file().members()
    members[4].local["n_extra"] = 40
    put(folder, members)


@refused(RANK, "overlaps")
def two_entries_in_one_place(folder: Path) -> None:
    members = rank_file().members()
    offset = 0
    for member in members[:5]:
        offset += 30 + len(member.name) + len(member.content)
    members[6].central["offset"] = offset
    put(folder, members)


@refused(RANK, "data/3", "overlaps")
def size_reaches_over_the_next(folder: Path) -> None:
    members = rank_file().members()
    members[5].central |= {"size": 400, "packed": 400}
    put(folder, members)


@refused(RANK, "version", "overlaps")
def last_entry_reaches_into_the_directory(folder: Path) -> None:
    members = rank_file().members()
    members[-1].central |= {"size": 30, "packed": 30}
    put(folder, members)


_OUTSIDE = (0x7FFFFFFF, (1 << 32) - 2, (1 << 32) - 1, 1 << 32, 1 << 53, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip


@many(RANK, {f"{offset:#x}": (offset, "data/3", str(offset)) for offset in _OUTSIDE})
def offset_behind_the_end(folder: Path, offset: int) -> None:
    """A zip64 offset from 2**63 on ended in an OverflowError."""
    members = rank_file().members()
    put(folder, _at_offset(members, 5, offset))


@refused(RANK, "data/4", str((1 << 63) + 200))
def two_offsets_behind_the_end(folder: Path) -> None:
    """Each of them ends where the next one begins, so neither overlaps anything."""
    members = _at_offset(rank_file().members(), 5, 1 << 63)
    put(folder, _at_offset(members, 6, (1 << 63) + 200))


def _at_offset(members: list[Member], number: int, offset: int) -> list[Member]:
    """Say of a member that it begins elsewhere, in 64 bits where it must."""
    wide = offset >= 0xFFFFFFFF
    extra = {"extra": zip64_extra(offset)} if wide else {}
    members[number].central |= {"offset": 0xFFFFFFFF if wide else offset, **extra}
    return members


@refused(RANK, "data/3", "128", "129")
def central_sizes_differ(folder: Path) -> None:
    members = rank_file().members()
    members[5].central["packed"] = 129
    put(folder, members)


@refused(RANK, "data/3", "duplicate")
def duplicate_entry_names(folder: Path) -> None:
    members = rank_file().members()
    put(folder, [*members, Member("archive/data/3", bytes(128))])


@many(
    RANK,
    {
        "data": ("archive/DATA/3", "DATA/3"),
        "pickle": ("archive/Data.pkl", "Data.pkl"),
        "byteorder": ("archive/BYTEORDER", "BYTEORDER"),
    },
)
def entry_names_differ_in_case(folder: Path, name: str) -> None:
    """torch takes either: its reader compares names without regard to case."""
    members = rank_file().members()
    put(folder, [*members, Member(name, b"big")])


@refused(RANK, "byteorder", "big")
def big_endian_in_capitals(folder: Path) -> None:
    """torch swaps the bytes of every tensor here too."""
    members = rank_file().members()
    members[1].name, members[1].content = "archive/ByteOrder", b"big"
    put(folder, members)


@accepted()
def entry_names_in_capitals(folder: Path) -> None:
    members = rank_file().members()
    for member in members:
        member.name = "archive/" + member.name.removeprefix("archive/").upper()
    put(folder, members)


@many(
    RANK,
    {
        "0": (("version", b"0\n"), "'0'"),
        "11": (("version", b"11\n"), "'11'"),
        "text": (("version", b"three"), "'three'"),
        "empty": (("version", b""), "version"),
        "data": ((".data/version", b"11\n"), "'11'"),
    },
)
def format_version_is_unknown(folder: Path, said: tuple[str, bytes]) -> None:
    """A later format may mean something else by the same records; torch refuses it too."""
    members = [m for m in rank_file().members() if m.name != f"archive/{said[0]}"]
    put(folder, [*members, Member(f"archive/{said[0]}", said[1])])


@accepted()
def format_version_of_torchscript(folder: Path) -> None:
    members = rank_file().members()
    members[-1].content = b"10"
    put(folder, members)


@many(
    RANK,
    {
        "dot-dot": (b"../../ESCAPED", "../../ESCAPED"),
        "dot-dot-inside": (b"archive/../ESCAPED", "archive/../ESCAPED"),
        "absolute": (b"/etc/passwd", "/etc/passwd"),
        "backslash": (b"archive/..\\ESCAPED", "ESCAPED"),
        "second-root": (b"other/data/3", "other/data/3"),
        "no-root": (b"data.pkl", "data.pkl"),
        "nul": (b"archive/data/3\0.txt", "data/3"),
        "not-utf-8": (b"archive/\xff\xfe", "archive/"),
        "newline": (b"evil\nError: all is well/x", "evil"),
        "terminal-escape": (b"evil\x1b[2J/x", "evil"),
        "64-kib": (b"x" * 65000 + b"/y", "xxx"),
    },
)
def unexpected_entry_name(folder: Path, name: bytes) -> None:
    members = rank_file().members()
    evil = Member("", b"#!/bin/sh\n")
    evil.local["name"] = evil.central["name"] = name
    put(folder, [*members, evil])


@refused(RANK, "not one that torch.save wrote")
def no_pickle(folder: Path) -> None:
    put(folder, rank_file().members()[1:])


@refused(RANK, "not one that torch.save wrote")
def torchscript(folder: Path) -> None:
    put(folder, [*rank_file().members(), Member("archive/constants.pkl", b"\x80\x02).")])


@refused(RANK, "byteorder", "big")
def big_endian(folder: Path) -> None:
    members = rank_file().members()
    members[1].content = b"big"
    put(folder, members)


@refused(RANK, "data/3", "missing", "layers.0.attention.wv.weight")
def record_missing(folder: Path) -> None:
    rank = rank_file()
    del rank.records["data/3"]
    put(folder, rank.members())
