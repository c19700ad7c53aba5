"""Ranks of a small model as their indices say: names and shapes, and no file behind them."""

from __future__ import annotations

from pathlib import Path

from codellama_convert.formats.pth.reader import RankIndex
from codellama_convert.formats.stored_tensor import Storage, StoredTensor
from codellama_convert.model.config import ModelConfig
from codellama_convert.tensors import BFLOAT16, Dtype
from tests.witness.checkpoints import Shape, meta_shapes

# Four heads of two rows, two of them for keys and values.
SHAPE = Shape(dim=8, n_layers=1, n_heads=4, n_kv_heads=2, hidden=12, vocab=6)
CONFIG = ModelConfig(
    hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, rms_norm_eps=1e-5, rope_theta=1e4, vocab_size=6,
)  # fmt: skip
SAME_FOLDER = "same model directory"  # what to do
QUERY = "layers.0.attention.wq.weight"
GATE = "layers.0.feed_forward.w1.weight"


def rank_of(shapes: dict[str, tuple[int, ...]], name: str = "consolidated.00.pth") -> RankIndex:
    """Index a file that holds contiguous bfloat16 tensors of these shapes."""
    return RankIndex(
        path=Path(name),
        n_bytes=1,
        inode=(0, 0),
        mtime_ns=0,
        tensors={name: tensor(name, shape) for name, shape in shapes.items()},
        storages={},
        directory_sha256="",
        pickle_sha256="",
        has_sums=True,
    )


def tensor(name: str, shape: tuple[int, ...], dtype: Dtype = BFLOAT16) -> StoredTensor:
    strides = (shape[1], 1) if len(shape) == 2 else (1,) * len(shape)
    return StoredTensor(name, shape, strides, 0, Storage("data/0", dtype, 0, 1, None))


def with_tensor(name: str, shape: tuple[int, ...]) -> RankIndex:
    return rank_of({**meta_shapes(SHAPE), name: shape})


def without_tensor(name: str) -> RankIndex:
    return rank_of({n: shape for n, shape in meta_shapes(SHAPE).items() if n != name})
