"""Own random models that may be split over ranks, and the folders that they are read from."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from tests.hugging_face.folders import write_folder
from tests.witness.checkpoints import (
    Shape,
    State,
    Storage,
    expected_state_dict,
    random_model,
    save_checkpoint,
)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# 500000 is that of Llama 3, whose ranks hold no frequencies.
THETAS = (10000.0, 250000.0, 1000000.0)


@dataclass(frozen=True, slots=True)
class Model:
    """A model that may be split over two numbers of ranks."""

    shape: Shape
    n_before: int
    n_after: int
    dtype: str
    theta: float
    seed: int

    @property
    def state(self) -> State:
        return random_model(self.shape, DTYPES[self.dtype], self.seed, special_values=True)


@st.composite
def models(draw: st.DrawFn) -> Model:
    n_kv_heads = draw(st.sampled_from([1, 2, 3, 4, 6, 8]))
    n_heads = n_kv_heads * draw(st.integers(1, 3))
    common = draw(st.sampled_from([n for n in (1, 2, 3, 4, 6, 8) if n_kv_heads % n == 0]))
    counts = st.sampled_from([n for n in range(1, common + 1) if gcd(common, n) == n])
    shape = Shape(
        dim=n_heads * draw(st.sampled_from([2, 4, 6, 8])),
        n_layers=draw(st.integers(1, 2)),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        hidden=common * draw(st.integers(1, 9)),
        vocab=common * draw(st.integers(1, 9)),
    )
    return Model(
        shape, draw(counts), draw(counts), draw(st.sampled_from(sorted(DTYPES))),
        draw(st.sampled_from(THETAS)), draw(st.integers(0, 2**16)),
    )  # fmt: skip


def how(layout: str = "2.13") -> st.SearchStrategy[dict[str, Any]]:
    """Draw what may not change a byte; in the smallest memory, tiles are small."""
    return st.fixed_dictionaries({
        "torch_layout": st.just(layout),
        "workers": st.sampled_from([1, 2, 3]),
        "max_ram_bytes": st.sampled_from([None, 500_000, 1_000_000]),
        "io_mode": st.sampled_from(["auto", "buffered"]),
    })  # fmt: skip


def write_hugging_face(folder: Path, model: Model, n_files: int, *, tied: bool = False) -> Path:
    """Deal a model's tensors out to some files, as a seed has it."""
    state = expected_state_dict(model.state, model.shape)
    if tied:
        del state["lm_head.weight"]
    dealt: list[State] = [{} for _ in range(n_files)]
    numbers = torch.randint(
        n_files, (len(state),), generator=torch.Generator().manual_seed(model.seed)
    )
    for number, (name, tensor) in zip(numbers.tolist(), state.items(), strict=True):
        dealt[number][name] = tensor.contiguous()
    return write_folder(
        folder, [one for one in dealt if one], shape=model.shape, rope_theta=model.theta,
        torch_dtype=model.dtype, tie_word_embeddings=tied,
    )  # fmt: skip


def write_meta(folder: Path, model: Model, storage: Storage, rope: Any) -> Path:
    natural = model.shape.dim * 8 // 3
    params = {
        "multiple_of": model.shape.hidden, "ffn_dim_multiplier": model.shape.hidden / natural,
        "rope_theta": model.theta,
    }  # fmt: skip
    return save_checkpoint(
        folder, model.shape, model.state, model.n_before, storage=storage, rope=rope,
        tokenizer=False, params=params,
    )  # fmt: skip
