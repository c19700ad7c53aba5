"""A cast is torch's own, and what it changes is counted, named or refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from codellama_convert.convert.run import convert_checkpoint
from codellama_convert.errors import CastError
from codellama_convert.plan.job import Options
from codellama_convert.plan.run_options import RunOptions
from codellama_convert.tensors import BFLOAT16, FLOAT16, FLOAT32, Dtype
from tests.convert.bits import library_bytes
from tests.witness.checkpoints import (
    GQA,
    MHA,
    expected_state_dict,
    random_model,
    read_output,
    save_checkpoint,
)

OVERWRITE = RunOptions(overwrite=True)


@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("target", "torch_dtype"),
    [(BFLOAT16, torch.bfloat16), (FLOAT16, torch.float16), (FLOAT32, torch.float32)],
)
def test_a_cast_is_torchs_own(tmp_path, source, target: Dtype, torch_dtype):
    state = random_model(GQA, source, 5)
    save_checkpoint(tmp_path / "in", GQA, state, n_ranks=2)
    convert_checkpoint(
        tmp_path / "in", tmp_path / "out", options=Options(dtype=target, tile_bytes=3000)
    )
    expected = {n: t.to(torch_dtype) for n, t in expected_state_dict(state, GQA).items()}
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == library_bytes(
        expected, tmp_path
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == str(torch_dtype).removeprefix("torch.")


@pytest.mark.parametrize("tile_bytes", [1, 100, 300, 1 << 20])
@pytest.mark.parametrize(
    ("source", "nans", "target", "expected"),
    [
        (torch.float16, [0x7C01, -1024 + 1, 0x7E05, -512], FLOAT32, (0x7FC00000, -(1 << 22))),
        (torch.float32, [0x7F800001, -0x7FFFFF, 0x7FC00005, -0x400000], BFLOAT16, (0x7FC0, -64)),
        (torch.float32, [0x7F800001, -0x7FFFFF, 0x7FC00005, -0x400000], FLOAT16, (0x7E00, -512)),
        (torch.bfloat16, [0x7F81, -127, 0x7FC5, -64], FLOAT32, (0x7FC00000, -(1 << 22))),
    ],
)
def test_a_nan_is_cast_to_the_quiet_one_of_its_sign(
    tmp_path, source, nans, target, expected, tile_bytes
):
    """What torch leaves of a NaN depends on the elements that its kernel gets at once.

    So it depended on the size of the tiles, and a right output seemed to differ.
    """
    state = {name: torch.ones_like(t) for name, t in random_model(GQA, source, 5).items()}
    as_bits = torch.int16 if source.itemsize == 2 else torch.int32
    for tensor in state.values():
        bits = tensor.view(as_bits).view(-1)
        bits[:8] = bits[-8:] = torch.tensor(nans * 2, dtype=as_bits)
    save_checkpoint(tmp_path / "in", GQA, state)
    options = Options(dtype=target, tile_bytes=tile_bytes)
    convert_checkpoint(tmp_path / "in", tmp_path / "out", options=options)
    as_bits = torch.int16 if target.itemsize == 2 else torch.int32
    for name, tensor in read_output(tmp_path / "out").items():
        bits = tensor.view(as_bits).view(-1)
        found = bits[tensor.view(-1).isnan()].tolist()
        assert len(found) == 16, name
        assert set(found) == set(expected), name
        if not name.endswith(("q_proj.weight", "k_proj.weight")):
            assert bits[:4].tolist() == [*expected, *expected], name


def test_a_value_that_would_become_infinite_stops_the_run(tmp_path):
    state = random_model(MHA, torch.bfloat16, 5)
    weight = state["layers.1.feed_forward.w2.weight"]
    weight[3, 4], weight[5, 6] = 99840.0, -65536.0
    save_checkpoint(tmp_path / "in", MHA, state)
    with pytest.raises(CastError) as caught:
        convert_checkpoint(tmp_path / "in", tmp_path / "out", options=Options(dtype=FLOAT16))
    for fact in (
        "model.layers.1.mlp.down_proj.weight",
        "2 values",
        "9.984e+04",
        "65504",
        "bfloat16",
    ):
        assert fact in str(caught.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.json"))
    weight[3, 4], weight[5, 6] = 65280.0, -65280.0  # the largest bfloat16 below 65504
    shutil.rmtree(tmp_path / "in")
    save_checkpoint(tmp_path / "in", MHA, state)
    convert_checkpoint(
        tmp_path / "in", tmp_path / "out", options=Options(dtype=FLOAT16), run_options=OVERWRITE
    )


def test_float32_beyond_bfloat16_is_refused_and_infinities_are_kept(tmp_path):
    state = random_model(MHA, torch.float32, 5)
    state["norm.weight"][0] = float("inf")
    save_checkpoint(tmp_path / "in", MHA, state)
    convert_checkpoint(tmp_path / "in", tmp_path / "out", options=Options(dtype=BFLOAT16))
    assert read_output(tmp_path / "out")["model.norm.weight"][0] == float("inf")
    state["norm.weight"][1] = 3.4e38
    shutil.rmtree(tmp_path / "in")
    save_checkpoint(tmp_path / "in", MHA, state)
    with pytest.raises(
        CastError, match=r"tensor 'model\.norm\.weight': 1 value exceeds the bfloat16 range"
    ):
        convert_checkpoint(tmp_path / "in", tmp_path / "out2", options=Options(dtype=BFLOAT16))


def test_values_that_become_zero_are_counted(tmp_path):
    state = {name: torch.ones_like(t) for name, t in random_model(MHA, torch.bfloat16, 5).items()}
    state["output.weight"][0, :3] = 2e-8
    state["layers.0.attention.wq.weight"][1, 1] = -1e-9
    save_checkpoint(tmp_path / "in", MHA, state)
    report = convert_checkpoint(tmp_path / "in", tmp_path / "out", options=Options(dtype=FLOAT16))
    assert report.became_zero == {
        "lm_head.weight": 3,
        "model.layers.0.self_attn.q_proj.weight": 1,
    }
    assert report.nonfinite == {}


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("target", [None, FLOAT16, FLOAT32])
def test_values_that_are_no_numbers_are_kept_counted_and_named(tmp_path, target, workers):
    state = {name: torch.ones_like(t) for name, t in random_model(MHA, torch.bfloat16, 5).items()}
    infinity, nan = float("inf"), float("nan")
    state["output.weight"][0, :3] = torch.tensor([infinity, -infinity, nan])
    state["output.weight"][-1, -1] = -nan
    state["layers.0.attention.wq.weight"][1, 1] = nan
    save_checkpoint(tmp_path / "in", MHA, state)
    options = Options(dtype=target, tile_bytes=256, workers=workers)
    report = convert_checkpoint(tmp_path / "in", tmp_path / "out", options=options)
    assert report.nonfinite == {
        "lm_head.weight": 4,
        "model.layers.0.self_attn.q_proj.weight": 1,
    }
    assert report.became_zero == {}
    head = read_output(tmp_path / "out")["lm_head.weight"]
    assert head[0, 0] == infinity
    assert head[0, 1] == -infinity
    assert head[0, 2].isnan()
    assert head[-1, -1].isnan()
    recorded = json.loads((tmp_path / "out" / "conversion.json").read_bytes())["tensors"]
    assert {name: t["nonfinite"] for name, t in recorded.items() if "nonfinite" in t} == {
        "lm_head.weight": 4,
        "model.layers.0.self_attn.q_proj.weight": 1,
    }


@pytest.mark.parametrize("bits", [0x7F7F, 0xFF7F, 0x4000, 0xC000, 0x0001, 0x8001, 0x8000])
def test_the_largest_and_smallest_numbers_are_numbers(tmp_path, bits):
    state = random_model(MHA, torch.bfloat16, 5)
    signed = bits - (1 << 16 if bits >= 1 << 15 else 0)
    state["norm.weight"] = torch.full((32,), signed, dtype=torch.int16).view(torch.bfloat16)
    save_checkpoint(tmp_path / "in", MHA, state)
    report = convert_checkpoint(tmp_path / "in", tmp_path / "out")
    assert report.nonfinite == {}
