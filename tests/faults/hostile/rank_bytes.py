"""Own pickles and whole ranks spelled byte by byte, so that they can lie in any place."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.faults.hostile.zip_bytes import Member, write_zip
from tests.witness.checkpoints import Shape, random_model

RANK = "consolidated.00.pth"
SECOND = "consolidated.01.pth"
PARAMS = "params.json"
TOKENIZER = "tokenizer.model"
# Two heads, so that the reordering of rows is no identity; an embedding of more than 4 KiB.
TINY = Shape(dim=8, n_layers=1, n_heads=2, n_kv_heads=2, hidden=16, vocab=300)
STATE = random_model(TINY, seed=5)
EMBEDDING, QUERY, NORM = "tok_embeddings.weight", "layers.0.attention.wq.weight", "norm.weight"
N_RECORDS = len(STATE)  # the rotary buffer's record, where there is one, comes behind them


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


def put_many(folder: Path, n_entries: int) -> None:
    """Write rank 0 as an archive of many empty entries."""
    members = [Member(f"a/{number}", b"") for number in range(n_entries)]
    put(folder, members)


def declare(folder: Path, name: str, **said: Any) -> None:
    rank = rank_file()
    for attribute, value in said.items():
        setattr(rank[name], attribute, value)
    put(folder, rank.members())


def raw_tensor(shape: bytes, strides: bytes, offset: bytes = b"K\0") -> bytes:
    return p_call(
        p_global("torch._utils", "_rebuild_tensor_v2"),
        p_storage("BFloat16Storage", "1", 64),
        offset,
        shape,
        strides,
        P_FALSE,
        P_ORDERED_DICT,
    )


P_8_8 = p_tuple(p_int(8), p_int(8))
P_8_1 = p_tuple(p_int(8), p_int(1))
