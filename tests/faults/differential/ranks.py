"""How a rank's file is written: tensors in storages, storages in a zip archive, at random."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from tests.faults.differential.bits import Bits, Kind
from tests.faults.hostile.rank_bytes import Declared, RankFile
from tests.faults.hostile.zip_bytes import Member, write_zip, zip64_extra


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a rank's file.

    Attributes:
        offset: Of its first element, in bytes.
        shape: Rows and columns, or the length.
        strides: In elements.
    """

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Rank:
    """A rank's file, whole.

    Attributes:
        name: consolidated.NN.pth.
        raw: Its bytes.
        places: By Meta's name.
        records: First byte and end of each storage.
        summed: Whether it has CRC-32 sums.
    """

    name: str
    raw: bytes
    places: Mapping[str, Place]
    records: Sequence[tuple[int, int]]
    summed: bool

    def read(self, raw: bytes, tensor: str, kind: Kind) -> Bits:
        """Read a tensor out of the file, or of a damaged copy of it."""
        place = self.places[tensor]
        elements: Bits = np.ndarray(
            place.shape,
            np.dtype(kind.unsigned),
            raw,
            place.offset,
            tuple(kind.width * stride for stride in place.strides),
        )
        return elements


@dataclass(frozen=True)
class Style:
    """How the ranks of a checkpoint are written.

    Attributes:
        storages: One each, one for all, some each, or one in which tensors overlap.
        gaps: Whether bytes of no tensor lie between and around tensors.
        steps: Whether some tensors are transposed, or lie with gaps between their rows.
        summed: Which ranks have CRC-32 sums: all, none, or all but the last.
        aligned: Whether data begin at multiples of 64, as torch pads them.
        descriptor: Bytes of the sizes behind the data, or 0 where they stand before.
        wide: Whether sizes are in zip64 fields.
        shuffled: Whether records lie in no order.
        extras: Whether there are entries of folders, comments and the flag of UTF-8 names.
    """

    storages: Literal["own", "flat", "some", "overlapping"]
    gaps: bool
    steps: bool
    summed: Literal["all", "none", "not the last"]
    aligned: bool
    descriptor: Literal[0, 16, 24]
    wide: bool
    shuffled: bool
    extras: bool


def draw_style(rng: random.Random, n_ranks: int) -> Style:
    storages: Any = rng.choice(("own", "flat", "flat", "some", "some"))
    if n_ranks == 1 and rng.random() < 0.1:
        storages = "overlapping"
    summed: Any = rng.choices(("all", "none", "not the last"), (6, 3, 1))[0]
    return Style(
        storages,
        gaps=rng.random() < 0.4,
        steps=rng.random() < 0.4,
        summed=summed,
        aligned=rng.random() < 0.5,
        descriptor=rng.choice((0, 0, 16, 24)),
        wide=rng.random() < 0.3,
        shuffled=rng.random() < 0.3,
        extras=rng.random() < 0.3,
    )


@dataclass
class _Storage:
    """A storage in the making: where its tensors begin, in elements, and its size."""

    starts: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    n_elements: int = 0


def write_rank(
    number: int, tensors: dict[str, torch.Tensor], kind: Kind, style: Style, seed: int
) -> Rank:
    """Write a rank; the same seed lays equal sizes out equally."""
    rng = random.Random(f"{seed} {number}")
    integer = {2: torch.int16, 4: torch.int32}[kind.width]
    state = {
        name: tensor.contiguous().view(integer).numpy().view(kind.unsigned)
        for name, tensor in tensors.items()
    }
    storages = _place(state, style, rng)
    declared, records = [], {}
    for key, storage in zip(rng.sample(range(100), len(storages)), storages, strict=True):
        filler = np.random.default_rng(number).integers(
            0, 1 << (8 * kind.width), storage.n_elements, kind.unsigned
        )
        for name, (start, strides) in storage.starts.items():
            steps = tuple(kind.width * stride for stride in strides)
            view = np.lib.stride_tricks.as_strided(filler[start:], state[name].shape, steps)
            view[...] = state[name]
            declared.append(
                Declared(
                    name, str(key), len(filler), state[name].shape, strides, start, kind.storage
                )
            )
        records[f"data/{key}"] = filler.tobytes()
    order = {name: n for n, name in enumerate(state)}
    declared.sort(key=lambda one: order[one.name])
    summed = style.summed == "all" or (style.summed == "not the last" and number == 0)
    raw, begins = _archive(RankFile(declared, records), style, rng, summed=summed)
    places = {
        one.name: Place(begins[f"data/{one.key}"] + kind.width * one.offset, one.shape, one.strides)
        for one in declared
    }
    spans = [(begins[name], begins[name] + len(content)) for name, content in records.items()]
    return Rank(f"consolidated.{number:02d}.pth", raw, places, spans, summed)


def _place(state: Mapping[str, Bits], style: Style, rng: random.Random) -> list[_Storage]:
    """Choose a storage for each tensor, and where it lies there."""
    names = list(state)
    if rng.random() < 0.5:
        rng.shuffle(names)
    n_storages = {"own": len(names), "some": rng.randint(2, 6)}.get(style.storages, 1)
    storages = [_Storage() for _ in range(n_storages)]
    views: dict[Any, tuple[int, tuple[int, ...]]] = {}
    for turn, name in enumerate(names):
        storage = storages[turn if style.storages == "own" else rng.randrange(n_storages)]
        shape = state[name].shape
        twin = (id(storage), shape, state[name].tobytes())
        shares = rng.random() < 0.7
        if style.storages != "own" and shares and twin in views:
            storage.starts[name] = views[twin]
            continue
        strides = _draw_strides(shape, rng) if style.steps else _row_major(shape)
        reach = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        start = storage.n_elements + (rng.randint(0, 9) if style.gaps else 0)
        if style.storages == "overlapping" and storage.n_elements:
            start = rng.randrange(storage.n_elements)
        storage.starts[name] = views[twin] = (start, strides)
        storage.n_elements = max(storage.n_elements, start + reach)
    for storage in storages:
        storage.n_elements += rng.randint(0, 9) if style.gaps else 0
    return [storage for storage in storages if storage.starts]


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[1], 1) if len(shape) == 2 else (1,)


def _draw_strides(shape: tuple[int, ...], rng: random.Random) -> tuple[int, ...]:
    if len(shape) == 1:
        return (rng.choice((1, 1, 2, 3)),)
    step = rng.choice((1, 1, 2))
    if rng.random() < 0.5:
        return step * shape[1] + rng.randint(0, 3), step
    return step, step * shape[0] + rng.randint(0, 3)


def _archive(
    file: RankFile, style: Style, rng: random.Random, *, summed: bool
) -> tuple[bytes, dict[str, int]]:
    """Write the zip archive, and tell where each entry's data begin."""
    members = file.members()
    if style.shuffled:
        rng.shuffle(members)
    if style.extras:
        members[:0] = [Member(f"{file.root}/", b""), Member(f"{file.root}/data/", b"")]
    begins: dict[str, int] = {}
    position = 0
    for member in members:
        crc = zlib.crc32(member.content) if summed else 0
        _dress(member, crc, position, style)
        extra = member.local.get("extra", b"")
        begin = position + 30 + len(member.name) + len(extra)
        begins[member.name.removeprefix(f"{file.root}/")] = begin
        position = begin + len(member.content) + len(member.descriptor)
    return write_zip(members, end64={} if style.wide else None), begins


def _dress(member: Member, crc: int, position: int, style: Style) -> None:
    """Give an entry its headers, as the style has them."""
    size = len(member.content)
    flags = (0x0800 if style.extras else 0) | (0x0008 if style.descriptor else 0)
    wide = {"packed": 0xFFFFFFFF, "size": 0xFFFFFFFF}
    member.central = {"flags": flags, "crc": crc}
    member.local = {"flags": flags, "crc": crc}
    extra = b""
    if style.wide:
        offset = {"offset": 0xFFFFFFFF, "extra": zip64_extra(size, size, position)}
        member.central |= wide | offset
    if style.extras:
        member.central["comment"] = b"a comment"
    if style.descriptor:
        form = "<4s3I" if style.descriptor == 16 else "<4sI2Q"
        member.descriptor = struct.pack(form, b"PK\x07\x08", crc, size, size)
        member.local |= {"crc": 0, "packed": 0, "size": 0}
    elif style.wide:
        member.local |= wide
        extra = zip64_extra(size, size)
    if style.aligned:
        begin = position + 30 + len(member.name) + len(extra) + 4
        n_padding = -begin % 64
        extra += struct.pack("<2H", 0x4246, n_padding) + b"Z" * n_padding  # "FB", as torch has it
    member.local["extra"] = extra
