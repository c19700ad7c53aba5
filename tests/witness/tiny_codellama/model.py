"""Own the tiny Code Llama's sizes, its tensors' rules and Meta's forward pass; know no training.

Nothing here is shared with `codellama_convert`: names, rank rules and rotary pairs are spelled
again, after Meta's reference code, so that a converted model has an independent witness.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Params:
    """What stands in params.json, in Meta's spelling; `vocab_size` is absent, as in Code Llama's.

    `n_kv_heads` squared is not `n_heads`, and the multiplier matters: both have hidden bugs.
    """

    dim: int = 128
    n_layers: int = 3
    n_heads: int = 8
    n_kv_heads: int = 2
    multiple_of: int = 32
    ffn_dim_multiplier: float = 0.75
    norm_eps: float = 1e-5
    rope_theta: float = 1e6

    @property
    def head_dim(self) -> int:
        """Return the rows of one head."""
        return self.dim // self.n_heads

    @property
    def hidden_dim(self) -> int:
        """Return the rows of w1 and w3 (meta-llama/codellama llama/model.py, `FeedForward`)."""
        hidden = int(self.ffn_dim_multiplier * int(2 * (4 * self.dim) / 3))
        return -(-hidden // self.multiple_of) * self.multiple_of


# One row a tensor of a layer: its shape, and the dimension that is split over ranks.
# Source: fairscale's ColumnParallelLinear (0), RowParallelLinear and ParallelEmbedding (1).
def tensor_rules(params: Params, vocab_size: int) -> dict[str, tuple[tuple[int, ...], int | None]]:
    """Spell every tensor's shape and its split dimension; None means a copy on every rank."""
    dim, hidden, kv_dim = params.dim, params.hidden_dim, params.n_kv_heads * params.head_dim
    rules: dict[str, tuple[tuple[int, ...], int | None]] = {
        "tok_embeddings.weight": ((vocab_size, dim), 1),
    }
    for layer in range(params.n_layers):
        for name, shape, split in (
            ("attention.wq", (dim, dim), 0),
            ("attention.wk", (kv_dim, dim), 0),
            ("attention.wv", (kv_dim, dim), 0),
            ("attention.wo", (dim, dim), 1),
            ("feed_forward.w1", (hidden, dim), 0),
            ("feed_forward.w2", (dim, hidden), 1),
            ("feed_forward.w3", (hidden, dim), 0),
            ("attention_norm", (dim,), None),
            ("ffn_norm", (dim,), None),
        ):
            rules[f"layers.{layer}.{name}.weight"] = (shape, split)
    rules["norm.weight"] = ((dim,), None)
    rules["output.weight"] = ((vocab_size, dim), 0)
    return rules


def initial_weights(
    params: Params, vocab_size: int, seeded: torch.Generator
) -> dict[str, torch.Tensor]:
    """Draw the weights to start from: ones for norms, small normal numbers for the rest."""
    return {
        name: torch.ones(shape)
        if len(shape) == 1
        else torch.randn(shape, generator=seeded) * shape[1] ** -0.5
        for name, (shape, _) in tensor_rules(params, vocab_size).items()
    }


def rotary_frequencies(params: Params) -> torch.Tensor:
    """Return the angle of each pair per position: Meta's `rope.freqs`."""
    evens = torch.arange(0, params.head_dim, 2).float()
    return 1.0 / (params.rope_theta ** (evens / params.head_dim))


def rotate(heads: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs (2i, 2i + 1) of every head by its position's angles, as Meta does.

    Args:
        heads: Shape (batch, heads, positions, head_dim).
        turns: Unit complex numbers, shape (positions, head_dim / 2).

    Returns:
        A tensor like `heads`.
    """
    pairs = torch.view_as_complex(heads.reshape(*heads.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(-2)


def forward(params: Params, weights: Weights, tokens: torch.Tensor) -> torch.Tensor:
    """Run Meta's forward pass.

    Args:
        params: The model's sizes.
        weights: Whole tensors under Meta's names, float32.
        tokens: Token ids, shape (batch, positions).

    Returns:
        Logits, shape (batch, positions, vocabulary).

    Source:
        meta-llama/codellama llama/model.py, `Transformer`.
    """
    angles = torch.outer(torch.arange(tokens.shape[1]).float(), rotary_frequencies(params))
    turns = torch.polar(torch.ones_like(angles), angles)
    hidden = functional.embedding(tokens, weights["tok_embeddings.weight"])
    for layer in range(params.n_layers):
        of_layer = {
            name.removeprefix(f"layers.{layer}.").removesuffix(".weight"): tensor
            for name, tensor in weights.items()
            if name.startswith(f"layers.{layer}.")
        }
        hidden = hidden + attention(
            params, of_layer, rms_norm(params, hidden, of_layer["attention_norm"]), turns
        )
        hidden = hidden + feed_forward(of_layer, rms_norm(params, hidden, of_layer["ffn_norm"]))
    return rms_norm(params, hidden, weights["norm.weight"]) @ weights["output.weight"].T


def rms_norm(params: Params, hidden: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Divide by the root of the mean square, then scale."""
    mean_square = hidden.square().mean(-1, keepdim=True)
    return hidden * torch.rsqrt(mean_square + params.norm_eps) * scale


def attention(
    params: Params, weights: Weights, hidden: torch.Tensor, turns: torch.Tensor
) -> torch.Tensor:
    """Attend causally, several query heads sharing one key and value head."""
    heads = (*hidden.shape[:2], -1, params.head_dim)
    query, key, value = (
        (hidden @ weights[f"attention.{name}"].T).view(heads).transpose(1, 2)
        for name in ("wq", "wk", "wv")
    )
    shared = params.n_heads // params.n_kv_heads
    mixed = functional.scaled_dot_product_attention(
        rotate(query, turns),
        rotate(key, turns).repeat_interleave(shared, 1),
        value.repeat_interleave(shared, 1),
        is_causal=True,
    )
    return mixed.transpose(1, 2).flatten(-2) @ weights["attention.wo"].T


def feed_forward(weights: Weights, hidden: torch.Tensor) -> torch.Tensor:
    """Apply SwiGLU: w1 is the gate, w3 goes up, w2 comes down."""
    gate = functional.silu(hidden @ weights["feed_forward.w1"].T)
    return (gate * (hidden @ weights["feed_forward.w3"].T)) @ weights["feed_forward.w2"].T
