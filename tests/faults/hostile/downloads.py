"""Downloads that were damaged on the way, or are something else."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import torch

from tests.faults.hostile.case import many, refused
from tests.faults.hostile.rank_bytes import N_RECORDS, RANK, STATE, edit, put, rank_file
from tests.faults.hostile.zip_bytes import Member, write_zip, zip_offset


@refused(RANK, "data/3", "CRC-32")
def weights_bit_flipped(folder: Path) -> None:
    at = zip_offset(folder / RANK, "data/3") + 5

    def change(raw: bytearray) -> None:
        raw[at] ^= 0x10

    edit(folder / RANK, change)


@refused(RANK, "data/0", "CRC-32")
def weights_4096_bytes_zeroed(folder: Path) -> None:
    at = zip_offset(folder / RANK, "data/0") + 100

    def change(raw: bytearray) -> None:
        raw[at : at + 4096] = bytes(4096)

    edit(folder / RANK, change)


@refused(RANK, f"data/{N_RECORDS}", "CRC-32")
def dropped_rope_freqs_bit_flipped(folder: Path) -> None:
    at = zip_offset(folder / RANK, f"data/{N_RECORDS}")

    def change(raw: bytearray) -> None:
        raw[at] ^= 1

    edit(folder / RANK, change)


@refused(RANK, "data.pkl", "CRC-32")
def pickle_bit_flipped(folder: Path) -> None:
    at = zip_offset(folder / RANK, "data.pkl") + 40

    def change(raw: bytearray) -> None:
        raw[at] ^= 1

    edit(folder / RANK, change)


def _truncate(folder: Path, n_bytes: int) -> None:
    edit(folder / RANK, lambda raw: raw.__delitem__(slice(n_bytes, None)))


@refused(RANK, "truncated")
def truncated_half(folder: Path) -> None:
    _truncate(folder, (folder / RANK).stat().st_size // 2)


@refused(RANK, "truncated")
def truncated_one_byte(folder: Path) -> None:
    _truncate(folder, (folder / RANK).stat().st_size - 1)


@refused(RANK, "truncated")
def truncated_to_one_header(folder: Path) -> None:
    _truncate(folder, 30)


@refused(RANK, "not a PyTorch zip")
def truncated_to_three_bytes(folder: Path) -> None:
    _truncate(folder, 3)


@refused(RANK, "empty")
def empty_file(folder: Path) -> None:
    (folder / RANK).write_bytes(b"")


@refused(RANK, "4096 bytes after")
def trailing_zeros(folder: Path) -> None:
    edit(folder / RANK, lambda raw: raw.extend(bytes(4096)))


@refused(RANK, "1 bytes after")
def trailing_byte(folder: Path) -> None:
    edit(folder / RANK, lambda raw: raw.extend(b"\n"))


PAGES = {
    "doctype": b"<!DOCTYPE html><html><body>Sign in</body></html>",
    "bom-and-space": b"\xef\xbb\xbf\r\n  <HTML><head></head></html>",
    "xml": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "long": b"<html>" + b"x" * 20000,
}


@many(RANK, {name: (page, "HTML") for name, page in PAGES.items()})
def rank_is_html(folder: Path, page: bytes) -> None:
    (folder / RANK).write_bytes(page)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n"


@refused(RANK, "Git LFS", "git lfs pull")
def rank_is_lfs_pointer(folder: Path) -> None:
    (folder / RANK).write_bytes(POINTER)


@refused(RANK, "tar archive")
def rank_is_tar(folder: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("storages")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    (folder / RANK).write_bytes(buffer.getvalue())


@refused(RANK, "gzip")
def rank_is_gzip(folder: Path) -> None:
    (folder / RANK).write_bytes(gzip.compress((folder / RANK).read_bytes()))


@refused(RANK, "legacy", "re-save")
def rank_is_legacy_torch(folder: Path) -> None:
    torch.save(STATE, folder / RANK, _use_new_zipfile_serialization=False)


@refused(RANK, "not a PyTorch zip")
def rank_is_junk(folder: Path) -> None:
    (folder / RANK).write_bytes(bytes(range(256)) * 40)


@refused(RANK, "not a PyTorch zip")
def polyglot_1_kib_in_front(folder: Path) -> None:
    edit(folder / RANK, lambda raw: raw.__setitem__(slice(0, 0), b"#!/bin/sh\n" + bytes(1014)))


@refused(RANK, "does not begin")
def polyglot_with_a_zip_in_front(folder: Path) -> None:
    """The end record's offsets count from the true first byte, which is not of this archive."""
    front = write_zip([Member("a/b", b"c")])
    members = rank_file().members()
    lie = len(front)
    for member in members:
        member.central["offset"] = lie
        lie += 30 + len(member.name) + len(member.content)
    put(folder, members, front=front, end={"offset": lie})
