"""What is asked for: casts that cannot hold a value, and outputs that cannot be written."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.faults.hostile.case import Build, accepted, refused
from tests.faults.hostile.rank_bytes import QUERY, RANK, STATE, TINY
from tests.witness.checkpoints import Shape, State


def _cast_state(value: float, dtype: torch.dtype) -> State:
    state = {name: tensor.to(dtype) for name, tensor in STATE.items()}
    state[QUERY] = state[QUERY].clone()
    state[QUERY][2, 3] = value
    return state


_HF_QUERY = "model.layers.0.self_attn.q_proj.weight"


for _name, _value, _dtype, _to, *_facts in (
    ("cast_bf16_to_fp16", 99840.0, torch.bfloat16, "float16", "1 value", "9.984e+04", "65504"),
    ("cast_fp32_to_fp16", 65520.0, torch.float32, "float16", "1 value", "65504"),
    ("cast_fp32_to_bf16", 3.4e38, torch.float32, "bfloat16", "1 value", "3.4e+38"),
):

    def _overflow(folder: Path, value: float = _value, dtype: torch.dtype = _dtype) -> None:
        torch.save(_cast_state(value, dtype), folder / RANK)

    _overflow.__name__ = _name
    refused("", _HF_QUERY, *_facts, options=("--skip_tokenizer", "--dtype", _to))(_overflow)


_LOST = f"1 value in 1 tensor too small for the new dtype became zero (first in {_HF_QUERY})"
_KEPT = f"1 value in 1 tensor infinite or NaN, kept as stored (first in {_HF_QUERY})"


# The largest numbers that do not become infinite, and the smallest, which become zero with a note.
for _name, _value, _dtype, _to, *_facts in (
    ("cast_bf16_to_fp16_fits", 65280.0, torch.bfloat16, torch.float16),
    ("cast_fp32_to_fp16_fits", 65519.996, torch.float32, torch.float16),
    ("cast_fp32_to_bf16_fits", 3.396e38, torch.float32, torch.bfloat16),
    ("cast_to_fp16_becomes_zero", 2e-8, torch.bfloat16, torch.float16, _LOST),
    ("cast_to_fp16_stays_above_zero", 6e-8, torch.bfloat16, torch.float16),
    ("cast_of_infinity", float("inf"), torch.bfloat16, torch.float16, _KEPT),
):

    def _cast(
        folder: Path, value: float = _value, dtype: torch.dtype = _dtype, to: torch.dtype = _to
    ) -> tuple[State, Shape]:
        state = _cast_state(value, dtype)
        torch.save(state, folder / RANK)
        return {name: tensor.to(to) for name, tensor in state.items()}, TINY

    _cast.__name__ = _name
    _wanted = str(_to).removeprefix("torch.")
    accepted(*_facts, options=("--skip_tokenizer", "--dtype", _wanted))(_cast)


def _output_case(name: str, output: str, *facts: str, make: Build | None = None) -> None:
    def build(folder: Path) -> None:
        if make is not None:
            make(folder)

    build.__name__ = name
    refused("", *facts, options=("--skip_tokenizer", "--output_dir", output))(build)


_output_case("output_is_the_input", "{input}", "input folder")


_output_case("output_below_a_file", "{input}/params.json/out", "out")


_output_case("output_is_a_file", "{input}/params.json", "params.json")


_output_case("output_is_not_empty", "{input}/full", "full", "kept.txt", "--overwrite", make=lambda f: (
    (f / "full").mkdir(), (f / "full" / "kept.txt").write_text("mine")))  # fmt: skip


if sys.platform == "linux":
    _output_case("output_in_a_read_only_place", "/proc/codellama-convert/out", "/proc/codellama")
