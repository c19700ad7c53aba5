"""Tiles and workers are chosen to fit a memory budget."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from codellama_convert.errors import ConfigError
from codellama_convert.model.config import ModelConfig
from codellama_convert.model.tensor_table import build_layout
from codellama_convert.plan.plan import fit_plan
from codellama_convert.tensors import BFLOAT16

CONFIG = ModelConfig(
    hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, rms_norm_eps=1e-5, rope_theta=1e4, vocab_size=6,
)  # fmt: skip


@pytest.mark.parametrize(
    ("workers", "keep", "budget", "expected"),
    [
        (1, False, None, (1, 2_613_248)),  # the largest, whatever would fit
        (2, False, None, (2, 2_613_248)),
        (6, False, None, (6, 2_613_248)),
        (7, False, None, (7, 2 << 20)),
        (8, False, None, (8, 1 << 20)),
        (16, False, None, (16, 512 << 10)),
        (64, False, None, (30, 512 << 10)),  # 30 x 2 x 520 KiB is the last below 32 MB
        (64, True, None, (64, 512 << 10)),  # asked for
        (8, False, 1_200_000, (1, 512 << 10)),
        (8, False, 100_000, (1, 32 << 10)),
    ],
)
def test_tiles_and_workers_are_chosen_to_fit(workers, keep, budget, expected):
    wide = replace(CONFIG, hidden_size=4096, vocab_size=32000, intermediate_size=11008,
                   num_attention_heads=2048, num_key_value_heads=2048)  # fmt: skip
    layout = build_layout(wide, n_ranks=1, dtype=BFLOAT16)
    plan = fit_plan(
        layout, dtype=BFLOAT16, max_ram_bytes=budget, workers=workers, keep_workers=keep
    )
    assert (plan.workers, plan.tile_bytes) == expected


def test_a_head_that_is_too_large_is_taken_in_pieces_of_about_the_same_size():
    """Of Llama 3.1 405B a head has 4 MB, and so had each of the four buffers."""
    config = replace(
        CONFIG, hidden_size=16384, intermediate_size=53248, vocab_size=128256,
        num_attention_heads=128, num_key_value_heads=8,
    )  # fmt: skip
    layout = build_layout(config, n_ranks=8, dtype=BFLOAT16)
    plan = fit_plan(layout, dtype=BFLOAT16, workers=2)
    (q_proj,) = (t for t in plan.tensors if t.spec.name == "model.layers.0.self_attn.q_proj.weight")
    assert (q_proj.tile_rows, q_proj.read_bytes) == (64, 64 * 32768)
    assert plan.buffer_bytes <= 5 << 21
    plan = fit_plan(layout, dtype=BFLOAT16, workers=2, max_ram_bytes=4_000_000)
    (q_proj,) = (t for t in plan.tensors if t.spec.name == "model.layers.0.self_attn.q_proj.weight")
    assert q_proj.tile_rows == 16  # 512 KiB
    assert plan.buffer_bytes <= 4_000_000


def test_a_budget_below_one_row_is_refused():
    layout = build_layout(CONFIG, n_ranks=1, dtype=BFLOAT16)
    # One page and two of slack, to read and to write: 24,576 bytes for a worker.
    with pytest.raises(
        ConfigError, match=r"--max_ram 24575 bytes .* 24576 bytes .*; allow at least that much$"
    ):
        fit_plan(layout, dtype=BFLOAT16, max_ram_bytes=24_575, workers=1)
    with pytest.raises(ConfigError, match="--max_ram 0 "):
        fit_plan(layout, dtype=BFLOAT16, max_ram_bytes=0, workers=1)
    assert fit_plan(layout, dtype=BFLOAT16, max_ram_bytes=24_576, workers=1).workers == 1
    with pytest.raises(ConfigError, match=r"--max_ram 30000 bytes .* 49152 bytes .*fewer workers"):
        fit_plan(layout, dtype=BFLOAT16, max_ram_bytes=30_000, workers=2, keep_workers=True)
    assert fit_plan(layout, dtype=BFLOAT16, max_ram_bytes=30_000, workers=2).workers == 1


def test_thousands_of_layers_do_not_make_a_small_budget_slow():
    """5,000 layers took 14 s to refuse: a whole plan was built for each size of a tile."""
    config = replace(CONFIG, num_hidden_layers=5_000)
    layout = build_layout(config, n_ranks=1, dtype=BFLOAT16)
    start = time.process_time()
    with pytest.raises(ConfigError, match="--max_ram 1 "):
        fit_plan(layout, dtype=BFLOAT16, max_ram_bytes=1, workers=8)
    assert time.process_time() - start < 1.0
    few = build_layout(CONFIG, n_ranks=1, dtype=BFLOAT16)
    for budget in (30_000, 40_000_000):
        expected = fit_plan(few, dtype=BFLOAT16, max_ram_bytes=budget, workers=3)
        found = fit_plan(layout, dtype=BFLOAT16, max_ram_bytes=budget, workers=3)
        assert len(found.tensors) == 9 * 5_000 + 3
        assert found.buffer_bytes == expected.buffer_bytes <= budget
        assert (found.workers, found.tile_bytes) == (expected.workers, expected.tile_bytes)
