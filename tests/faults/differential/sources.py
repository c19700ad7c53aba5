"""Random checkpoints: what a model is, how it lies in its files, and what of them is damaged."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from tests.faults.differential.bits import BFLOAT16, FLOAT16, FLOAT32, Bits, Kind
from tests.faults.differential.ranks import Rank, draw_style, write_rank
from tests.faults.differential.tokenizers import FEWEST_PIECES, Tokenizer, draw_tokenizer
from tests.witness.checkpoints import (
    ABSENT,
    Shape,
    Style,
    params_json,
    random_model,
    rope_freqs,
    rope_names,
    split_ranks,
)

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
    style = draw_style(rng, n_ranks)
    layout_seed = rng.getrandbits(32)
    families = [
        tuple(
            write_rank(number, dict(part) | dict.fromkeys(rope, freqs), kind, style, layout_seed)
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
        overrides["rope_theta"] = rng.choice((ABSENT, 10000.0, 1e6, 250000, 12345.5))
    if rng.random() < 0.3:
        overrides["vocab_size"] = rng.choice((ABSENT, -1, shape.vocab))
    if rng.random() < 0.3:
        overrides["norm_eps"] = rng.choice((1e-6, 1e-5, 0.5))
    if rng.random() < 0.2:
        overrides["n_kv_heads"] = shape.n_kv_heads
    if rng.random() < 0.2:
        overrides[rng.choice(("max_seq_len", "max_batch_size", "made_by"))] = 3
    return params_json(shape, style, overrides).encode()


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
