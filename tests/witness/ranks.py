"""Own the ranks that must come out of a model, saved by torch; know nothing of the package."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.witness.checkpoints import SPLIT_DIM, Shape, State, rope_freqs, same_bits, split_ranks

# As a rank of Llama 2 70B has them: FACTS, datascience.stackexchange.com 126942.
_TOP = ("tok_embeddings.weight", "norm.weight", "output.weight", "rope.freqs")
_IN_LAYERS = (
    "attention.wq", "attention.wk", "attention.wv", "attention.wo", "feed_forward.w1",
    "feed_forward.w2", "feed_forward.w3", "attention_norm", "ffn_norm",
)  # fmt: skip


def in_metas_order(rank: State) -> State:
    """Put a rank's tensors into the order of Meta's files; none may be left over."""
    n_layers = sum(name.endswith("attention_norm.weight") for name in rank)
    names = [*_TOP, *(f"layers.{n}.{one}.weight" for n in range(n_layers) for one in _IN_LAYERS)]
    ordered = {name: rank[name] for name in names if name in rank}
    assert ordered.keys() == rank.keys()
    return ordered


def expected_ranks(
    state: State, shape: Shape, n_ranks: int, *, theta: float, frequencies: bool = True
) -> list[State]:
    """Split a model, and add the rotary frequencies in the dtype of its weights."""
    buffer = {"rope.freqs": rope_freqs(shape, state["norm.weight"].dtype, theta)}
    return [
        in_metas_order(rank | (buffer if frequencies else {}))
        for rank in split_ranks(state, n_ranks)
    ]


def save_ranks(folder: Path, ranks: Sequence[State]) -> Path:
    """Save ranks as torch does."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, rank in enumerate(ranks):
        torch.save(rank, folder / f"consolidated.{number:02d}.pth")
    return folder


def rank_differences(folder: Path, expected: Sequence[State]) -> list[str]:
    """List where the ranks of a folder are not those expected: names, order, shapes, or a bit."""
    paths = sorted(folder.glob("*.pth"))
    names = [f"consolidated.{number:02d}.pth" for number in range(len(expected))]
    if [path.name for path in paths] != names:
        return [f"{[path.name for path in paths]} and not {names}"]
    found = []
    for path, rank in zip(paths, expected, strict=True):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            found.append(f"{path.name}: {damaged} is not what its sum says")
        loaded = torch.load(path, weights_only=True, mmap=True)
        if list(loaded) != list(rank):
            found.append(
                f"{path.name}: names {sorted(loaded.keys() ^ rank.keys())}, or their order"
            )
        found += [
            f"{path.name}: {name}" for name in loaded.keys() & rank.keys()
            if not (loaded[name].is_contiguous() and same_bits(loaded[name], rank[name]))
        ]  # fmt: skip
    return found


def join_ranks(ranks: Sequence[State]) -> State:
    """Put ranks side by side again, each tensor on the dimension that it was split on."""
    joined = {}
    for name, first in ranks[0].items():
        split_dim = SPLIT_DIM.get(name.split(".")[-2])
        parts = [rank[name] for rank in ranks]
        joined[name] = first if split_dim is None else torch.cat(parts, split_dim)
    return joined
