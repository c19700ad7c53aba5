"""Ranks that do not belong together are refused before the first byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from codellama_convert.convert.run import convert_checkpoint
from codellama_convert.errors import ConvertError
from tests.convert.bits import assert_same_bits
from tests.witness.checkpoints import (
    GQA,
    MHA,
    expected_state_dict,
    random_model,
    read_output,
    save_checkpoint,
    split_ranks,
)


def rewrite_rank(folder: Path, number: int, changes: dict[str, torch.Tensor | None]) -> None:
    path = folder / f"consolidated.{number:02d}.pth"
    rank = torch.load(path) | changes
    torch.save({name: tensor for name, tensor in rank.items() if tensor is not None}, path)


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"norm.weight": None}, ["'norm.weight'", "missing"]),
        ({"rope.inv": torch.zeros(3)}, ["'rope.inv'", "(3,)"]),
        (
            {"layers.1.attention.wk.weight": torch.zeros(15, 64)},
            ["'layers.1.attention.wk.weight'", "(15, 64)", "(16, 64)"],
        ),
        (
            {"layers.1.attention.wk.weight": torch.zeros(16, 64, dtype=torch.float16)},
            ["'layers.1.attention.wk.weight'", "float16", "float32"],
        ),
        ({"layers.0.ffn_norm.weight": torch.full((64,), 9.0)}, ["'layers.0.ffn_norm.weight'"]),
    ],
)
def test_a_rank_that_no_rule_explains_is_refused_before_the_first_byte(tmp_path, changes, facts):
    save_checkpoint(tmp_path / "in", GQA, random_model(GQA, torch.float32), n_ranks=2)
    rewrite_rank(tmp_path / "in", 1, changes)
    with pytest.raises(ConvertError) as caught:
        convert_checkpoint(tmp_path / "in", tmp_path / "out")
    for fact in ["consolidated.01.pth", *facts]:
        assert fact in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_rank_that_was_only_saved_again_is_accepted(tmp_path):
    state = random_model(GQA, torch.float32)
    save_checkpoint(tmp_path / "in", GQA, state, n_ranks=2)
    rewrite_rank(tmp_path / "in", 1, {})
    convert_checkpoint(tmp_path / "in", tmp_path / "out")
    assert_same_bits(read_output(tmp_path / "out"), expected_state_dict(state, GQA))


def test_swapped_ranks_give_another_model(tmp_path):
    """The negative control of the rank order: nothing in the files tells it, only their names."""
    state = random_model(GQA, torch.float32)
    save_checkpoint(tmp_path / "in", GQA, state, n_ranks=2)
    first, second = split_ranks(state, 2)
    torch.save(second, tmp_path / "in" / "consolidated.00.pth")
    torch.save(first, tmp_path / "in" / "consolidated.01.pth")
    convert_checkpoint(tmp_path / "in", tmp_path / "out")
    with pytest.raises(AssertionError):
        assert_same_bits(read_output(tmp_path / "out"), expected_state_dict(state, GQA))


@pytest.mark.parametrize("rope", ["top", "inner", None])
def test_the_rotary_buffer_is_dropped_wherever_it_is(tmp_path, rope):
    state = random_model(MHA, torch.bfloat16)
    save_checkpoint(tmp_path / "in", MHA, state, rope=rope)
    report = convert_checkpoint(tmp_path / "in", tmp_path / "out")
    assert len(report.dropped) == {"top": 1, "inner": 2, None: 0}[rope]
    assert_same_bits(read_output(tmp_path / "out"), expected_state_dict(state, MHA))
