"""Own the checkpoints of Llama 3 that tests read: how its ranks are split, tied and repeated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from tests.witness.checkpoints import Shape, State, expected_state_dict, random_model, split_ranks
from tests.witness.llama3 import TINY, spelled
from tests.witness.vocabularies import write_model

Tied = Literal["view", "copy"]

# Heads of 64 and of 128 elements, as in 1B and in all others; n_kv_heads squared is not n_heads.
HEADS_OF_64 = Shape(dim=256, n_layers=2, n_heads=4, n_kv_heads=1, hidden=352, vocab=320)
HEADS_OF_128 = Shape(dim=1024, n_layers=2, n_heads=8, n_kv_heads=2, hidden=704, vocab=320)
# 272 tokens and 256 special ones.
WITH_TOKENS = Shape(dim=256, n_layers=2, n_heads=4, n_kv_heads=1, hidden=352, vocab=528)
SIXTEEN = Shape(dim=1024, n_layers=2, n_heads=16, n_kv_heads=8, hidden=704, vocab=320)

# The released sizes: meta-llama/llama-models models/sku_list.py.
LLAMA_3_1B = Shape(2048, 16, 32, 8, 8192, 128256)
LLAMA_3_8B = Shape(4096, 32, 32, 8, 14336, 128256)
LLAMA_3_70B = Shape(8192, 80, 64, 8, 28672, 128256)
LLAMA_3_405B = Shape(16384, 126, 128, 8, 53248, 128256)

EMBEDDING, HEAD = "tok_embeddings.weight", "output.weight"


def llama_3_ranks(state: Mapping[str, torch.Tensor], n_ranks: int, shape: Shape) -> list[State]:
    """Split a model as Llama 3's ranks are: the embedding by its rows, and heads never apart.

    Where there are more ranks than key and value heads, neighbouring ranks have the same ones.
    """
    ranks = split_ranks(with_repeated_heads(state, n_ranks, shape), n_ranks)
    for rank, part in zip(ranks, state[EMBEDDING].chunk(n_ranks, 0), strict=True):
        rank[EMBEDDING] = part.clone()
    return ranks


def with_repeated_heads(
    state: Mapping[str, torch.Tensor], n_ranks: int, shape: Shape
) -> dict[str, torch.Tensor]:
    """Repeat key and value heads, 0 0 1 1 and so on, until each rank has one."""
    n_copies = max(1, n_ranks // shape.n_kv_heads)
    repeated = dict(state)
    for name in state:
        if name.endswith(("wk.weight", "wv.weight")):
            heads = state[name].view(shape.n_kv_heads, shape.head_dim, shape.dim)
            repeated[name] = heads.repeat_interleave(n_copies, 0).reshape(-1, shape.dim)
    return repeated


def save_llama_3(
    folder: Path,
    shape: Shape,
    state: Mapping[str, torch.Tensor] | None = None,
    n_ranks: int = 1,
    *,
    tied: Tied | None = None,
    scaled: bool = True,
    params: Mapping[str, object] | None = None,
) -> Path:
    """Write a checkpoint of Llama 3: its ranks and params.json, without a tokenizer.

    Args:
        folder: Made if missing.
        shape: The model's sizes.
        state: The unsplit model; None is `random_model(shape)`.
        n_ranks: Files to split it over.
        tied: How the head is the embedding: another name of one storage, as in 1B and 3B, or the
            same bits in a storage of its own; None for a head of its own.
        scaled: Whether the rotary frequencies are, as from 3.1 on.
        params: Overrides of params.json; None takes a key out.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = random_model(shape) if state is None else state
    for index, rank in enumerate(llama_3_ranks(state, n_ranks, shape)):
        if tied is not None:
            rank[HEAD] = rank[EMBEDDING] if tied == "view" else rank[EMBEDDING].clone()
        torch.save(rank, folder / f"consolidated.{index:02d}.pth")
    scaling = {"use_scaled_rope": True} if scaled else {}
    (folder / "params.json").write_text(
        llama_3_params(shape, n_ranks, scaling | dict(params or {}))
    )
    return folder


def save_whole_llama_3(folder: Path, shape: Shape = WITH_TOKENS, *, scaled: bool = True) -> Path:
    """Write a checkpoint of Llama 3 with a small tokenizer.model of its kind."""
    save_llama_3(folder, shape, scaled=scaled)
    write_model(folder, spelled(TINY))
    return folder


def llama_3_params(
    shape: Shape, n_ranks: int, overrides: Mapping[str, object] | None = None
) -> str:
    """Write params.json; where heads are repeated it says how many there are with the copies."""
    params: dict[str, object] = {
        "dim": shape.dim,
        "n_layers": shape.n_layers,
        "n_heads": shape.n_heads,
        "n_kv_heads": max(shape.n_kv_heads, n_ranks),
        "vocab_size": shape.vocab,
        "ffn_dim_multiplier": shape.hidden / int(8 * shape.dim / 3),
        "multiple_of": shape.hidden & -shape.hidden,
        "norm_eps": 1e-05,
        "rope_theta": 500000.0,
        **(overrides or {}),
    }
    return json.dumps({key: value for key, value in params.items() if value is not None})


def expected_of_llama_3(
    state: Mapping[str, torch.Tensor], shape: Shape, *, tied: bool = False
) -> State:
    """Name and order what Hugging Face should get; a tied head has no tensor."""
    expected = expected_state_dict(state, shape)
    return {name: t for name, t in expected.items() if not (tied and name == "lm_head.weight")}


def scaled_frequencies(head_dim: int, theta: float, factor: float) -> torch.Tensor:
    """Compute Llama 3.1's rotary frequencies: long waves slowed, short ones kept, a ramp between.

    Source:
        meta-llama/llama-models models/llama3/model.py, `apply_scaling`; its factor is always 8.
    """
    n_pairs = head_dim // 2
    kept = 1.0 / theta ** (torch.arange(n_pairs, dtype=torch.float32) * 2 / head_dim)
    scaled = []
    for frequency in kept.tolist():
        waves_in_context = 8192 * frequency / (2 * torch.pi)
        share = min(1.0, max(0.0, (waves_in_context - 1) / (4 - 1)))
        scaled.append((1 - share) * frequency / factor + share * frequency)
    return torch.tensor(scaled)
