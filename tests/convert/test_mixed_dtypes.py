"""Checkpoints whose tensors are of several dtypes: an explicit --dtype casts each by itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from codellama_convert import Options, convert_checkpoint, plan_conversion, verify_output
from codellama_convert.errors import LayoutError
from codellama_convert.tensors import BFLOAT16, FLOAT16, FLOAT32, Dtype
from tests.convert.bits import assert_same_bits
from tests.convert.noted import assert_converted_with_note, rotary_buffer, write_ranks
from tests.outputs import stop_after_files
from tests.refusals import refused
from tests.witness.checkpoints import (
    GQA,
    MHA,
    State,
    expected_state_dict,
    random_model,
    read_output,
    split_ranks,
)

NORMS = tuple(name for name, tensor in random_model(MHA).items() if tensor.dim() == 1)
TARGETS = [(BFLOAT16, torch.bfloat16), (FLOAT16, torch.float16), (FLOAT32, torch.float32)]


def mixed(state: State, wide: tuple[str, ...] = NORMS) -> State:
    """Let some tensors be float32, with digits that a narrower dtype has not."""
    return {n: t.float() * 1.0001 if n in wide else t for n, t in state.items()}


@pytest.mark.parametrize(("dtype", "torch_dtype"), TARGETS)
@pytest.mark.parametrize("wide", [NORMS, ("output.weight",)], ids=["norms", "head"])
def test_each_tensor_is_cast_to_the_dtype_that_was_asked_for(
    tmp_path: Path, dtype: Dtype, torch_dtype: torch.dtype, wide: tuple[str, ...]
) -> None:
    """Norms in float32 beside bfloat16, as training in mixed precision leaves them."""
    state = mixed(random_model(MHA), wide)
    source = write_ranks(tmp_path / "in", [state | rotary_buffer()])
    expected = {n: t.to(torch_dtype) for n, t in expected_state_dict(state, MHA).items()}
    counts = (
        f"{21 - len(wide)} are bfloat16",
        "1 is float32" if len(wide) == 1 else f"{len(wide)} are float32",
    )
    options = Options(dtype=dtype)
    assert_converted_with_note(source, tmp_path / "out", expected, *counts, options=options)
    assert plan_conversion(source, options).cast == f"bfloat16 and float32 to {dtype.name}"


def test_tensors_that_have_the_wanted_dtype_keep_their_bits(tmp_path: Path) -> None:
    """A cast settles NaNs; what is not cast keeps their payloads, and both are counted."""
    state = random_model(MHA, special_values=True)
    state["norm.weight"] = torch.full((32,), 1e-42)  # less than half of the least bfloat16
    source = write_ranks(tmp_path / "in", [state])
    options = Options(dtype=BFLOAT16)
    convert_checkpoint(source, tmp_path / "kept", options=options)
    expected = {n: t.bfloat16() for n, t in expected_state_dict(state, MHA).items()}
    assert_same_bits(read_output(tmp_path / "kept"), expected)
    record = json.loads((tmp_path / "kept" / "conversion.json").read_text())["tensors"]
    assert record["lm_head.weight"]["nonfinite"] > 0
    assert record["model.norm.weight"]["became_zero"] == 32
    assert verify_output(tmp_path / "kept", plan_conversion(source, options)).problems == ()


def test_without_a_dtype_they_are_refused_and_the_option_is_named(tmp_path: Path) -> None:
    source = write_ranks(tmp_path / "in", [mixed(random_model(MHA))])
    facts = (
        "consolidated.00.pth",
        "'layers.0.attention_norm.weight' is float32",
        "others are bfloat16",
        "--dtype",
    )
    with refused(LayoutError, *facts):
        plan_conversion(source, Options())
    plan_conversion(source, Options(dtype=FLOAT32))


def test_ranks_must_agree_on_the_dtype_of_each_tensor(tmp_path: Path) -> None:
    state = mixed(random_model(GQA))
    first, second = split_ranks(state, 2)
    source = write_ranks(tmp_path / "in", [first, second], GQA)
    options = Options(dtype=BFLOAT16)
    convert_checkpoint(source, tmp_path / "out", options=options)
    expected = {n: t.bfloat16() for n, t in expected_state_dict(state, GQA).items()}
    assert_same_bits(read_output(tmp_path / "out"), expected)
    torch.save(
        second | {"output.weight": second["output.weight"].float()}, source / "consolidated.01.pth"
    )
    with refused(LayoutError, "consolidated.01.pth", "'output.weight' is float32", "bfloat16"):
        convert_checkpoint(source, tmp_path / "other", options=options)


def test_an_interrupted_conversion_of_several_dtypes_is_resumed(tmp_path: Path) -> None:
    state = mixed(random_model(MHA))
    source = write_ranks(tmp_path / "in", [state])
    options = Options(dtype=FLOAT32, max_shard_bytes=40_000)
    stop_after_files(plan_conversion(source, options), tmp_path / "out", 2)
    report = convert_checkpoint(source, tmp_path / "out", options=options)
    assert report.kept_bytes
    expected = {n: t.float() for n, t in expected_state_dict(state, MHA).items()}
    assert_same_bits(read_output(tmp_path / "out"), expected)
