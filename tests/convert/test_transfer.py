"""What a tile costs: rows that stay as they are go from the file to where they are written from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from codellama_convert.convert.movers import Movers
from codellama_convert.convert.run import run
from codellama_convert.convert.transfer import TileSource
from codellama_convert.errors import CheckpointError
from codellama_convert.formats.tensor_reader import TensorReader
from codellama_convert.plan.job import Options, plan_conversion
from codellama_convert.plan.ranks.job import plan_reverse
from codellama_convert.plan.ranks.options import ReverseOptions
from codellama_convert.storage.blocks import IoMode
from tests.witness.checkpoints import (
    Shape,
    expected_state_dict,
    random_model,
    read_output,
    same_bits,
    save_checkpoint,
    split_ranks,
)

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


# 25 pairs of rows in a head, a row of 400 bytes and a head of 20,000.
ODD = Shape(dim=200, n_layers=1, n_heads=4, n_kv_heads=2, hidden=24, vocab=32)


@pytest.mark.parametrize("io_mode", ["buffered", "auto"])
@pytest.mark.parametrize("n_ranks", [1, 2])
@pytest.mark.parametrize(
    ("tile_bytes", "rows"), [(1, 2), (2000, 4), (7000, 14), (19_999, 26), (20_000, 50)]
)
def test_less_than_a_head_is_moved_at_once_where_a_head_is_too_large(
    tmp_path: Path, tile_bytes: int, rows: int, n_ranks: int, io_mode: IoMode
) -> None:
    """In both directions, between one file and one or two ranks."""
    state = random_model(ODD, torch.bfloat16, 4)
    meta, hf, back = (tmp_path / name for name in ("meta", "hf", "back"))
    save_checkpoint(meta, ODD, state, n_ranks=n_ranks, tokenizer=False)
    options = Options(skip_tokenizer=True, io_mode=io_mode, tile_bytes=tile_bytes)
    job = plan_conversion(meta, options)
    assert job.weights is not None
    q_proj = "model.layers.0.self_attn.q_proj.weight"
    assert [t.tile_rows for t in job.weights.plan.tensors if t.spec.name == q_proj] == [rows]
    run(job, hf)
    found, expected = read_output(hf), expected_state_dict(state, ODD)
    assert found.keys() == expected.keys()
    assert all(same_bits(found[name], expected[name]) for name in found)
    assert not same_bits(found[q_proj], state["layers.0.attention.wq.weight"])
    reverse = ReverseOptions(
        n_ranks=n_ranks, skip_tokenizer=True, io_mode=io_mode, workers=1, max_ram_bytes=50_000
    )
    job = plan_reverse(hf, reverse)
    wq = "layers.0.attention.wq.weight"
    rows_of_wq = {t.tile_rows for t in job.weights.plan.tensors if t.spec.name == wq}
    assert len(rows_of_wq) == 1
    assert max(rows_of_wq) < 50
    run(job, back)
    ranks = [torch.load(path, weights_only=True) for path in sorted(back.glob("*.pth"))]
    for rank, one in zip(ranks, split_ranks(state, n_ranks), strict=True):
        for name in ("wq", "wk"):
            key = f"layers.0.attention.{name}.weight"
            assert same_bits(rank[key], one[key])


def test_what_is_lost_or_swapped_of_a_head_is_noticed() -> None:
    """The comparison above, of rows in Meta's order, or with one bit turned."""
    state = random_model(ODD, torch.bfloat16, 4)
    rows = expected_state_dict(state, ODD)["model.layers.0.self_attn.q_proj.weight"]
    swapped, turned = rows.clone(), rows.clone().view(torch.int16)
    swapped[[0, 1]] = rows[[1, 0]]
    turned[19, 19] ^= 1
    assert not same_bits(swapped, rows)
    assert not same_bits(turned.view(torch.bfloat16), rows)
