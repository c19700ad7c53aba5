"""The params.json of ranks that become another number of ranks: their own, where it is right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from codellama_convert import plan_reverse, reverse_checkpoint, verify_output
from codellama_convert.plan.ranks.options import ReverseOptions
from tests.outputs import content
from tests.witness.checkpoints import GQA, random_model, save_checkpoint

# Spelled as no program of ours does; vocab_size is left to the tokenizer, as Meta leaves it.
PARAMS = (
    '{"norm_eps": 1e-05,  "dim": 64, "n_layers": 2, "n_heads": 8,\n "n_kv_heads": 4, "vocab_size": '
    '-1, "rope_theta": 1e6, "multiple_of": 16, "ffn_dim_multiplier": 1.04}'
)


def reshard(place: Path, params: str) -> dict[str, bytes]:
    """Give a checkpoint another number of ranks, and let verify compare both."""
    source = save_checkpoint(place / "in", GQA, random_model(GQA, torch.bfloat16, 3), n_ranks=2)
    (source / "params.json").write_text(params)
    options = ReverseOptions(n_ranks=4)
    reverse_checkpoint(source, place / "out", options=options)
    assert verify_output(place / "out", plan_reverse(source, options)).problems == ()
    assert verify_output(place / "out").problems == ()
    (place / "out" / "conversion.json").unlink()
    assert verify_output(place / "out", plan_reverse(source, options)).problems == ()
    return content(place / "out")


def test_another_number_of_ranks_keeps_the_bytes_of_params_json(tmp_path: Path) -> None:
    """It was written again, in another order and with a vocab_size that the source leaves open."""
    assert reshard(tmp_path, PARAMS)["params.json"] == PARAMS.encode()
    # A character that says nothing.
    (tmp_path / "out" / "params.json").write_text(PARAMS.replace("\n", " "))
    job = plan_reverse(tmp_path / "in", ReverseOptions(n_ranks=4))
    (line,) = verify_output(tmp_path / "out", job).problems
    assert line.startswith("params.json")


@pytest.mark.parametrize(
    "change",
    [
        {"max_seq_len": 512},  # which Meta's loader passes itself
        {"hidden_dim": 176},  # of another program
        {"vocab_size": 100},  # wrong: the tensors say otherwise
        {"ffn_dim_multiplier": 1.3},  # wrong too
        {"trained_by": "me"},
    ],
)
def test_what_metas_code_would_not_take_is_written_again(
    tmp_path: Path, change: dict[str, object]
) -> None:
    found = json.loads(reshard(tmp_path, json.dumps(json.loads(PARAMS) | change))["params.json"])
    assert found == {
        "dim": 64, "multiple_of": 16, "n_heads": 8, "n_kv_heads": 4,
        "n_layers": 2, "norm_eps": 1e-05, "rope_theta": 1000000, "vocab_size": 320,
    }  # fmt: skip


def test_a_byte_order_mark_is_one_of_those(tmp_path: Path) -> None:
    """Meta's code stops at it, and this program passes it over."""
    assert reshard(tmp_path, "\ufeff" + PARAMS)["params.json"].startswith(b'{"dim": 64')
