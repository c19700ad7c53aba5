"""Tensors are compared bit for bit, and the first difference is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from codellama_convert import Options, convert_checkpoint, plan_conversion, verify_output
from codellama_convert.tensors import BFLOAT16, FLOAT16, FLOAT32
from tests.verify.damage import problems, rewrite
from tests.witness.checkpoints import GQA, random_model, save_checkpoint


def test_the_first_difference_is_named_with_tensor_row_and_both_values(converted, tmp_path):
    state = random_model(GQA, torch.bfloat16)
    state["layers.1.feed_forward.w2.weight"][:] = 1
    save_checkpoint(tmp_path / "in", GQA, state, n_ranks=2)
    convert_checkpoint(tmp_path / "in", tmp_path / "out")

    def change(tensors):
        tensors["model.layers.1.mlp.down_proj.weight"][5, 100] = -2.5

    rewrite(tmp_path / "out" / "model.safetensors", change)
    (found,) = problems(tmp_path, tmp_path / "out")
    # down_proj has 176 columns; rank 1 holds the last 88, so column 100 is its column 12.
    for fact in (
        "'model.layers.1.mlp.down_proj.weight'", "'layers.1.feed_forward.w2.weight'",
        "consolidated.01.pth", "row 5", "column 12", "-2.5", "c020", "expected 1 ", "3f80",
    ):  # fmt: skip
        assert fact in found


def test_two_swapped_tensors_of_one_shape_are_found(converted, tmp_path):
    output = Path(shutil.copytree(converted / "one", tmp_path / "one"))

    def swap(tensors):
        a, b = "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"
        tensors[a], tensors[b] = tensors[b], tensors[a]

    rewrite(output / "model.safetensors", swap)
    found = problems(converted, output)
    assert len(found) == 2
    assert "gate_proj" in found[0] + found[1]
    assert "up_proj" in found[0] + found[1]


@pytest.mark.parametrize("control", ["left out", "done twice"])
def test_a_wrong_reordering_is_found(converted, tmp_path, control):
    output = Path(shutil.copytree(converted / "one", tmp_path / "one"))

    def reorder(tensors):
        name = "model.layers.0.self_attn.k_proj.weight"
        heads = tensors[name].view(4, 8, 64)
        if control == "left out":
            heads = heads.view(4, 2, 4, 64).transpose(1, 2)
        else:
            heads = heads.view(4, 4, 2, 64).transpose(1, 2)
        tensors[name] = heads.reshape(32, 64).contiguous()

    rewrite(output / "model.safetensors", reorder)
    (found,) = problems(converted, output)
    assert "k_proj" in found


@pytest.mark.parametrize("tile_bytes", [1, 100, 1 << 20])
def test_a_cast_of_nans_is_compared_bit_for_bit_in_any_tiles(tmp_path, tile_bytes):
    """It was said to differ where the two sides met the NaNs in tiles of another size."""
    state = random_model(GQA, torch.float16, 5, special_values=True)
    save_checkpoint(tmp_path / "in", GQA, state, n_ranks=2)
    convert_checkpoint(tmp_path / "in", tmp_path / "out", options=Options(dtype=FLOAT32))
    job = plan_conversion(tmp_path / "in", Options(tile_bytes=tile_bytes))
    assert verify_output(tmp_path / "out", job).problems == ()

    def nudge(tensors):
        values = tensors["model.layers.0.mlp.up_proj.weight"].view(-1)
        place = int(values.isnan().nonzero()[3])
        values.view(torch.int32)[place] |= 1
        assert values[place].isnan()

    rewrite(tmp_path / "out" / "model.safetensors", nudge)
    (found,) = verify_output(tmp_path / "out", job).problems
    assert "up_proj" in found


@pytest.mark.parametrize("dtype", [FLOAT16, FLOAT32, BFLOAT16])
def test_a_cast_that_rounds_otherwise_is_found(tmp_path, dtype):
    state = random_model(GQA, torch.float32, 5)
    save_checkpoint(tmp_path / "in", GQA, state)
    convert_checkpoint(tmp_path / "in", tmp_path / "out", options=Options(dtype=dtype))
    job = plan_conversion(tmp_path / "in", Options())
    assert verify_output(tmp_path / "out", job).problems == ()

    def nudge(tensors):
        bits = tensors["model.norm.weight"].view(torch.int32 if dtype is FLOAT32 else torch.int16)
        bits[7] += 1

    rewrite(tmp_path / "out" / "model.safetensors", nudge)
    (found,) = verify_output(tmp_path / "out", job).problems
    assert "model.norm.weight" in found
    assert "row 7" in found
