"""Mistakes that a writer of ranks can make, planted by torch itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.witness.checkpoints import Shape, half_split_rows

# Every size differs, so that no mistake about one is hidden by another; heads are of 8 rows.
SHAPE = Shape(dim=64, n_layers=2, n_heads=8, n_kv_heads=4, hidden=96, vocab=320)
N_RANKS = 4


FIRST, LAST = "consolidated.00.pth", "consolidated.03.pth"


WQ, WK = "layers.1.attention.wq.weight", "layers.1.attention.wk.weight"


Ranks = list[dict[str, Any]]


def save(output: Path, ranks: Ranks) -> None:
    for number, rank in enumerate(ranks):
        torch.save(rank, output / f"consolidated.{number:02d}.pth")


def load(output: Path) -> Ranks:
    return [
        torch.load(output / f"consolidated.{number:02d}.pth", weights_only=True)
        for number in range(N_RANKS)
    ]


def swap_two(ranks: Ranks) -> None:
    ranks[0], ranks[3] = ranks[3], ranks[0]


def reorder_keys_with_n_heads(ranks: Ranks) -> None:
    whole = torch.cat([rank[WK] for rank in ranks], 0)
    hugging_face = whole[half_split_rows(4, 8)]
    wrong = torch.empty_like(whole)
    wrong[half_split_rows(8, 4)] = hugging_face
    for rank, part in zip(ranks, wrong.chunk(N_RANKS, 0), strict=True):
        rank[WK] = part.clone()


def leave_rows_in_halves(ranks: Ranks) -> None:
    for rank in ranks:
        rank[WQ] = rank[WQ][half_split_rows(2, 8)].clone()


def split_embedding_by_rows(ranks: Ranks) -> None:
    whole = torch.cat([rank["tok_embeddings.weight"] for rank in ranks], 1)
    for rank, part in zip(ranks, whole.chunk(N_RANKS, 0), strict=True):
        rank["tok_embeddings.weight"] = part.clone()


def scatter_columns(ranks: Ranks) -> None:
    """Give each rank every fourth column instead of a quarter of them: the shapes stay right."""
    whole = torch.cat([rank["layers.0.attention.wo.weight"] for rank in ranks], 1)
    for number, rank in enumerate(ranks):
        rank["layers.0.attention.wo.weight"] = whole[:, number::N_RANKS].clone()


def change_one_norm(ranks: Ranks) -> None:
    ranks[3]["layers.1.ffn_norm.weight"][63] *= 2


def move_frequencies(ranks: Ranks) -> None:
    """The base that the one public script takes for every model."""
    exponents = torch.arange(0, 8, 2).float() / 8
    ranks[3]["rope.freqs"] = (1.0 / (10000.0**exponents)).to(torch.bfloat16)


def swap_gate_and_up(ranks: Ranks) -> None:
    gate, up = "layers.0.feed_forward.w1.weight", "layers.0.feed_forward.w3.weight"
    ranks[2][gate], ranks[2][up] = ranks[2][up], ranks[2][gate]


def put(number: int, name: str, make: Callable[[Any], Any]) -> Callable[[Ranks], None]:
    def damage(ranks: Ranks) -> None:
        ranks[number][name] = make(ranks[number].get(name))

    return damage


def drop(number: int, name: str) -> Callable[[Ranks], None]:
    return lambda ranks: ranks[number].pop(name)


def negate_last(tensor: torch.Tensor) -> torch.Tensor:
    tensor[-1, -1] = -tensor[-1, -1]
    return tensor
