"""Random checkpoints: what a model is, how it lies in its files, and what of them is damaged."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from tests.checkpoints import (
    ABSENT,
    Shape,
    Style,
    params_json,
    random_model,
    rope_freqs,
    rope_names,
    split_ranks,
)
from tests.differential.bits import BFLOAT16, FLOAT16, FLOAT32, Bits, Kind
from tests.differential.tokenizers import FEWEST_PIECES, Tokenizer, draw_tokenizer
from tests.hostile import Declared, Member, RankFile, write_zip, zip64_extra

# What a folder's name says: the family, and what the model was tuned for.
FOLDERS: dict[str, tuple[str | None, str | None]] = {
    "in": (None, None),
    "my-chat": (None, "chat"),
    "CodeLlama-7b": ("Code Llama", "base"),
    "CodeLlama-7b-Python": ("Code Llama", "python"),
    "CodeLlama-13b-Instruct": ("Code Llama", "instruct"),
    "llama-2-7b": ("Llama 2", "base"),
    "llama-2-13b-chat": ("Llama 2", "chat"),
    "7B": ("Llama 1", "base"),
}
_TORCH_KINDS = {torch.bfloat16: BFLOAT16, torch.float16: FLOAT16, torch.float32: FLOAT32}
_MOST_COLUMNS = 64  # a model of a few kB


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
class Checkpoint:
    """A checkpoint, whole.

    Attributes:
        folder_name: Of its folder.
        shape: The model's sizes.
        kind: Its element type.
        ranks: In order.
        twins: Ranks of the same structure, size and norms that hold another model.
        params: params.json.
        rope: Names of the rotary buffers.
        tokenizer: tokenizer.model; None where the checkpoint is too small for one.
        words: What was drawn, for the story.
    """

    folder_name: str
    shape: Shape
    kind: Kind
    ranks: tuple[Rank, ...]
    twins: tuple[Rank, ...]
    params: bytes
    rope: tuple[str, ...]
    tokenizer: Tokenizer | None
    words: str


def draw_checkpoint(rng: random.Random) -> Checkpoint:
    """Draw a checkpoint of a few kB."""
    shape, n_ranks = _draw_shape(rng)
    dtype = rng.choice(tuple(_TORCH_KINDS))
    kind = _TORCH_KINDS[dtype]
    odd = rng.random() < 0.3
    state = random_model(shape, dtype, rng.getrandbits(32), special_values=odd)
    other = random_model(shape, dtype, rng.getrandbits(32), special_values=odd)
    other |= {name: tensor for name, tensor in state.items() if tensor.dim() == 1}
    tie_seed = rng.getrandbits(32)
    for one in (state, other):
        _tie(one, random.Random(tie_seed), n_ranks)
    rope = rope_names(shape, rng.choice(("top", "inner", None)))
    freqs = rope_freqs(shape, dtype)
    style = _draw_style(rng, n_ranks)
    layout_seed = rng.getrandbits(32)
    families = [
        tuple(
            _write_rank(number, dict(part) | dict.fromkeys(rope, freqs), kind, style, layout_seed)
            for number, part in enumerate(split_ranks(one, n_ranks))
        )
        for one in (state, other)
    ]
    tokenizer = draw_tokenizer(rng, shape.vocab) if shape.vocab >= FEWEST_PIECES else None
    return Checkpoint(
        folder_name=rng.choice(tuple(FOLDERS)),
        shape=shape,
        kind=kind,
        ranks=families[0],
        twins=families[1],
        params=draw_params(rng, shape),
        rope=tuple(rope),
        tokenizer=tokenizer,
        words=f"{n_ranks} x {kind.name}, {shape}, {style}" + (", odd values" if odd else ""),
    )


def _draw_shape(rng: random.Random) -> tuple[Shape, int]:
    while True:
        n_ranks = rng.choice((1, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8))
        n_kv_heads = n_ranks * rng.choice((1, 1, 2))
        n_heads = n_kv_heads * rng.choice((1, 1, 2, 3))
        dim = n_heads * rng.choice((2, 4, 6, 8))
        if dim <= _MOST_COLUMNS:
            break
    vocab = n_ranks * rng.randint(1, 12)
    if rng.random() < 0.4:
        vocab = n_ranks * (FEWEST_PIECES // n_ranks + rng.randint(1, 4))
    hidden = n_ranks * rng.randint(1, 12)
    return Shape(dim, rng.choice((1, 1, 2)), n_heads, n_kv_heads, hidden, vocab), n_ranks


def _tie(state: dict[str, torch.Tensor], rng: random.Random, n_ranks: int) -> None:
    """Make some tensors equal, so that they may be one view, and put rare values into others."""
    if rng.random() < 0.2:
        state["layers.0.ffn_norm.weight"] = state["layers.0.attention_norm.weight"]
    if n_ranks == 1 and rng.random() < 0.2:
        state["output.weight"] = state["tok_embeddings.weight"]
    for name in rng.sample(sorted(state), 3):
        if state[name].dim() == 2 and rng.random() < 0.5:
            values = state[name].clone()
            rare = rng.choice((float("inf"), float("-inf"), float("nan"), 1e-30, -0.0, 3e38))
            rare = rare if rare != 3e38 or rng.random() < 0.1 else 1e-7
            values[rng.randrange(len(values)), 0] = rare
            state[name] = values


def draw_params(rng: random.Random, shape: Shape) -> bytes:
    """Draw params.json of a model of these sizes."""
    style: Style = rng.choice(("code_llama", "llama2", "llama1"))
    overrides: dict[str, object] = {}
    if rng.random() < 0.5:
        overrides["rope_theta"] = rng.choice((ABSENT, 10000.0, 1e6, 500000, 12345.5))
    if rng.random() < 0.3:
        overrides["vocab_size"] = rng.choice((ABSENT, -1, shape.vocab))
    if rng.random() < 0.3:
        overrides["norm_eps"] = rng.choice((1e-6, 1e-5, 0.5))
    if rng.random() < 0.2:
        overrides["n_kv_heads"] = shape.n_kv_heads
    if rng.random() < 0.2:
        overrides[rng.choice(("max_seq_len", "max_batch_size", "made_by"))] = 3
    return params_json(shape, style, overrides).encode()


# --- how a rank's file is written -----------------------------------------------------------------


@dataclass(frozen=True)
class _Style:
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


def _draw_style(rng: random.Random, n_ranks: int) -> _Style:
    storages: Any = rng.choice(("own", "flat", "flat", "some", "some"))
    if n_ranks == 1 and rng.random() < 0.1:
        storages = "overlapping"
    summed: Any = rng.choices(("all", "none", "not the last"), (6, 3, 1))[0]
    return _Style(
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


def _write_rank(
    number: int, tensors: dict[str, torch.Tensor], kind: Kind, style: _Style, seed: int
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


def _place(state: Mapping[str, Bits], style: _Style, rng: random.Random) -> list[_Storage]:
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
    file: RankFile, style: _Style, rng: random.Random, *, summed: bool
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


def _dress(member: Member, crc: int, position: int, style: _Style) -> None:
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


# --- what lies on the disk ------------------------------------------------------------------------


@dataclass
class OnDisk:
    """A checkpoint as its folder holds it now.

    Attributes:
        checkpoint: As it was written.
        ranks: What each file stems from: the checkpoint's own rank, or its twin.
        raw: What each file holds, damage included.
        params: What params.json holds.
        tokenizer: What tokenizer.model holds.
    """

    checkpoint: Checkpoint
    ranks: list[Rank]
    raw: list[bytes]
    params: bytes
    tokenizer: Tokenizer | None

    @classmethod
    def whole(cls, checkpoint: Checkpoint) -> OnDisk:
        """Describe what was just written."""
        raw = [rank.raw for rank in checkpoint.ranks]
        return cls(checkpoint, list(checkpoint.ranks), raw, checkpoint.params, checkpoint.tokenizer)

    @classmethod
    def of_twin(cls, checkpoint: Checkpoint) -> OnDisk:
        """Describe the other model of the same sizes."""
        twins = checkpoint.twins
        raw = [twin.raw for twin in twins]
        return cls(checkpoint, list(twins), raw, checkpoint.params, checkpoint.tokenizer)

    def copy(self) -> OnDisk:
        """Copy it as it is now."""
        return replace(self, ranks=list(self.ranks), raw=list(self.raw))

    def is_whole(self) -> bool:
        """Whether nothing was damaged or replaced."""
        return dict(self.files()) == dict(OnDisk.whole(self.checkpoint).files())

    def files(self) -> Iterator[tuple[str, bytes]]:
        """List what the folder must hold."""
        yield from zip((rank.name for rank in self.ranks), self.raw, strict=True)
        yield "params.json", self.params
        if self.tokenizer is not None:
            yield "tokenizer.model", self.tokenizer.raw

    def tensor(self, number: int, name: str) -> Bits:
        """Give a rank's tensor as a right conversion has it.

        Where there are sums, damage must be refused, so that only the undamaged bytes are right;
        where there are none, what lies there now is the model.
        """
        rank = self.ranks[number]
        raw = rank.raw if rank.summed else self.raw[number]
        return rank.read(raw, name, self.checkpoint.kind)

    def parsed_params(self) -> dict[str, Any] | None:
        """Read params.json; None where it is damaged."""
        try:
            params: dict[str, Any] = json.loads(self.params)
        except ValueError:
            return None
        return params
