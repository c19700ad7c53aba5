"""What a tile costs: rows that stay as they are go from the file to where they are written from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from codellama_convert.convert.movers import Movers
from codellama_convert.convert.transfer import TileSource
from codellama_convert.errors import CheckpointError
from codellama_convert.formats.tensor_reader import TensorReader
from codellama_convert.plan.job import Options, plan_conversion
from tests.witness.checkpoints import Shape, random_model, save_checkpoint

SHAPE = Shape(dim=16, n_layers=1, n_heads=2, n_kv_heads=2, hidden=24, vocab=32)
NO_BUFFER = memoryview(bytearray())


def fill_without_a_buffer(folder: Path, name: str, dtype: str) -> bytes:
    """Fill the first tile of a tensor with nothing to read it into but where it goes."""
    options = Options(skip_tokenizer=True, io_mode="buffered", dtype=dtype)
    weights = plan_conversion(folder, options).weights
    assert weights is not None
    (tensor,) = (one for one in weights.plan.tensors if one.spec.name == name)
    tile = next(tensor.tiles())
    target = bytearray(len(tile.rows) * tensor.row_bytes)
    with TensorReader(weights.source_files[0], [tensor.source.name]) as reader:
        source = TileSource([reader], Movers(weights.source_dtypes, weights.plan.dtype))
        source.fill([memoryview(target)], tensor, tile, NO_BUFFER)
    return bytes(target)


def test_rows_that_stay_as_they_are_are_read_to_where_they_are_written_from(tmp_path: Path) -> None:
    """They were read into a buffer, and copied into another one."""
    state = random_model(SHAPE, torch.bfloat16, 4)
    save_checkpoint(tmp_path, SHAPE, state, tokenizer=False)
    expected = state["layers.0.feed_forward.w2.weight"].view(torch.int16).numpy().tobytes()
    name = "model.layers.0.mlp.down_proj.weight"
    assert fill_without_a_buffer(tmp_path, name, "bfloat16") == expected


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("model.layers.0.self_attn.q_proj.weight", "bfloat16"),  # in another order
        ("model.layers.0.mlp.down_proj.weight", "float16"),  # as other bits
    ],
)
def test_rows_that_change_are_read_into_the_buffer(tmp_path: Path, name: str, dtype: str) -> None:
    save_checkpoint(tmp_path, SHAPE, random_model(SHAPE, torch.bfloat16, 4), tokenizer=False)
    with pytest.raises(CheckpointError):
        fill_without_a_buffer(tmp_path, name, dtype)
