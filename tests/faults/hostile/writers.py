"""Files of other writers, and odd ones of torch, that torch reads right."""

from __future__ import annotations

import io
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from tests.faults.hostile.case import accepted, refused
from tests.faults.hostile.rank_bytes import (
    P_NONE,
    P_ORDERED_DICT,
    RANK,
    STATE,
    TINY,
    TOKENIZER,
    p_dict,
    p_pickle,
    p_str,
    put,
    put_pickle,
    rank_file,
)
from tests.faults.hostile.zip_bytes import rezip, stream_member
from tests.witness.checkpoints import Shape, State, random_model, save_checkpoint, tokenizer_model


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
