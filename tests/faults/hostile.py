"""Own the hostile corpus: one checkpoint folder a case, and the facts that the tool must tell of it.

Archives and pickles are spelled here byte by byte with the standard library, so that they can lie
in any place; torch.save writes those where the real writer matters. Nothing is borrowed from the
package. `python -m tests.faults.hostile FOLDER` writes the whole corpus out to look at.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import struct
import sys
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.witness.checkpoints import (
    Shape,
    State,
    params_json,
    random_model,
    save_checkpoint,
    split_ranks,
    tokenizer_model,
)

RANK = "consolidated.00.pth"
SECOND = "consolidated.01.pth"
PARAMS = "params.json"
TOKENIZER = "tokenizer.model"

# Two heads, so that the reordering of rows is no identity; an embedding of more than 4 KiB.
TINY = Shape(dim=8, n_layers=1, n_heads=2, n_kv_heads=2, hidden=16, vocab=300)
STATE = random_model(TINY, seed=5)
EMBEDDING, QUERY, NORM = "tok_embeddings.weight", "layers.0.attention.wq.weight", "norm.weight"
N_RECORDS = len(STATE)  # the rotary buffer's record, where there is one, comes behind them

# --- zip archives ---------------------------------------------------------------------------------


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


# --- pickles --------------------------------------------------------------------------------------


def p_str(text: str | bytes) -> bytes:
    """BINUNICODE."""
    raw = text if isinstance(text, bytes) else text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def p_int(number: int) -> bytes:
    """BININT1, BININT or LONG1."""
    if 0 <= number < 256:
        return b"K" + bytes([number])
    if -(1 << 31) <= number < 1 << 31:
        return b"J" + struct.pack("<i", number)
    raw = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def p_tuple(*items: bytes) -> bytes:
    """MARK, items, TUPLE."""
    return b"(" + b"".join(items) + b"t"


def p_global(module: str, name: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{name}\n".encode()


def p_stack_global(module: str, name: str) -> bytes:
    """SHORT_BINUNICODE twice and STACK_GLOBAL, of protocol 4."""
    short = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name))
    return short + b"\x93"


def p_call(function: bytes, *arguments: bytes) -> bytes:
    """REDUCE."""
    return function + p_tuple(*arguments) + b"R"


P_ORDERED_DICT = p_global("collections", "OrderedDict") + b")R"
P_NONE, P_TRUE, P_FALSE = b"N", b"\x88", b"\x89"


def p_dict(items: Iterable[tuple[bytes, bytes]]) -> bytes:
    """EMPTY_DICT, MARK, items, SETITEMS."""
    return b"}(" + b"".join(key + value for key, value in items) + b"u"


def p_pickle(body: bytes, protocol: int = 2) -> bytes:
    """PROTO, body, STOP."""
    return b"\x80" + bytes([protocol]) + body + b"."


def p_storage(kind: str, key: str, n_elements: int, *, module: str = "torch") -> bytes:
    """BINPERSID as torch.save writes it."""
    return (
        p_tuple(
            p_str("storage"), p_global(module, kind), p_str(key), p_str("cpu"), p_int(n_elements)
        )
        + b"Q"
    )


@dataclass
class Declared:
    """A tensor as data.pkl tells it."""

    name: str
    key: str
    n_elements: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    storage: str = "BFloat16Storage"

    def pickled(self) -> bytes:
        """Call `_rebuild_tensor_v2`."""
        return p_call(
            p_global("torch._utils", "_rebuild_tensor_v2"),
            p_storage(self.storage, self.key, self.n_elements),
            p_int(self.offset),
            p_tuple(*map(p_int, self.shape)),
            p_tuple(*map(p_int, self.strides)),
            P_FALSE,
            P_ORDERED_DICT,
        )


@dataclass
class RankFile:
    """A .pth file to be tampered with: what its pickle declares, and its records."""

    tensors: list[Declared]
    records: dict[str, bytes]
    root: str = "archive"

    def __getitem__(self, name: str) -> Declared:
        return next(tensor for tensor in self.tensors if tensor.name == name)

    def items(self) -> list[tuple[bytes, bytes]]:
        """Spell the dict of tensors."""
        return [(p_str(tensor.name), tensor.pickled()) for tensor in self.tensors]

    def pickled(self) -> bytes:
        """Spell data.pkl."""
        return p_pickle(p_dict(self.items()))

    def members(self, pickled: bytes | None = None) -> list[Member]:
        """List what torch.save would write."""
        small = {"data.pkl": self.pickled() if pickled is None else pickled, "byteorder": b"little"}
        content = small | self.records | {"version": b"3\n"}
        return [Member(f"{self.root}/{name}", raw) for name, raw in content.items()]


def bits_of(tensor: torch.Tensor) -> bytes:
    """Give a contiguous tensor's bytes."""
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def rank_file(state: Mapping[str, torch.Tensor] = STATE) -> RankFile:
    """Declare a rank, every tensor in a record of its own."""
    kind = {torch.bfloat16: "BFloat16", torch.float16: "Half", torch.float32: "Float"}
    tensors = [
        Declared(
            name,
            str(number),
            tensor.numel(),
            tuple(tensor.shape),
            tensor.stride(),
            storage=f"{kind[tensor.dtype]}Storage",
        )
        for number, (name, tensor) in enumerate(state.items())
    ]
    records = {f"data/{n}": bits_of(tensor) for n, tensor in enumerate(state.values())}
    return RankFile(tensors, records)


# --- cases ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One checkpoint folder.

    Attributes:
        name: Of the case.
        build: Tampers with a folder that holds a good checkpoint; a result replaces the expected
            model.
        names: What the error must name first: a file's name; None where the case is accepted.
        facts: What the error must contain; where it is accepted, what the notes must.
        options: Of the command line, behind --input_dir and --output_dir.
        bomb: Whether it is made to cost memory or time; runs in a process that is measured.
        armed: Whether its data.pkl runs a command if it is unpickled.
    """

    name: str
    build: Callable[[Path], tuple[State, Shape] | None]
    names: str | None
    facts: tuple[str, ...]
    options: tuple[str, ...]
    bomb: bool
    armed: bool

    @property
    def accepted(self) -> bool:
        """Whether the checkpoint is good."""
        return self.names is None

    def write(self, folder: Path) -> tuple[State, Shape]:
        """Build the folder, and give the model that an accepted one holds."""
        save_checkpoint(folder, TINY, STATE, tokenizer=False)
        return self.build(folder) or (STATE, TINY)


CASES: dict[str, Case] = {}
Build = Callable[[Path], Any]
_WEIGHTS_ONLY = ("--skip_tokenizer",)


def refused(
    names: str,
    *facts: str,
    options: Sequence[str] = _WEIGHTS_ONLY,
    bomb: bool = False,
    armed: bool = False,
) -> Callable[[Build], Build]:
    """Register a case that must end in one line with these facts."""

    def register(build: Build) -> Build:
        _add(Case(build.__name__, build, names, facts, tuple(options), bomb, armed))
        return build

    return register


def accepted(
    *notes: str, options: Sequence[str] = _WEIGHTS_ONLY, bomb: bool = False
) -> Callable[[Build], Build]:
    """Register a case that must be converted bit for bit, and told of with these notes."""

    def register(build: Build) -> Build:
        _add(Case(build.__name__, build, None, notes, tuple(options), bomb, armed=False))
        return build

    return register


def _add(case: Case) -> None:
    assert case.name not in CASES, case.name
    CASES[case.name] = case


def many(names: str, variants: Mapping[str, tuple[Any, ...]], **more: Any) -> Any:
    """Register a refused case for each variant: its argument, then its facts."""

    def register(build: Callable[[Path, Any], Any]) -> Any:
        for variant, (argument, *facts) in variants.items():

            def run(folder: Path, argument: Any = argument) -> None:
                build(folder, argument)

            run.__name__ = f"{build.__name__}-{variant}"
            refused(names, *facts, **more)(run)
        return build

    return register


def put(folder: Path, members: Sequence[Member], **lies: Any) -> None:
    """Write rank 0."""
    (folder / RANK).write_bytes(write_zip(members, **lies))


def put_pickle(folder: Path, pickled: bytes) -> None:
    """Write rank 0 with another data.pkl, its CRC-32 right."""
    put(folder, rank_file().members(pickled))


def edit(path: Path, change: Callable[[bytearray], Any]) -> None:
    """Change a file's bytes."""
    raw = bytearray(path.read_bytes())
    change(raw)
    path.write_bytes(raw)


def zip_offset(path: Path, suffix: str) -> int:
    """Tell where zipfile finds an entry's data."""
    with zipfile.ZipFile(path) as archive:
        entry = next(e for e in archive.infolist() if e.filename.endswith(suffix))
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        *_, n_name, n_extra = struct.unpack("<4s5H3I2H", file.read(30))
    return entry.header_offset + 30 + n_name + n_extra


def rezip(path: Path, **how: Any) -> None:
    """Write an archive anew with zipfile."""
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


# --- damaged downloads ----------------------------------------------------------------------------


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


_PAGES = {
    "doctype": b"<!DOCTYPE html><html><body>Sign in</body></html>",
    "bom-and-space": b"\xef\xbb\xbf\r\n  <HTML><head></head></html>",
    "xml": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "long": b"<html>" + b"x" * 20000,
}


@many(RANK, {name: (page, "HTML") for name, page in _PAGES.items()})
def rank_is_html(folder: Path, page: bytes) -> None:
    (folder / RANK).write_bytes(page)


_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n"


@refused(RANK, "Git LFS", "git lfs pull")
def rank_is_lfs_pointer(folder: Path) -> None:
    (folder / RANK).write_bytes(_POINTER)


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


# --- archives that lie ----------------------------------------------------------------------------


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


def _sparse(path: Path, head: bytes, hole: int, tail: bytes) -> None:
    with path.open("wb") as file:
        file.write(head)
        file.seek(hole, os.SEEK_CUR)
        file.write(tail)


@refused(RANK, "central directory", str(1600 << 20), bomb=True)
def directory_of_1_6_gb(folder: Path) -> None:
    """All of it is there, as a hole."""
    raw = write_zip([Member("archive/data.pkl", b"N.")])
    at = raw.index(b"PK\x01\x02")
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 60000, 60000, 1600 << 20, at, 0)
    _sparse(folder / RANK, raw[:at], 1600 << 20, end)


@refused(RANK, "data.pkl", "implausible size", str(1600 << 20), bomb=True)
def stored_pickle_of_1_6_gb(folder: Path) -> None:
    _put_with_hole(folder / RANK, [], "archive/data.pkl", 1600 << 20)


@refused(RANK, "byteorder", "implausible size", bomb=True)
def byteorder_of_1_6_gb(folder: Path) -> None:
    _put_with_hole(folder / RANK, [], "archive/byteorder", 1600 << 20)


@refused(RANK, "not one that torch.save wrote", bomb=True)
def twenty_thousand_entries(folder: Path) -> None:
    put_many(folder, 20_000)


@refused(RANK, "central directory", "20001", bomb=True)
def twenty_thousand_and_one_entries(folder: Path) -> None:
    put_many(folder, 20_001)


def put_many(folder: Path, n_entries: int) -> None:
    """Write rank 0 as an archive of many empty entries."""
    members = [Member(f"a/{number}", b"") for number in range(n_entries)]
    put(folder, members)


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


# --- tensors that lie -----------------------------------------------------------------------------


def _declare(folder: Path, name: str, **said: Any) -> None:
    rank = rank_file()
    for attribute, value in said.items():
        setattr(rank[name], attribute, value)
    put(folder, rank.members())


@many(
    RANK,
    {
        "more": ({"n_elements": 65}, QUERY, "data/1", "65 x 2", "128"),
        "fewer": ({"n_elements": 63}, QUERY, "data/1", "63 x 2", "128"),
        "fp32-over-bf16": ({"storage": "FloatStorage"}, QUERY, "data/1", "64 x 4", "128"),
        "2-to-the-62": ({"n_elements": 1 << 62}, QUERY, "data/1", f"{1 << 62} x 2", "128"),
        "wraps-to-the-right-size": ({"n_elements": (1 << 63) + 64}, QUERY, "128"),
        "negative": ({"n_elements": -64}, "storage"),
    },
)
def storage_size_lies(folder: Path, said: dict[str, Any]) -> None:
    _declare(folder, QUERY, **said)


@refused(RANK, "data/1", "64 x 2", "127")
def record_one_byte_short(folder: Path) -> None:
    rank = rank_file()
    rank.records["data/1"] = rank.records["data/1"][:-1]
    put(folder, rank.members())


@refused(RANK, "data/1", "64 x 2", "129")
def record_one_byte_long(folder: Path) -> None:
    rank = rank_file()
    rank.records["data/1"] += b"\0"
    put(folder, rank.members())


@many(
    RANK,
    {
        "offset-1": ({"offset": 1}, QUERY, "out of bounds"),
        "offset-2-to-the-63": ({"offset": (1 << 63) - 1}, QUERY, "out of bounds"),
        "stride": ({"strides": (9, 1)}, QUERY, "out of bounds"),
        "rows": ({"shape": (9, 8)}, QUERY, "out of bounds"),
        "2-to-the-32-squared": ({"shape": (1 << 32, 1 << 32), "strides": (1 << 32, 1)}, QUERY),
        "stride-2-to-the-63": ({"strides": (1 << 63, 1)}, QUERY, "out of bounds"),
        "negative-offset": ({"offset": -1}, QUERY, "negative"),
        "negative-stride": ({"strides": (8, -1)}, QUERY, "negative"),
        "negative-shape": ({"shape": (-8, -8)}, QUERY, "negative"),
        "expanded-rows": ({"strides": (0, 1)}, QUERY, "expanded", "(8, 8)"),
        "expanded-columns": ({"strides": (1, 0)}, QUERY, "expanded", "(8, 8)"),
        "overlapping-rows": ({"strides": (1, 1)}, QUERY, "expanded", "(8, 8)"),
        "overlapping-by-one": ({"strides": (7, 1)}, QUERY, "expanded", "(8, 8)"),
        "9-dimensions": ({"shape": (1,) * 9, "strides": (1,) * 9}, QUERY, "shape"),
        "shape-and-strides": ({"strides": (8,)}, QUERY, "shape"),
        "0-dimensions": ({"shape": (), "strides": ()}, QUERY, "()"),
        "no-rows": ({"shape": (0, 8)}, QUERY, "(0, 8)"),
        "another-shape": ({"shape": (4, 16), "strides": (16, 1)}, QUERY, "(4, 16)"),
    },
)
def view_lies(folder: Path, said: dict[str, Any]) -> None:
    _declare(folder, QUERY, **said)


def _raw_tensor(shape: bytes, strides: bytes, offset: bytes = b"K\0") -> bytes:
    return p_call(
        p_global("torch._utils", "_rebuild_tensor_v2"),
        p_storage("BFloat16Storage", "1", 64),
        offset,
        shape,
        strides,
        P_FALSE,
        P_ORDERED_DICT,
    )


_8_8 = p_tuple(p_int(8), p_int(8))
_8_1 = p_tuple(p_int(8), p_int(1))


@many(
    RANK,
    {
        "bool": (_raw_tensor(_8_8, p_tuple(p_int(8), P_TRUE)), QUERY, "invalid"),
        "bool-offset": (_raw_tensor(_8_8, _8_1, P_FALSE), QUERY, "invalid"),
        "float": (_raw_tensor(_8_8, p_tuple(p_int(8), b"G?\xf0" + bytes(6))), QUERY, "invalid"),
        "text": (_raw_tensor(_8_8, p_str("81")), QUERY, "invalid"),
        "none": (_raw_tensor(P_NONE, _8_1), QUERY, "invalid"),
        "list": (_raw_tensor(b"](" + p_int(8) * 2 + b"e", _8_1), QUERY, "invalid"),
        "nested": (_raw_tensor(p_tuple(_8_8, _8_8), _8_1), QUERY, "invalid"),
        "2000-bits": (_raw_tensor(_8_8, _8_1, p_int(1 << 2000)), "integer"),
    },
)
def numbers_of_other_kinds(folder: Path, tensor: bytes) -> None:
    items = [
        (p_str(QUERY), tensor) if k == p_str(QUERY) else (k, v) for k, v in rank_file().items()
    ]
    put_pickle(folder, p_pickle(p_dict(items)))


@refused(RANK, "data/1", "bfloat16", "float16")
def storage_of_two_dtypes(folder: Path) -> None:
    rank = rank_file()
    rank["layers.0.attention.wk.weight"].key = "1"
    rank["layers.0.attention.wk.weight"].storage = "HalfStorage"
    put(folder, rank.members())


@many(
    RANK,
    {
        kind: (kind, QUERY, f"{kind}Storage")
        for kind in (
            "Double", "Long", "Int", "Short", "Char", "Byte", "Bool", "ComplexFloat",
            "ComplexDouble", "QInt8", "QUInt8", "QInt32",
        )
    },
)  # fmt: skip
def unsupported_dtype(folder: Path, kind: str) -> None:
    _declare(folder, QUERY, storage=f"{kind}Storage")


@many(
    RANK,
    {
        "quantized": (lambda: torch.quantize_per_tensor(torch.ones(8, 8), 0.1, 0, torch.qint8), "unsupported kind", "_rebuild_qtensor"),
        "float8": (lambda: torch.ones(8, 8).to(torch.float8_e4m3fn), "unsupported kind", "_rebuild_tensor_v3"),
        "uint16": (lambda: torch.ones(8, 8, dtype=torch.uint16), "unsupported kind", "_rebuild_tensor_v3"),
        "sparse": (lambda: torch.eye(8).to_sparse(), "unsupported kind", "_rebuild_sparse_tensor"),
        "meta": (lambda: torch.ones(8, 8, device="meta"), "unsupported kind", "_rebuild_meta_tensor_no_storage"),
    },
)  # fmt: skip
def unsupported_tensor(folder: Path, make: Callable[[], torch.Tensor]) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(STATE | {QUERY: make()}, folder / RANK)


@refused(RANK, "float32", "bfloat16")
def one_tensor_of_another_dtype(folder: Path) -> None:
    torch.save(STATE | {QUERY: STATE[QUERY].float()}, folder / RANK)


@many(
    RANK,
    {
        "nested": ({"model": STATE}, "'model'", "nested dict"),
        "extra-int": (STATE | {"step": 7}, "'step'", "int"),
        "extra-list": (STATE | {"losses": [1.0]}, "'losses'", "list"),
        "extra-none": (STATE | {"optimizer": None}, "'optimizer'", "None"),
        "extra-text": (STATE | {"name": "x" * 1000}, "'name'", "str"),
        "list": (list(STATE.values()), "list"),
        "tensor": (STATE[QUERY], "tensor"),
        "empty": ({}, "missing"),
        "hugging-face-names": ({f"model.{k}": v for k, v in STATE.items()}, "missing"),
        "extra-tensor": (STATE | {"lora_A.weight": STATE[QUERY].clone()}, "'lora_A.weight'", "(8, 8)"),
        "missing-tensor": ({k: v for k, v in STATE.items() if k != NORM}, NORM, "missing"),
        "long-name": (STATE | {"x" * 257: STATE[QUERY]}, "257"),
    },
)  # fmt: skip
def another_structure(folder: Path, saved: Any) -> None:
    torch.save(saved, folder / RANK)


# --- pickles that attack --------------------------------------------------------------------------


def _command(folder: Path) -> str:
    return f"touch {folder.parent / 'canary'}"


def _with_item(value: bytes, key: bytes | None = None) -> bytes:
    return p_dict([*rank_file().items(), (key or p_str("evil"), value)])


@refused(RANK, "os.system", "not allowed", "Nothing was executed", armed=True)
def malicious_reduce(folder: Path) -> None:
    put_pickle(
        folder, p_pickle(_with_item(p_call(p_global("os", "system"), p_str(_command(folder)))))
    )


@refused(RANK, "posix.system", "not allowed", armed=True)
def malicious_reduce_protocol_4(folder: Path) -> None:
    call = p_call(p_stack_global("posix", "system"), p_str(_command(folder)))
    put_pickle(folder, p_pickle(_with_item(call), protocol=4))


@refused(RANK, "os.system", "not allowed", armed=True)
def malicious_inst(folder: Path) -> None:
    put_pickle(folder, p_pickle(_with_item(b"(" + p_str(_command(folder)) + b"ios\nsystem\n")))


@refused(RANK, "os.system", "not allowed", armed=True)
def malicious_obj(folder: Path) -> None:
    call = b"(" + p_global("os", "system") + p_str(_command(folder)) + b"o"
    put_pickle(folder, p_pickle(_with_item(call)))


@refused(RANK, "builtins.eval", "not allowed", armed=True)
def malicious_key(folder: Path) -> None:
    call = p_call(
        p_global("builtins", "eval"), p_str(f"__import__('os').system('{_command(folder)}')")
    )
    put_pickle(folder, p_pickle(_with_item(P_NONE, key=call)))


@refused(RANK, "os.system", "not allowed", armed=True)
def malicious_before_the_dict(folder: Path) -> None:
    call = p_call(p_global("os", "system"), p_str(_command(folder)))
    put_pickle(folder, p_pickle(call + b"0" + p_dict(rank_file().items())))


@refused(RANK, "os.system", "not allowed")
def malicious_inner_function(folder: Path) -> None:
    """The function that `_rebuild_from_type_v2` calls."""
    call = p_call(
        p_global("torch._tensor", "_rebuild_from_type_v2"),
        p_global("os", "system"),
        p_global("torch", "Tensor"),
        p_tuple(p_str(_command(folder))),
        P_NONE,
    )
    put_pickle(folder, p_pickle(_with_item(call)))


@refused(RANK, "_rebuild_from_type_v2", "unknown way")
def rebuild_in_rebuild(folder: Path) -> None:
    rebuild, tensor = (
        p_global("torch._tensor", "_rebuild_from_type_v2"),
        p_global("torch", "Tensor"),
    )
    inner = P_NONE
    for _ in range(50):
        inner = p_tuple(rebuild, tensor, inner if inner != P_NONE else b")", P_NONE)
    put_pickle(folder, p_pickle(_with_item(rebuild + inner + b"R")))


@many(
    RANK,
    {
        "dotted": (("torch", "storage.os.system"), "torch.storage.os.system"),
        "other-module": (("os", "_rebuild_tensor_v2"), "os._rebuild_tensor_v2"),
        "torch-load": (("torch", "load"), "torch.load"),
        "load-from-bytes": (("torch.storage", "_load_from_bytes"), "_load_from_bytes"),
        "getattr": (("builtins", "getattr"), "builtins.getattr"),
        "empty": (("", ""), "not allowed"),
        "spaces": (("collections OrderedDict", ""), "not allowed"),
        "long": (("x" * 50_000, "y" * 50_000), "xxxxxxxx"),
        "newline-escape": (("a\x1b[31m", "b"), "not allowed"),
    },
)
def refused_name(folder: Path, pair: tuple[str, str]) -> None:
    put_pickle(folder, p_pickle(_with_item(p_global(*pair))))


@many(
    RANK,
    {
        "persid-text": (b"Pos.system\n", "PERSID"),
        "persid-string": (p_str("os.system") + b"Q", "storage"),
        "persid-module": (p_tuple(p_str("module"), p_global("torch", "Tensor"), p_str("0")) + b"Q", "storage"),
        "storage-key-dots": (p_storage("FloatStorage", "../3", 2), "storage"),
        "storage-key-digits": (p_storage("FloatStorage", "\u0663", 2), "storage"),
        "storage-key-long": (p_storage("FloatStorage", "0" * 30_000, 2), "storage"),
        "storage-of-function": (p_tuple(p_str("storage"), p_str("FloatStorage"), p_str("0"), p_str("cpu"), p_int(2)) + b"Q", "storage"),
        "storage-bool-size": (p_tuple(p_str("storage"), p_global("torch", "FloatStorage"), p_str("0"), p_str("cpu"), P_TRUE) + b"Q", "storage"),
        "storage-view-metadata": (p_tuple(p_str("storage"), p_global("torch", "FloatStorage"), p_str("0"), p_str("cpu"), p_int(2), p_tuple(p_str("1"), p_int(0), p_int(2))) + b"Q", "storage"),
        "newobj": (p_global("collections", "OrderedDict") + b")\x81", "NEWOBJ"),
        "newobj-ex": (p_global("collections", "OrderedDict") + b")}\x92", "NEWOBJ_EX"),
        "obj": (b"(" + p_global("collections", "OrderedDict") + b"o", "OBJ"),
        "ext1": (b"\x82\x01", "EXT1"),
        "ext2": (b"\x83\x01\x00", "EXT2"),
        "ext4": (b"\x84\x01\x00\x00\x00", "EXT4"),
        "set": (b"\x8f", "EMPTY_SET"),
        "frozenset": (b"(\x91", "FROZENSET"),
        "bytes": (b"C\x01a", "SHORT_BINBYTES"),
        "bytearray": (b"\x96" + struct.pack("<Q", 1) + b"a", "BYTEARRAY8"),
        "next-buffer": (b"\x97", "NEXT_BUFFER"),
        "pop": (b"N0N", "POP"),
        "dup": (b"N2", "DUP"),
        "text-int": (b"I7\n", "INT"),
        "text-long": (b"L" + b"9" * 100_000 + b"L\n", "LONG"),
        "text-float": (b"F1.5\n", "FLOAT"),
        "text-string": (b"S'a'\n", "STRING"),
        "text-string-escape": (b"S'\\q'\n", "STRING"),
        "text-unicode": (b"Va\n", "UNICODE"),
        "text-get": (b"g0\n", "GET"),
        "text-put": (b"Np0\n", "PUT"),
        "text-dict": (b"(d", "DICT"),
        "text-list": (b"(l", "LIST"),
        "binstring": (b"U\x01a", "SHORT_BINSTRING"),
        "ordered-dict-of-items": (p_call(p_global("collections", "OrderedDict"), b"]"), "OrderedDict"),
        "call-of-storage": (p_call(p_global("torch", "FloatStorage")), "FloatStorage"),
        "call-of-text": (p_call(p_str("os.system")), "calls"),
        "call-without-tuple": (p_global("collections", "OrderedDict") + b"]R", "calls"),
        "rebuild-too-few": (p_call(p_global("torch._utils", "_rebuild_tensor_v2"), P_NONE), "_rebuild_tensor_v2"),
        "rebuild-no-storage": (p_call(p_global("torch._utils", "_rebuild_tensor_v2"), P_NONE, p_int(0), b")", b")", P_FALSE, P_ORDERED_DICT), "_rebuild_tensor_v2"),
        "parameter-of-none": (p_call(p_global("torch._utils", "_rebuild_parameter"), P_NONE, P_FALSE, P_ORDERED_DICT), "_rebuild_parameter"),
        "state-of-list": (b"]}b", "state"),
        "state-is-list": (P_ORDERED_DICT + b"]b", "state"),
        "memo-unknown": (b"h\xff", "memo"),
        "memo-of-mark": (b"(q\x00t", "damaged"),
        "append-to-dict": (b"}Na", "append"),
        "items-for-list": (b"](p_strNu"[:2] + b"u", "items"),
        "odd-items": (b"}(" + p_str("a") + b"u", "items"),
        "no-mark": (b"t" * 60, "damaged"),
        "key-twice": (p_dict([(p_str("a"), P_NONE), (p_str("a"), P_NONE)]), "'a'", "twice"),
        "key-int": (p_dict([(p_int(1), P_NONE)]), "dict key"),
        "key-none": (p_dict([(P_NONE, P_NONE)]), "dict key"),
        "key-tensor": (p_dict([(_raw_tensor(_8_8, _8_1), P_NONE)]), "dict key"),
        "surrogate": (b"X\x03\x00\x00\x00\xed\xa0\x80", "'evil'"),
        "unknown-opcode": (b"\xff", "damaged"),
        "second-value": (P_NONE + P_NONE, "damaged"),
    },
)  # fmt: skip
def refused_pickle(folder: Path, value: bytes) -> None:
    put_pickle(folder, p_pickle(_with_item(value)))


@many(
    RANK,
    {
        "no-stop": (b"\x80\x02}", "damaged"),
        "empty-stack": (b"\x80\x02.", "damaged"),
        "mark-left": (b"\x80\x02}(.", "damaged"),
        "only-mark": (b"\x80\x02(.", "damaged"),
        "empty": (b"", "damaged"),
        "text": (b"hello world", "damaged"),
        "string-past-the-end": (b"\x80\x02X\xff\xff\xff\x7f.", "damaged"),
        "string-of-4-gb": (b"\x80\x04\x8d" + struct.pack("<Q", 4 << 30) + b".", "damaged"),
        "string-of-2-to-the-63": (b"\x80\x04\x8d" + struct.pack("<Q", (1 << 64) - 1) + b".", "damaged"),
        "long-past-the-end": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "damaged"),
        "long-of-negative-size": (b"\x80\x02\x8b\xff\xff\xff\xff.", "damaged"),
        "not-utf-8": (b"\x80\x02X\x01\x00\x00\x00\xff.", "damaged"),
        "line-without-end": (b"\x80\x02cos", "damaged"),
        "protocol-6": (p_pickle(p_dict(rank_file().items()), 6), "protocol 6"),
    },
    bomb=True,
)  # fmt: skip
def torn_pickle(folder: Path, pickled: bytes) -> None:
    put_pickle(folder, pickled)


@refused(RANK, "dict key", bomb=True)
def tuple_key_bomb(folder: Path) -> None:
    """A key of 60 nested pairs, each twice the one before: hashing it takes 2 ** 60 steps."""
    key = b"Nq\x00" + b"".join(b"h%c\x86q%c" % (n, n + 1) for n in range(60))
    put_pickle(folder, p_pickle(b"}" + key + b"Ns"))


@refused(RANK, "'evil'", "tuple", bomb=True)
def memo_of_doubling_tuples(folder: Path) -> None:
    value = b"Nq\x00" + b"".join(b"h%c\x86q%c" % (n, n + 1) for n in range(60))
    put_pickle(folder, p_pickle(_with_item(value)))


@refused(RANK, "'evil'", "None", bomb=True)
def memo_key_of_4_billion(folder: Path) -> None:
    """Nine bytes that cost pickle.loads 4 GB."""
    put_pickle(folder, p_pickle(_with_item(b"Nr\xff\xff\xff\xff")))


@refused(RANK, "'evil'", "list", bomb=True)
def as_many_lists_as_possible(folder: Path) -> None:
    put_pickle(folder, p_pickle(_with_item(b"](" + b"]" * 199_000 + b"e")))


@refused(RANK, "'evil'", "tuple", bomb=True)
def tuples_190_000_deep(folder: Path) -> None:
    put_pickle(folder, p_pickle(_with_item(b")" + b"\x85" * 190_000)))


@refused(RANK, "opcodes", bomb=True)
def two_million_opcodes(folder: Path) -> None:
    put_pickle(folder, p_pickle(b"}" * 2_000_000))


@refused(RANK, "implausible size", str((2 << 20) + 1), bomb=True)
def pickle_one_byte_too_large(folder: Path) -> None:
    put_pickle(folder, p_pickle(p_str(b"x" * ((2 << 20) + 1 - 8))))


@refused(RANK, "holds a str", bomb=True)
def string_of_2_mb(folder: Path) -> None:
    """Every character takes four bytes once one of them is not ASCII."""
    text = "x" * ((2 << 20) - 8 - 4) + "\U0001f600"
    put_pickle(folder, p_pickle(p_str(text)))


@refused(RANK, "opcodes", bomb=True)
def many_dicts(folder: Path) -> None:
    put_pickle(folder, p_pickle(b"}q\x00" * 110_000))


@refused(RANK, "integer", bomb=True)
def integer_of_2_mb(folder: Path) -> None:
    size = (2 << 20) - 20
    put_pickle(folder, p_pickle(b"\x8b" + struct.pack("<i", size) + b"\x7f" * size))


@refused(RANK, "LONG", bomb=True)
def text_integer_of_2_mb(folder: Path) -> None:
    """int() of that many digits takes minutes where Python does not limit it."""
    put_pickle(folder, p_pickle(b"L" + b"7" * ((2 << 20) - 20) + b"L\n"))


@refused(RANK, "out of bounds", NORM, bomb=True)
def reach_beyond_a_small_storage(folder: Path) -> None:
    _declare(folder, NORM, strides=(1 << 40,))


# --- views that torch reads right -----------------------------------------------------------------


def _replace(folder: Path, name: str, content: torch.Tensor, **said: Any) -> None:
    """Store a tensor as some view of a storage of these elements."""
    rank = rank_file()
    declared = rank[name]
    rank.records[f"data/{declared.key}"] = bits_of(content)
    declared.n_elements = content.numel()
    for attribute, value in said.items():
        setattr(declared, attribute, value)
    view = torch.as_strided(content, declared.shape, declared.strides, declared.offset)
    assert torch.equal(view.view(torch.int16), STATE[name].view(torch.int16))
    put(folder, rank.members())


def _spread(name: str, strides: tuple[int, ...], offset: int, n_elements: int) -> torch.Tensor:
    content = torch.arange(n_elements).to(torch.bfloat16)
    torch.as_strided(content, STATE[name].shape, strides, offset).copy_(STATE[name])
    return content


def _as_view(name: str, strides: tuple[int, ...], offset: int = 0, behind: int = 0) -> Build:
    def build(folder: Path) -> None:
        reach = sum((n - 1) * step for n, step in zip(STATE[name].shape, strides, strict=True))
        content = _spread(name, strides, offset, offset + reach + 1 + behind)
        _replace(folder, name, content, strides=strides, offset=offset)

    return build


_GATE = "layers.0.feed_forward.w1.weight"
_DOWN = "layers.0.feed_forward.w2.weight"

for _name, _build in {
    "view-fits-exactly": _as_view(QUERY, (8, 1)),
    "view-at-an-offset": _as_view(QUERY, (8, 1), offset=3, behind=4),
    "view-of-columns": _as_view(QUERY, (11, 1), offset=2, behind=2),
    "view-transposed": _as_view(QUERY, (1, 8)),
    "view-transposed-slice": _as_view(_GATE, (1, 19), offset=1),
    "view-every-second-column": _as_view(QUERY, (16, 2)),
    "view-every-second-row": _as_view(QUERY, (2, 16), behind=1),
    "view-vector-stepped": _as_view(NORM, (3,), offset=1, behind=2),
    "view-interleaved": _as_view(QUERY, (8, 9)),  # rows reach over the next ones
    "view-interleaved-gate": _as_view(_GATE, (2, 17), offset=1),  # tiles reach over the next ones
    "view-interleaved-rows": _as_view(_GATE, (9, 2)),
    "view-interleaved-down": _as_view(_DOWN, (17, 3), behind=5),
}.items():
    _build.__name__ = _name.replace("-", "_")
    accepted()(_build)


@accepted()
def single_row_of_odd_stride(folder: Path) -> tuple[State, Shape]:
    """The step of a dimension of size one means nothing; torch keeps what it was."""
    shape = Shape(dim=2, n_layers=1, n_heads=1, n_kv_heads=1, hidden=1, vocab=300)
    state = random_model(shape, seed=6)
    rank = rank_file(state)
    rank[_GATE].strides = (1 << 50, 1)
    rank["layers.0.feed_forward.w2.weight"].strides = (1, 1 << 50)
    put(folder, rank.members())
    (folder / PARAMS).write_text(
        params_json(shape, overrides={"multiple_of": 1, "ffn_dim_multiplier": 0.2})
    )
    return state, shape


@accepted()
def storage_shared_by_several(folder: Path) -> tuple[State, Shape]:
    """The embedding and the output are one, and the norms overlap each other."""
    state = STATE | {"output.weight": STATE[EMBEDDING]}
    long = torch.cat([STATE[NORM], STATE["layers.0.ffn_norm.weight"]])
    state |= {
        "norm.weight": long[0:8],
        "layers.0.ffn_norm.weight": long[3:11],
        "layers.0.attention_norm.weight": long[5:13],
    }
    torch.save(state, folder / RANK)
    return state, TINY


@accepted(bomb=True)
def norm_spread_over_a_gigabyte(folder: Path) -> tuple[State, Shape]:
    """Its elements lie 150 MB apart; the rest is a hole."""
    state = STATE | {NORM: torch.zeros(8, dtype=torch.bfloat16)}
    step = 75 << 20
    n_elements = 7 * step + 1
    for name, part in zip((RANK, SECOND), split_ranks(state, 2), strict=True):
        rank = rank_file(part)
        rank[NORM].strides, rank[NORM].n_elements = (step,), n_elements
        last = f"archive/data/{rank[NORM].key}"
        members = [member for member in rank.members() if member.name != last]
        _put_with_hole(folder / name, members, last, 2 * n_elements)
    return state, TINY


def _put_with_hole(path: Path, members: Sequence[Member], last: str, n_bytes: int) -> None:
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
    _sparse(path, raw[:at], n_bytes, directory + end)


# --- writers that torch reads right ---------------------------------------------------------------


@accepted()
def control(folder: Path) -> None:
    """As torch.save wrote it."""


@accepted(options=())
def control_with_tokenizer(folder: Path) -> None:
    (folder / TOKENIZER).write_bytes(tokenizer_model(TINY.vocab))


@accepted()
def control_of_this_script(folder: Path) -> None:
    put(folder, rank_file().members())


@accepted()
def rezipped_stored(folder: Path) -> None:
    rezip(folder / RANK)


@accepted()
def rezipped_stored_with_folders(folder: Path) -> None:
    rezip(folder / RANK, folders=("", "data/", ".data/"))


@accepted()
def rezipped_with_zip64_headers(folder: Path) -> None:
    rezip(folder / RANK, zip64=True)


@accepted()
def rezipped_as_a_stream(folder: Path) -> None:
    put(folder, [stream_member(m.name, m.content) for m in rank_file().members()])


@accepted()
def rezipped_by_zipfile_as_a_stream(folder: Path) -> None:
    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.written = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, piece: Any) -> int:
            self.written += piece
            return len(piece)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as new:  # type: ignore[arg-type]
        for member in rank_file().members():
            new.writestr(member.name, member.content)
    (folder / RANK).write_bytes(pipe.written)


@accepted()
def entries_in_another_order(folder: Path) -> None:
    put(folder, rank_file().members()[::-1])


@accepted()
def zip64_end_record(folder: Path) -> None:
    narrow = {"n_here": 0xFFFF, "n_entries": 0xFFFF, "n_bytes": 0xFFFFFFFF, "offset": 0xFFFFFFFF}
    put(folder, rank_file().members(), end=narrow, end64={})


@accepted()
def extra_fields_and_comments(folder: Path) -> None:
    members = rank_file().members()
    for member in members:
        member.local["extra"] = struct.pack("<2H5s", 0x5455, 5, b"12345")
        member.central |= {"extra": struct.pack("<2H", 0x7875, 0), "comment": b"made by hand"}
    put(folder, members)


@accepted()
def no_byteorder_nor_version(folder: Path) -> None:
    put(folder, [m for m in rank_file().members() if not m.name.endswith(("byteorder", "version"))])


@accepted()
def old_root_name(folder: Path) -> None:
    rank = rank_file()
    rank.root = "consolidated.00_old ünïcode"
    put(folder, rank.members())


@accepted(f"note: {RANK}: saved without CRC-32 sums", "--checksums strict")
def crc_field_zero(folder: Path) -> None:
    """torch writes 0 where it was told not to compute a CRC-32."""
    members = rank_file().members()
    for member in members:
        member.local["crc"] = member.central["crc"] = 0
    put(folder, members)


@accepted()
def names_marked_as_utf_8(folder: Path) -> None:
    """The one flag that a plain entry may have, alone and beside that of a stream."""
    members = rank_file().members()
    members[3] = stream_member(members[3].name, members[3].content)
    for member in members:
        flags = 0x0800 | member.central.get("flags", 0)
        member.local["flags"] = member.central["flags"] = flags
    put(folder, members)


@accepted()
def unused_record(folder: Path) -> None:
    rank = rank_file()
    rank.records["data/77"] = b"nobody refers to it"
    put(folder, rank.members())


for _protocol in (2, 3, 4, 5):

    def _with_protocol(folder: Path, protocol: int = _protocol) -> None:
        torch.save(STATE, folder / RANK, pickle_protocol=protocol)

    _with_protocol.__name__ = f"pickle_protocol_{_protocol}"
    accepted()(_with_protocol)


@accepted()
def parameters(folder: Path) -> None:
    save_checkpoint(folder, TINY, STATE, as_parameters=True, tokenizer=False)


@refused(RANK, EMBEDDING, "state of _rebuild_parameter_with_state", "'tensor_model_parallel'")
def parameters_with_state(folder: Path) -> None:
    """torch sets each attribute of the state, and one named `data` would replace the values."""
    saved = {n: torch.nn.Parameter(t, requires_grad=False) for n, t in STATE.items()}
    for parameter in saved.values():
        parameter.tensor_model_parallel = True
    torch.save(saved, folder / RANK)


@refused(RANK, EMBEDDING, "state of _rebuild_from_type_v2", "'partition_dim'")
def rebuild_from_type_v2(folder: Path) -> None:
    """Tensors with attributes, as torch.save writes a plain one that got any."""
    saved = {name: tensor.clone() for name, tensor in STATE.items()}
    for tensor in saved.values():
        tensor.partition_dim = 0
    torch.save(saved, folder / RANK)
    with zipfile.ZipFile(folder / RANK) as archive:
        pickled = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    assert b"_rebuild_from_type_v2" in pickled


def _negated(tensor: torch.Tensor) -> torch.Tensor:
    """Let torch write the bytes of -tensor, and that they are to be negated."""
    return torch._neg_view(tensor.neg())


@refused(RANK, QUERY, "metadata of _rebuild_tensor_v2", "'neg'", "resolve_neg")
def lazily_negated(folder: Path) -> None:
    torch.save(STATE | {QUERY: _negated(STATE[QUERY])}, folder / RANK)


@accepted()
def lazily_negated_and_resolved(folder: Path) -> None:
    torch.save(STATE | {QUERY: _negated(STATE[QUERY]).resolve_neg()}, folder / RANK)


def _rebuilt(**said: bytes) -> bytes:
    """Spell the query matrix with other arguments behind the strides."""
    rank = rank_file()
    arguments = {"requires_grad": P_FALSE, "backward_hooks": P_ORDERED_DICT} | said
    tensor = rank[QUERY].pickled()
    plain = P_FALSE + P_ORDERED_DICT + b"tR"
    assert tensor.endswith(plain)
    return tensor.removesuffix(plain) + b"".join(arguments.values()) + b"tR"


def _put_query(folder: Path, query: bytes) -> None:
    rank = rank_file()
    items = [(p_str(t.name), query if t.name == QUERY else t.pickled()) for t in rank.tensors]
    put_pickle(folder, p_pickle(p_dict(items)))


_FULL = p_dict([(p_str("x"), P_NONE)])
_PARAMETER = p_global("torch._utils", "_rebuild_parameter")
_WITH_STATE = p_global("torch._utils", "_rebuild_parameter_with_state")
_FROM_TYPE = p_global("torch._tensor", "_rebuild_from_type_v2")


def _from_type(kind: bytes, state: bytes) -> bytes:
    inner = p_tuple(_rebuilt(), P_FALSE, P_ORDERED_DICT)
    return p_call(_FROM_TYPE, _PARAMETER, kind, inner, state)


_PARAMETER_TYPE = p_global("torch.nn.parameter", "Parameter")


@many(
    RANK,
    {
        "metadata-conj": (_rebuilt(metadata=p_dict([(p_str("conj"), P_TRUE)])), QUERY, "metadata of _rebuild_tensor_v2", "'conj'"),
        "metadata-list": (_rebuilt(metadata=b"]Na"), QUERY, "metadata of _rebuild_tensor_v2"),
        "metadata-number": (_rebuilt(metadata=p_int(0)), QUERY, "metadata of _rebuild_tensor_v2"),
        "metadata-twice": (_rebuilt(metadata=b"}", more=b"}"), "_rebuild_tensor_v2", "unknown way"),
        "hooks": (_rebuilt(backward_hooks=P_ORDERED_DICT + p_str("x") + b"Ns"), QUERY, "backward_hooks of _rebuild_tensor_v2", "'x'"),
        "requires-grad-tensor": (_rebuilt(requires_grad=p_str("yes")), "_rebuild_tensor_v2", "unknown way"),
        "parameter-hooks": (p_call(_PARAMETER, _rebuilt(), P_FALSE, _FULL), QUERY, "backward_hooks of _rebuild_parameter"),
        "parameter-of-negated": (p_call(_PARAMETER, _rebuilt(metadata=_FULL), P_FALSE, P_ORDERED_DICT), QUERY, "metadata of _rebuild_tensor_v2"),
        "parameter-hooks-with-state": (p_call(_WITH_STATE, _rebuilt(), P_FALSE, _FULL, P_NONE), QUERY, "backward_hooks of _rebuild_parameter_with_state"),
        "from-type-state-pair": (_from_type(_PARAMETER_TYPE, p_tuple(P_NONE, _FULL)), QUERY, "state of _rebuild_from_type_v2"),
        "from-another-type": (_from_type(p_global("collections", "OrderedDict"), P_NONE), "_rebuild_from_type_v2", "unknown way"),
        "from-type-of-dict": (p_call(_FROM_TYPE, p_global("collections", "OrderedDict"), _PARAMETER_TYPE, b")", P_NONE), "_rebuild_from_type_v2", "unknown way"),
        "on-meta": (_rebuilt().replace(p_str("cpu"), p_str("meta")), "storage 1", "'meta'"),
    },
)  # fmt: skip
def tensor_says_more(folder: Path, query: bytes) -> None:
    """Each is an argument that torch applies to the tensor, or one that it does not take."""
    _put_query(folder, query)


@refused(RANK, QUERY, "backward_hooks of _rebuild_tensor_v2", "'later'")
def hooks_are_filled_after_the_tensor_was_made(folder: Path) -> None:
    """They are empty when the constructor is called; an item is put in by a later opcode."""
    query = _rebuilt(backward_hooks=P_ORDERED_DICT + b"q\xc8")
    metadata = b"h\xc8" + p_str("later") + b"Ns"
    rank = rank_file()
    state = p_dict([(p_str("_metadata"), metadata)])
    items = b"".join(
        p_str(t.name) + (query if t.name == QUERY else t.pickled()) + b"s" for t in rank.tensors
    )
    put_pickle(folder, p_pickle(P_ORDERED_DICT + items + state + b"b"))


for _name, _query in {
    "tensor_says_nothing": _rebuilt(metadata=P_NONE),
    "tensor_says_nothing_in_a_dict": _rebuilt(metadata=b"}"),
    "tensor_without_hooks": _rebuilt(backward_hooks=P_NONE),
    "tensor_requires_grad": _rebuilt(requires_grad=P_TRUE),
    "parameter_without_state": p_call(_WITH_STATE, _rebuilt(), P_TRUE, P_ORDERED_DICT, P_NONE),
    "parameter_of_empty_state": p_call(_WITH_STATE, _rebuilt(), P_TRUE, P_ORDERED_DICT, b"}"),
    "from_type_without_state": _from_type(_PARAMETER_TYPE, b"}"),
}.items():

    def _says_nothing(folder: Path, query: bytes = _query) -> None:
        _put_query(folder, query)

    _says_nothing.__name__ = _name
    accepted()(_says_nothing)


@refused(RANK, "'items'", "attribute")
def ordered_dict_with_an_attribute(folder: Path) -> None:
    """torch sets it, and whoever calls `items()` of the dict gets another one's."""
    state = p_dict([(p_str("items"), P_NONE)])
    put_pickle(folder, p_pickle(P_ORDERED_DICT + state + b"b"))


@accepted()
def ordered_dict_with_metadata(folder: Path) -> None:
    """As `Module.state_dict()` gives it."""
    saved: OrderedDict[str, torch.Tensor] = OrderedDict(STATE)
    versions = OrderedDict({"": {"version": 1}, "layers.0": {"version": 1}})
    saved._metadata = versions  # type: ignore[attr-defined]
    torch.save(saved, folder / RANK)


@accepted()
def module_state_dict(folder: Path) -> None:
    """What `torch.save(module.state_dict())` writes."""

    class Bare(torch.nn.Module):
        pass

    top = Bare()
    for name, tensor in STATE.items():
        *path, last = name.split(".")
        module = top
        for part in path:
            if part not in module._modules:
                module.add_module(part, Bare())
            module = module.get_submodule(part)
        module.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=False))
    saved = top.state_dict()
    torch.save(saved, folder / RANK)


for _storage in ("shared-offset", "flat", "transposed", "strided"):

    def _with_storage(folder: Path, storage: Any = _storage) -> None:
        save_checkpoint(folder, TINY, STATE, storage=storage, tokenizer=False)

    _with_storage.__name__ = f"storage_{_storage.replace('-', '_')}"
    accepted()(_with_storage)


@accepted("infinite or NaN, kept as stored (first in lm_head.weight)")
def nan_and_infinity(folder: Path) -> tuple[State, Shape]:
    state = random_model(TINY, seed=7, special_values=True)
    save_checkpoint(folder, TINY, state, tokenizer=False)
    return state, TINY


@accepted()
def trained_on_cuda(folder: Path) -> None:
    put_pickle(folder, rank_file().pickled().replace(p_str("cpu"), p_str("cuda:0")))


@accepted()
def linked_rank(folder: Path) -> None:
    (folder / RANK).rename(folder.parent / "blob")
    (folder / RANK).symlink_to(folder.parent / "blob")


@accepted()
def linked_folder(folder: Path) -> None:
    folder.rename(folder.parent / "snapshot")
    folder.symlink_to(folder.parent / "snapshot")


# --- names that are no files ----------------------------------------------------------------------


def _replace_by(folder: Path, name: str) -> Path:
    (folder / name).unlink(missing_ok=True)
    return folder / name


def _register_irregular(name: str, options: Sequence[str] = _WEIGHTS_ONLY) -> None:
    short = name.split(".", maxsplit=1)[0]

    def register(kind: str, make: Callable[[Path], Any], *facts: str) -> None:
        def build(folder: Path) -> None:
            make(_replace_by(folder, name))

        build.__name__ = f"{short}_is_{kind}"
        refused(name, *facts, options=options)(build)

    register("fifo", os.mkfifo, "regular file")
    register("dev_zero", lambda path: path.symlink_to("/dev/zero"), "regular file")
    register("folder", lambda path: path.mkdir())
    register("dangling_link", lambda path: path.symlink_to("nowhere"), "No such file")
    register("link_to_itself", lambda path: path.symlink_to(path.name), "symbolic links")


if hasattr(os, "mkfifo"):
    _register_irregular(RANK)
    _register_irregular(PARAMS)
    _register_irregular(TOKENIZER, options=())


# --- the folder -----------------------------------------------------------------------------------


@refused(PARAMS, "No such file")
def params_missing(folder: Path) -> None:
    (folder / PARAMS).unlink()


_GOOD_PARAMS = params_json(TINY).encode()


def _params(**said: object) -> bytes:
    return params_json(TINY, overrides=said).encode()


@many(
    PARAMS,
    {
        "html": (_PAGES["doctype"], "HTML"),
        "lfs-pointer": (_POINTER, "Git LFS"),
        "empty": (b"", "empty"),
        "blank": (b" \n", "empty"),
        "cut": (_GOOD_PARAMS[:-10], "JSON"),
        "not-json": (b"dim: 8", "JSON"),
        "not-utf-8": (b"\xff\xfe{\0}\0", "JSON"),
        "list": (b"[8]", "JSON object"),
        "deep": (b"[" * 100_000, "JSON"),
        "key-twice": (_GOOD_PARAMS.replace(b"{", b'{"dim": 9, ', 1), "twice"),
        "long-integer": (_GOOD_PARAMS.replace(b"8", b"8" * 5000, 1), PARAMS),
        "nan": (_GOOD_PARAMS.replace(b"1e-05", b"NaN"), "NaN"),
        "infinite": (_GOOD_PARAMS.replace(b"1e-05", b"1e999"), "norm_eps"),
        "no-dim": (b'{"n_layers": 1}', "dim"),
        "dim-text": (_params(dim="8"), "dim"),
        "dim-true": (_params(dim=True), "dim"),
        "dim-float": (_params(dim=8.0), "dim"),
        "dim-zero": (_params(dim=0), "dim"),
        "dim-negative": (_params(dim=-8), "dim"),
        "dim-null": (_params(dim=None), "dim"),
        "n-kv-heads-zero": (_params(n_kv_heads=0), "n_kv_heads"),
        "n-kv-heads-uneven": (_params(n_heads=4, n_kv_heads=3), "n_kv_heads", "3", "4"),
        "odd-head": (_params(n_heads=8), "8"),
        "one-head-of-2048": (_params(dim=2048, n_heads=1), "2048", "1024"),
        "vocab": (_params(vocab_size=301), "vocab_size", "301", "300"),
        "width": (_params(multiple_of=32), "32", "16"),
        "multiplier": (_params(ffn_dim_multiplier=9.5), "9.5", "16"),
        "multiplier-huge": (_params(ffn_dim_multiplier=1e308), "ffn_dim_multiplier"),
        "multiplier-infinite-product": (_params(dim=1 << 24, ffn_dim_multiplier=1.7e308), PARAMS),
        "llama-3": (_params(use_scaled_rope=True), "use_scaled_rope"),
        "mistral": (_params(sliding_window=4096), "sliding_window", "4096", "Mistral"),
        "rope-scaling": (_params(rope_scaling={"factor": 4}), "rope_scaling", "factor"),
        "too-large": (b" " * (1 << 20) + b"{}", "bytes"),
    },
)  # fmt: skip
def params_refused(folder: Path, content: bytes) -> None:
    (folder / PARAMS).write_bytes(content)


@many(
    RANK,
    {
        "dim": ({"dim": 16, "n_heads": 4, "multiple_of": 16, "ffn_dim_multiplier": 0.4}, "shape", "(300, 8)", "(300, 16)"),
        "n-layers": ({"n_layers": 2}, "layers.1.attention.wq.weight", "missing"),
        "n-layers-16-million": ({"n_layers": 1 << 24}, "layers.1.attention.wq.weight", "missing"),
        "n-kv-heads": ({"n_kv_heads": 1}, "layers.0.attention.wk.weight", "(8, 8)", "(4, 8)"),
        "n-heads": ({"n_heads": 4}, "rope.freqs", "(2,)", "(1,)"),
    },
    bomb=True,
)  # fmt: skip
def params_contradict_the_rank(folder: Path, said: dict[str, object]) -> None:
    (folder / PARAMS).write_bytes(_params(**said))


def _two_ranks(folder: Path, n_ranks: int = 2) -> None:
    save_checkpoint(folder, TINY, STATE, n_ranks=n_ranks, tokenizer=False)


@accepted()
def two_ranks(folder: Path) -> None:
    _two_ranks(folder)


_FOUR = Shape(dim=16, n_layers=1, n_heads=4, n_kv_heads=4, hidden=16, vocab=300)


def _four_ranks(folder: Path) -> None:
    save_checkpoint(folder, _FOUR, n_ranks=4, tokenizer=False)


@refused("", "consolidated.01.pth", "missing")
def rank_missing_in_the_middle(folder: Path) -> None:
    _four_ranks(folder)
    (folder / SECOND).unlink()


@refused("", "consolidated.00.pth", "missing")
def rank_missing_at_the_front(folder: Path) -> None:
    _four_ranks(folder)
    (folder / RANK).unlink()


@refused(RANK, "4", "3 were found")
def rank_missing_at_the_end(folder: Path) -> None:
    _four_ranks(folder)
    (folder / "consolidated.03.pth").unlink()


@refused(RANK, "1 rank,", "2 were found")
def rank_too_many(folder: Path) -> None:
    shutil.copy(folder / RANK, folder / SECOND)


@refused("", "9", "8")
def nine_ranks(folder: Path) -> None:
    for number in range(1, 9):
        shutil.copy(folder / RANK, folder / f"consolidated.{number:02d}.pth")


@refused(SECOND, "same", RANK)
def rank_copied_over_another(folder: Path) -> None:
    _two_ranks(folder)
    shutil.copy(folder / RANK, folder / SECOND)


@refused(SECOND, "same", RANK)
def rank_copied_and_saved_anew(folder: Path) -> None:
    torch.save(split_ranks(STATE, 2)[0], folder / RANK)
    torch.save(split_ranks(STATE, 2)[0], folder / SECOND, pickle_protocol=4)


@refused(SECOND, "same", RANK)
def rank_linked_to_another_without_crcs(folder: Path) -> None:
    members = rank_file(split_ranks(STATE, 2)[0]).members()
    for member in members:
        member.local["crc"] = member.central["crc"] = 0
    put(folder, members)
    (folder / SECOND).symlink_to(RANK)


@accepted()
def rank_names_in_other_digits(folder: Path) -> None:
    """Digits of another script are no rank's number."""
    shutil.copy(folder / RANK, folder / "consolidated.\u0660\u0660.pth")


@refused(SECOND, "truncated")
def second_rank_truncated(folder: Path) -> None:
    _two_ranks(folder)
    edit(folder / SECOND, lambda raw: raw.__delitem__(slice(3000, None)))


@refused(SECOND, "data/0", "CRC-32")
def second_rank_bit_flipped(folder: Path) -> None:
    _two_ranks(folder)
    at = zip_offset(folder / SECOND, "data/0")

    def change(raw: bytearray) -> None:
        raw[at] ^= 0x80

    edit(folder / SECOND, change)


@refused(SECOND, "CRC-32")
def second_rank_unused_copy_bit_flipped(folder: Path) -> None:
    """The last rank's rope.freqs, which nothing is made of."""
    _two_ranks(folder)
    at = zip_offset(folder / SECOND, f"data/{N_RECORDS}")

    def change(raw: bytearray) -> None:
        raw[at] ^= 0x80

    edit(folder / SECOND, change)


@refused(SECOND, NORM, RANK, "element 3")
def norm_differs_between_ranks(folder: Path) -> None:
    second = split_ranks(STATE, 2)[1]
    second[NORM][3] = -second[NORM][3]
    torch.save(split_ranks(STATE, 2)[0], folder / RANK)
    torch.save(second, folder / SECOND)


@refused(SECOND, QUERY, "missing")
def second_rank_lacks_a_tensor(folder: Path) -> None:
    first, second = split_ranks(STATE, 2)
    del second[QUERY]
    torch.save(first, folder / RANK)
    torch.save(second, folder / SECOND)


@refused(SECOND, QUERY, "(8, 8)", "(4, 8)")
def second_rank_is_not_split(folder: Path) -> None:
    first, second = split_ranks(STATE, 2)
    second[QUERY] = STATE[QUERY].clone()
    torch.save(first, folder / RANK)
    torch.save(second, folder / SECOND)


@refused("", "tokenizer.model", "--skip_tokenizer", options=())
def no_tokenizer(folder: Path) -> None:
    """The place where it could be is named, and what to do."""


@refused(TOKENIZER, "301", "300", options=())
def tokenizer_of_another_model(folder: Path) -> None:
    (folder / TOKENIZER).write_bytes(tokenizer_model(301))


@many(
    TOKENIZER,
    {
        "html": (_PAGES["doctype"], "HTML"),
        "lfs-pointer": (_POINTER, "Git LFS"),
        "empty": (b"", "empty"),
        "cut": (tokenizer_model(300)[:1000],),
        "rank": (write_zip(rank_file().members()), "zip"),
        "zeros": (bytes(5000),),
        "huge": (b"\n" * ((8 << 20) + 1), "larger"),
    },
    options=(),
)
def tokenizer_refused(folder: Path, content: bytes) -> None:
    (folder / TOKENIZER).write_bytes(content)


def _cast_state(value: float, dtype: torch.dtype) -> State:
    state = {name: tensor.to(dtype) for name, tensor in STATE.items()}
    state[QUERY] = state[QUERY].clone()
    state[QUERY][2, 3] = value
    return state


_HF_QUERY = "model.layers.0.self_attn.q_proj.weight"
for _name, _value, _dtype, _to, *_facts in (
    ("cast_bf16_to_fp16", 99840.0, torch.bfloat16, "float16", "1 value", "9.984e+04", "65504"),
    ("cast_fp32_to_fp16", 65520.0, torch.float32, "float16", "1 value", "65504"),
    ("cast_fp32_to_bf16", 3.4e38, torch.float32, "bfloat16", "1 value", "3.4e+38"),
):

    def _overflow(folder: Path, value: float = _value, dtype: torch.dtype = _dtype) -> None:
        torch.save(_cast_state(value, dtype), folder / RANK)

    _overflow.__name__ = _name
    refused("", _HF_QUERY, *_facts, options=("--skip_tokenizer", "--dtype", _to))(_overflow)

_LOST = f"1 value in 1 tensor too small for the new dtype became zero (first in {_HF_QUERY})"
_KEPT = f"1 value in 1 tensor infinite or NaN, kept as stored (first in {_HF_QUERY})"
# The largest numbers that do not become infinite, and the smallest, which become zero with a note.
for _name, _value, _dtype, _to, *_facts in (
    ("cast_bf16_to_fp16_fits", 65280.0, torch.bfloat16, torch.float16),
    ("cast_fp32_to_fp16_fits", 65519.996, torch.float32, torch.float16),
    ("cast_fp32_to_bf16_fits", 3.396e38, torch.float32, torch.bfloat16),
    ("cast_to_fp16_becomes_zero", 2e-8, torch.bfloat16, torch.float16, _LOST),
    ("cast_to_fp16_stays_above_zero", 6e-8, torch.bfloat16, torch.float16),
    ("cast_of_infinity", float("inf"), torch.bfloat16, torch.float16, _KEPT),
):

    def _cast(
        folder: Path, value: float = _value, dtype: torch.dtype = _dtype, to: torch.dtype = _to
    ) -> tuple[State, Shape]:
        state = _cast_state(value, dtype)
        torch.save(state, folder / RANK)
        return {name: tensor.to(to) for name, tensor in state.items()}, TINY

    _cast.__name__ = _name
    _wanted = str(_to).removeprefix("torch.")
    accepted(*_facts, options=("--skip_tokenizer", "--dtype", _wanted))(_cast)


# --- the output -----------------------------------------------------------------------------------


def _output_case(name: str, output: str, *facts: str, make: Build | None = None) -> None:
    def build(folder: Path) -> None:
        if make is not None:
            make(folder)

    build.__name__ = name
    refused("", *facts, options=("--skip_tokenizer", "--output_dir", output))(build)


_output_case("output_is_the_input", "{input}", "input folder")
_output_case("output_below_a_file", "{input}/params.json/out", "out")
_output_case("output_is_a_file", "{input}/params.json", "params.json")
_output_case("output_is_not_empty", "{input}/full", "full", "kept.txt", "--overwrite", make=lambda f: (
    (f / "full").mkdir(), (f / "full" / "kept.txt").write_text("mine")))  # fmt: skip
if sys.platform == "linux":
    _output_case("output_in_a_read_only_place", "/proc/codellama-convert/out", "/proc/codellama")


def write_corpus(folder: Path) -> None:
    """Write every case into a folder of its own, with what is expected of it."""
    for case in CASES.values():
        place = folder / case.name / "input"
        case.write(place)
        expectation = {"accepted": case.accepted, "names": case.names, "facts": case.facts}
        (place.parent / "expected.json").write_text(json.dumps(expectation) + "\n")


if __name__ == "__main__":
    write_corpus(Path(sys.argv[1]))
