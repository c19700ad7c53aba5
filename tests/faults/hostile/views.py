"""Views that torch reads right, and so do we."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.faults.hostile.case import Build, accepted
from tests.faults.hostile.rank_bytes import (
    NORM,
    PARAMS,
    QUERY,
    RANK,
    SECOND,
    STATE,
    TINY,
    bits_of,
    put,
    rank_file,
)
from tests.faults.hostile.zip_bytes import put_with_hole
from tests.witness.checkpoints import Shape, State, params_json, random_model, split_ranks


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


GATE = "layers.0.feed_forward.w1.weight"
_DOWN = "layers.0.feed_forward.w2.weight"


for _name, _build in {
    "view-fits-exactly": _as_view(QUERY, (8, 1)),
    "view-at-an-offset": _as_view(QUERY, (8, 1), offset=3, behind=4),
    "view-of-columns": _as_view(QUERY, (11, 1), offset=2, behind=2),
    "view-transposed": _as_view(QUERY, (1, 8)),
    "view-transposed-slice": _as_view(GATE, (1, 19), offset=1),
    "view-every-second-column": _as_view(QUERY, (16, 2)),
    "view-every-second-row": _as_view(QUERY, (2, 16), behind=1),
    "view-vector-stepped": _as_view(NORM, (3,), offset=1, behind=2),
    "view-interleaved": _as_view(QUERY, (8, 9)),  # rows reach over the next ones
    "view-interleaved-gate": _as_view(GATE, (2, 17), offset=1),  # tiles reach over the next ones
    "view-interleaved-rows": _as_view(GATE, (9, 2)),
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
    rank[GATE].strides = (1 << 50, 1)
    rank["layers.0.feed_forward.w2.weight"].strides = (1, 1 << 50)
    put(folder, rank.members())
    (folder / PARAMS).write_text(
        params_json(shape, overrides={"multiple_of": 1, "ffn_dim_multiplier": 0.2})
    )
    return state, shape


@accepted()
def storage_shared_by_several(folder: Path) -> tuple[State, Shape]:
    """Two projections are one, and the norms overlap each other."""
    gate = STATE["layers.0.feed_forward.w1.weight"]
    state = STATE | {"layers.0.feed_forward.w3.weight": gate}
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
        put_with_hole(folder / name, members, last, 2 * n_elements)
    return state, TINY
