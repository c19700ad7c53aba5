"""Own Meta's forward pass, written from the published formula; know nothing of Hugging Face.

Sources: meta-llama/codellama llama/model.py (the module); Su et al. 2021 (rotary positions);
Shazeer 2020 (SwiGLU); Zhang and Sennrich 2019 (RMSNorm); Ainslie et al. 2023 (grouped queries).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tests.witness.checkpoints import Shape


def meta_logits(
    state: Mapping[str, torch.Tensor],
    shape: Shape,
    tokens: torch.Tensor,
    *,
    rope_theta: float = 10000.0,
    norm_eps: float = 1e-5,
    frequencies: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run an unsplit Meta model in float32.

    Args:
        state: Meta names, see `tests.witness.checkpoints.meta_shapes`.
        shape: The model's sizes.
        tokens: Ids of shape (n_positions,).
        rope_theta: Base of the rotary frequencies.
        norm_eps: Added to the mean square under RMSNorm's root.
        frequencies: The rotary ones, where they do not follow from their base alone.
        positions: Where each token stands; None for 0, 1, 2 and so on.

    Returns:
        Logits of shape (n_positions, vocab).
    """
    weights = {name: tensor.float() for name, tensor in state.items()}
    positions = torch.arange(len(tokens)) if positions is None else positions
    turns = rotations(positions, shape.head_dim, rope_theta, frequencies)
    h = weights["tok_embeddings.weight"][tokens]
    for i in range(shape.n_layers):
        layer = {
            name.removeprefix(f"layers.{i}.").removesuffix(".weight"): tensor
            for name, tensor in weights.items()
            if name.startswith(f"layers.{i}.")
        }
        h = h + attention(layer, shape, rms_norm(h, layer["attention_norm"], norm_eps), turns)
        h = h + feed_forward(layer, rms_norm(h, layer["ffn_norm"], norm_eps))
    return rms_norm(h, weights["norm.weight"], norm_eps) @ weights["output.weight"].T


def rotations(
    positions: torch.Tensor, head_dim: int, theta: float, frequencies: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute exp(i * position * theta ** (-2j / head_dim)) of shape (n_positions, head_dim / 2)."""
    pairs = torch.arange(head_dim // 2, dtype=torch.float32)
    plain = 1.0 / theta ** (2 * pairs / head_dim)
    angles = torch.outer(positions.float(), plain if frequencies is None else frequencies)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(heads: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn elements 2j and 2j + 1 of each head as one complex number.

    Args:
        heads: Shape (n_positions, n_heads, head_dim).
        turns: Shape (n_positions, head_dim / 2), complex.
    """
    real, imaginary = heads[..., 0::2], heads[..., 1::2]
    turned = torch.complex(real, imaginary) * turns[:, None, :]
    return torch.stack((turned.real, turned.imag), dim=-1).flatten(-2)


def attention(
    layer: Mapping[str, torch.Tensor], shape: Shape, x: torch.Tensor, turns: torch.Tensor
) -> torch.Tensor:
    """Attend causally; n_heads / n_kv_heads neighbouring query heads share a key and value head."""
    n_positions, n_shared = len(x), shape.n_heads // shape.n_kv_heads
    query = (x @ layer["attention.wq"].T).view(n_positions, shape.n_heads, shape.head_dim)
    key = (x @ layer["attention.wk"].T).view(n_positions, shape.n_kv_heads, shape.head_dim)
    value = (x @ layer["attention.wv"].T).view(n_positions, shape.n_kv_heads, shape.head_dim)
    query, key = rotate(query, turns), rotate(key, turns)
    future = torch.ones(n_positions, n_positions, dtype=torch.bool).triu(1)
    outputs = []
    for head in range(shape.n_heads):
        shared = head // n_shared
        scores = query[:, head] @ key[:, shared].T / shape.head_dim**0.5
        outputs.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ value[:, shared])
    return torch.cat(outputs, dim=-1) @ layer["attention.wo"].T


def feed_forward(layer: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Compute w2(silu(w1 x) * w3 x)."""
    gate = x @ layer["feed_forward.w1"].T
    gate = gate * torch.sigmoid(gate)
    return (gate * (x @ layer["feed_forward.w3"].T)) @ layer["feed_forward.w2"].T


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Divide by the root of the mean square, then scale."""
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight
