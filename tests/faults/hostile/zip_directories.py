"""Zip archives whose directory or end record lies, and those of absurd size."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from tests.faults.hostile.case import many, refused
from tests.faults.hostile.rank_bytes import N_RECORDS, RANK, put, put_many, rank_file
from tests.faults.hostile.zip_bytes import Member, put_with_hole, sparse, write_zip, zip64_extra

_MANY = 1 << 40


@many(
    RANK,
    {
        "entries": ({"n_entries": _MANY, "n_here": _MANY}, "central directory", str(_MANY)),
        "bytes": ({"n_bytes": 1 << 62}, "central directory", str(1 << 62)),
        "offset": ({"offset": 1 << 63}, "central directory"),
        "offset-zero": ({"offset": 0}, "central directory"),
        "fewer-entries": ({"n_entries": 3, "n_here": 3}, "central directory"),
        "split": ({"n_here": 3}, "split"),
        "disk": ({"disk": 1}, "split"),
        "magic": ({"magic": b"PK\x06\x05"}, "zip64 end record"),
        "locator": ({"locator_offset": 5}, "zip64 end record"),
    },
    bomb=True,
)
def zip64_end_record_lies(folder: Path, said: dict[str, Any]) -> None:
    narrow = {"n_here": 0xFFFF, "n_entries": 0xFFFF, "n_bytes": 0xFFFFFFFF, "offset": 0xFFFFFFFF}
    put(folder, rank_file().members(), end=narrow, end64=said)


@many(
    RANK,
    {
        "bytes": ({"n_bytes": 0x60000000}, "central directory"),
        "one-byte-less": ({"n_bytes": 900}, "central directory"),
        "offset": ({"offset": 0xFFFFFFFE}, "central directory"),
        "entries": ({"n_entries": 60000, "n_here": 60000}, "central directory"),
        # Beside the records: data.pkl, byteorder and version.
        "more-entries": (
            dict.fromkeys(("n_entries", "n_here"), N_RECORDS + 4),
            "central directory",
        ),
        "fewer-entries": (
            dict.fromkeys(("n_entries", "n_here"), N_RECORDS + 2),
            "central directory",
        ),
        "disk": ({"disk": 1}, "split"),
        "directory-disk": ({"directory_disk": 1}, "split"),
        "zip64-missing": ({"offset": 0xFFFFFFFF}, "zip64"),
    },
)
def end_record_lies(folder: Path, said: dict[str, int]) -> None:
    put(folder, rank_file().members(), end=said)


@refused(RANK, "central directory")
def bytes_between_directory_and_end(folder: Path) -> None:
    put(folder, rank_file().members(), in_front_of_end=bytes(7))


@refused(RANK, "central directory", str(1600 << 20), bomb=True)
def directory_of_1_6_gb(folder: Path) -> None:
    """All of it is there, as a hole."""
    raw = write_zip([Member("archive/data.pkl", b"N.")])
    at = raw.index(b"PK\x01\x02")
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 60000, 60000, 1600 << 20, at, 0)
    sparse(folder / RANK, raw[:at], 1600 << 20, end)


@refused(RANK, "data.pkl", "implausible size", str(1600 << 20), bomb=True)
def stored_pickle_of_1_6_gb(folder: Path) -> None:
    put_with_hole(folder / RANK, [], "archive/data.pkl", 1600 << 20)


@refused(RANK, "byteorder", "implausible size", bomb=True)
def byteorder_of_1_6_gb(folder: Path) -> None:
    put_with_hole(folder / RANK, [], "archive/byteorder", 1600 << 20)


@refused(RANK, "not one that torch.save wrote", bomb=True)
def twenty_thousand_entries(folder: Path) -> None:
    put_many(folder, 20_000)


@refused(RANK, "central directory", "20001", bomb=True)
def twenty_thousand_and_one_entries(folder: Path) -> None:
    put_many(folder, 20_001)


@refused(RANK, "not one that torch.save wrote", bomb=True)
def directory_of_4_mib(folder: Path) -> None:
    """Few entries, all of them with comments of 64 kB."""
    n_entries = 63
    members = [Member(f"a/{n}", b"", central={"comment": bytes(65535)}) for n in range(n_entries)]
    put(folder, members)


@refused(RANK, "zip64", bomb=True)
def a_million_extra_fields(folder: Path) -> None:
    """Empty extra fields of 4 bytes each in front of the zip64 one of each entry."""
    extra = bytes(4) * 16000 + zip64_extra(0)
    members = [
        Member(f"a/{n}", b"", central={"extra": extra, "size": 0xFFFFFFFF, "packed": 0})
        for n in range(60)
    ]
    put(folder, members)
