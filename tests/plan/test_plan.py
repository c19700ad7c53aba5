"""The plan: every byte's place, spelled with small numbers, and true-size checkpoints in no time."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codellama_convert.cli.describe import describe_job
from codellama_convert.cli.words import plan_lines
from codellama_convert.errors import LayoutError
from codellama_convert.model.config import ModelConfig
from codellama_convert.model.tensor_table import RULES, build_layout
from codellama_convert.plan.job import Options, plan_conversion
from codellama_convert.plan.plan import build_plan, split_into_files
from codellama_convert.plan.sizes import file_sizes
from codellama_convert.staging.output_state import OutputState
from codellama_convert.staging.space import Space
from codellama_convert.tensors import BFLOAT16, FLOAT32
from tests.witness.checkpoints import (
    CODE_LLAMA_7B,
    CODE_LLAMA_13B,
    CODE_LLAMA_34B,
    CODE_LLAMA_70B,
    Shape,
    meta_shapes,
)
from tests.witness.sparse import write_sparse_checkpoint

CONFIG = ModelConfig(
    hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, rms_norm_eps=1e-5, rope_theta=1e4, vocab_size=6,
)  # fmt: skip
SHAPE = Shape(dim=8, n_layers=2, n_heads=4, n_kv_heads=2, hidden=12, vocab=6)  # the same


@pytest.mark.parametrize(
    ("sizes", "limit", "files"),
    [
        ([6, 6, 2, 6, 2, 2], 10, ((0,), (1, 2), (3, 4, 5))),
        ([5, 5], 10, ((0, 1),)),
        ([5, 6], 10, ((0,), (1,))),
        ([3, 20, 3], 10, ((0,), (1,), (2,))),  # larger than a file: one of its own, in its place
        ([20], 10, ((0,),)),
        ([], 10, ()),
    ],
)
def test_tensors_are_split_greedily_and_in_order(sizes, limit, files):
    assert split_into_files(sizes, limit) == files


def test_the_table_has_the_rows_that_are_spelled_by_hand_and_no_name_twice():
    names = [
        name.replace("layers.0.", "layers.{layer}.")
        for name in meta_shapes(replace(SHAPE, n_layers=1))
    ]
    assert sorted(rule.meta_name for rule in RULES) == sorted(names)
    assert len({rule.hf_name for rule in RULES}) == len(names)


@pytest.mark.parametrize(
    ("name", "shape", "part", "rotary"),
    [
        ("model.embed_tokens.weight", (6, 8), (6, 4), False),
        ("model.layers.1.self_attn.q_proj.weight", (8, 8), (4, 8), True),
        ("model.layers.1.self_attn.k_proj.weight", (4, 8), (2, 8), True),
        ("model.layers.1.self_attn.v_proj.weight", (4, 8), (2, 8), False),
        ("model.layers.1.self_attn.o_proj.weight", (8, 8), (8, 4), False),
        ("model.layers.1.mlp.gate_proj.weight", (12, 8), (6, 8), False),
        ("model.layers.1.mlp.up_proj.weight", (12, 8), (6, 8), False),
        ("model.layers.1.mlp.down_proj.weight", (8, 12), (8, 6), False),
        ("model.layers.1.input_layernorm.weight", (8,), (8,), False),
        ("model.layers.1.post_attention_layernorm.weight", (8,), (8,), False),
        ("model.norm.weight", (8,), (8,), False),
        ("lm_head.weight", (6, 8), (3, 8), False),
    ],
)
def test_each_row_of_the_table_says_what_two_ranks_hold(name, shape, part, rotary):
    (row,) = [t for t in build_layout(CONFIG, n_ranks=2, dtype=BFLOAT16) if t.spec.name == name]
    assert row.spec.shape == shape
    assert row.meta.part_shape == part
    assert (row.head_dim == 2) is rotary


def test_heads_that_cannot_be_split_are_refused():
    build_layout(CONFIG, n_ranks=2, dtype=BFLOAT16)
    with pytest.raises(LayoutError, match=r"2 key and value heads .* 4 ranks"):
        build_layout(CONFIG, n_ranks=4, dtype=BFLOAT16)


@given(
    tile_bytes=st.integers(1, 5000),
    n_ranks=st.sampled_from([1, 2]),
    target=st.sampled_from([BFLOAT16, FLOAT32]),
)
def test_tiles_cover_every_row_once_and_stay_in_one_rank(tile_bytes, n_ranks, target):
    layout = build_layout(CONFIG, n_ranks=n_ranks, dtype=BFLOAT16)
    plan = build_plan(layout, dtype=target, tile_bytes=tile_bytes, workers=3)
    for tensor in plan.tensors:
        rows = []
        for tile in tensor.tiles():
            rows += tile.rows
            if tensor.source.split == 0:
                part = tensor.spec.n_rows // n_ranks
                assert tile.rows[0] // part == tile.rows[-1] // part
            if tensor.head_dim:
                assert tile.rows.start % 2 == len(tile.rows) % 2 == 0
            assert len(tile.rows) * tensor.row_bytes <= max(tile_bytes, tensor.row_bytes * 2)
        assert rows == list(range(tensor.spec.n_rows))


@pytest.mark.parametrize(
    ("name", "tile_bytes", "tiles", "read_bytes", "write_bytes"),
    [
        # Rows of float32 are written, and rows of bfloat16 read: those of one rank, or its columns.
        ("model.embed_tokens.weight", 160, [(0, 5), (5, 1)], 5 * 4 * 2, 5 * 8 * 4),
        ("model.layers.1.self_attn.q_proj.weight", 160, [(0, 4), (4, 4)], 4 * 8 * 2, 4 * 8 * 4),
        ("model.layers.1.self_attn.k_proj.weight", 160, [(0, 2), (2, 2)], 2 * 8 * 2, 2 * 8 * 4),
        ("model.layers.1.self_attn.o_proj.weight", 160, [(0, 5), (5, 3)], 5 * 4 * 2, 5 * 8 * 4),
        ("model.layers.1.mlp.gate_proj.weight", 160, [(0, 5), (5, 1), (6, 5), (11, 1)], 5 * 8 * 2, 5 * 8 * 4),
        ("model.layers.1.mlp.down_proj.weight", 160, [(0, 3), (3, 3), (6, 2)], 3 * 6 * 2, 3 * 12 * 4),
        ("lm_head.weight", 160, [(0, 3), (3, 3)], 3 * 8 * 2, 3 * 8 * 4),
        ("model.norm.weight", 24, [(0, 6), (6, 2)], 6 * 2, 6 * 4),
        ("model.layers.1.self_attn.q_proj.weight", 63, [(0, 2), (2, 2), (4, 2), (6, 2)], 2 * 8 * 2, 2 * 8 * 4),
        ("model.embed_tokens.weight", 31, [(n, 1) for n in range(6)], 4 * 2, 8 * 4),
    ],
)  # fmt: skip
def test_tiles_and_buffers_of_two_ranks(name, tile_bytes, tiles, read_bytes, write_bytes):
    layout = build_layout(CONFIG, n_ranks=2, dtype=BFLOAT16)
    plan = build_plan(layout, dtype=FLOAT32, tile_bytes=tile_bytes)
    (tensor,) = [tensor for tensor in plan.tensors if tensor.spec.name == name]
    assert [(tile.rows.start, len(tile.rows)) for tile in tensor.tiles()] == tiles
    assert tensor.read_bytes == read_bytes
    assert tensor.write_bytes == write_bytes


def test_a_plan_adds_up():
    layout = build_layout(CONFIG, n_ranks=2, dtype=BFLOAT16)
    plan = build_plan(layout, dtype=FLOAT32, max_shard_bytes=2400, tile_bytes=5000, workers=3)
    # Embedding and head 48 each; in a layer q, o 64, k, v 32, gate, up, down 96, two norms 8; norm 8.
    assert plan.n_parameters == 48 + 2 * 496 + 8 + 48
    assert plan.tensor_bytes == 4 * 1096
    assert [file.name for file in plan.files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    # The first layer's 4 x 496 and the embedding make 2176; the next q is a 4 x 64 more.
    assert len(plan.files[0].tensors) == 1 + 9
    assert sum(file.n_bytes - len(file.header) for file in plan.files) == 4 * 1096
    assert json.loads(plan.index)["metadata"] == {"total_size": 4 * 1096}
    # down_proj is written whole, 8 x 12 x 4 bytes, and read as 8 x 6 x 2: a page and two of slack.
    assert (plan.read_tile_bytes, plan.write_tile_bytes) == (96, 384)
    # Measured on one tensor of each form.
    assert max(tensor.read_bytes for tensor in plan.tensors) == 96
    assert max(tensor.write_bytes for tensor in plan.tensors) == 384
    assert plan.buffer_bytes == 3 * 2 * (4096 + 2 * 4096)
    alone = build_plan(layout, dtype=FLOAT32, max_shard_bytes=4 * 1096)
    assert (alone.index, alone.workers) == (None, 1)


def test_a_plan_can_be_sent_to_another_process():
    layout = build_layout(CONFIG, n_ranks=2, dtype=BFLOAT16)
    plan = build_plan(layout, dtype=BFLOAT16, max_shard_bytes=500)
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert pickle.loads(pickle.dumps(plan.files[1])) == plan.files[1]


# Parameters and bytes: FACTS, cross-checked there against the published hub totals.
@pytest.mark.parametrize(
    ("name", "shape", "ranks", "vocab", "parameters", "n_tensors", "n_files"),
    [
        ("CodeLlama-7b", CODE_LLAMA_7B, 1, 32016, 6738546688, 291, 3),
        ("CodeLlama-13b", CODE_LLAMA_13B, 2, 32016, 13016028160, 363, 6),
        ("CodeLlama-34b", CODE_LLAMA_34B, 4, 32000, 33743970304, 435, 14),
        ("CodeLlama-70b", CODE_LLAMA_70B, 8, 32016, 68976910336, 723, 29),
    ],
)
def test_true_size_checkpoints_are_planned(
    tmp_path, name, shape, ranks, vocab, parameters, n_tensors, n_files
):
    write_sparse_checkpoint(tmp_path / name, replace(shape, vocab=vocab), ranks, tokenizer=False)
    job = plan_conversion(tmp_path / name, Options(skip_tokenizer=True))
    assert job.weights is not None
    assert job.weights.plan.n_parameters == parameters
    assert job.tensor_bytes == 2 * parameters
    assert len(job.weights.plan.tensors) == n_tensors
    assert len(job.weight_files) == n_files
    assert job.notes == ()


def test_code_llama_7b_is_split_as_the_published_files_are(tmp_path):
    """The hub's CodeLlama-7b-hf was split at 10 GB: 9,976,701,592 and 3,500,425,616 bytes.

    Its header differs from ours in nothing but the padding of safetensors 0.3; the sums of the
    tensors' bytes are the same.
    """
    write_sparse_checkpoint(tmp_path / "CodeLlama-7b", CODE_LLAMA_7B, 1, tokenizer=False)
    options = Options(skip_tokenizer=True, max_shard_bytes=10_000_000_000)
    weights = plan_conversion(tmp_path / "CodeLlama-7b", options).weights
    assert weights is not None
    plan = weights.plan
    published = (9_976_701_592, 3_500_425_616)
    for file, n_bytes in zip(plan.files, published, strict=True):
        assert 0 <= file.n_bytes - n_bytes + 1024 <= 2048
    assert sum(t.spec.n_bytes for t in plan.tensors) == 13_477_093_376


# By hand: parameters x bytes; 2 (key, value) x layers x key/value heads x 128 x bytes x 1,000.
@pytest.mark.parametrize(
    ("name", "shape", "ranks", "lines", "float32"),
    [
        (
            "CodeLlama-7b", CODE_LLAMA_7B, 1,
            [
                "to run it   13.5 GB of weights in bfloat16 or float16, 27.0 GB in float32;",
                "            524.3 MB more per 1,000 tokens of context, 1.0 GB in float32",
            ],
            (26_954_186_752, 1_048_576_000),
        ),
        (
            "CodeLlama-70b", CODE_LLAMA_70B, 8,
            [
                "to run it   138.0 GB of weights in bfloat16 or float16, 275.9 GB in float32;",
                "            327.7 MB more per 1,000 tokens of context, 655.4 MB in float32",
            ],
            (275_907_641_344, 655_360_000),
        ),
    ],
)  # fmt: skip
def test_a_plan_says_what_the_model_needs_to_run(tmp_path, name, shape, ranks, lines, float32):
    write_sparse_checkpoint(tmp_path / name, shape, ranks, tokenizer=False)
    job = plan_conversion(tmp_path / name, Options(skip_tokenizer=True))
    described = describe_job(job, with_space(tmp_path, 0, 0))
    assert described["run_memory"]["float32"] == {
        "weight_bytes": float32[0],
        "kv_cache_bytes_per_1000_tokens": float32[1],
    }
    for half in ("bfloat16", "float16"):
        assert described["run_memory"][half] == {
            "weight_bytes": float32[0] // 2,
            "kv_cache_bytes_per_1000_tokens": float32[1] // 2,
        }
    shown = list(plan_lines(described))
    start = shown.index(lines[0])
    assert shown[start : start + 2] == lines


def with_space(folder: Path, needed: int, free: int | None) -> OutputState:
    return OutputState(folder, None, (), Space(needed, 0, free))


def test_a_disk_that_does_not_say_what_is_free_is_not_too_small(tmp_path):
    write_sparse_checkpoint(tmp_path / "CodeLlama-7b", CODE_LLAMA_7B, 1, tokenizer=False)
    job = plan_conversion(tmp_path / "CodeLlama-7b", Options(skip_tokenizer=True))
    described = describe_job(job, with_space(tmp_path, 5, None))
    assert described["disk_missing_bytes"] == 0
    assert "disk        5 B needed, unknown free" in plan_lines(described)


def test_a_plan_says_what_memory_and_disk_are_short_of(tmp_path):
    write_sparse_checkpoint(tmp_path / "CodeLlama-7b", CODE_LLAMA_7B, 1, tokenizer=False)
    lines = {}
    for dtype in (None, FLOAT32):
        job = plan_conversion(tmp_path / "CodeLlama-7b", Options(skip_tokenizer=True, dtype=dtype))
        needed = sum(file_sizes(job, job.small_files()).values())
        enough = list(plan_lines(describe_job(job, with_space(tmp_path, needed, needed))))
        state = with_space(tmp_path, needed, needed - 1_500_000_000)
        lines[dtype] = list(plan_lines(describe_job(job, state)))
        changed = [pair for pair in zip(enough, lines[dtype], strict=True) if pair[0] != pair[1]]
        assert len(changed) == 1
        assert "too little" not in changed[0][0]
        assert changed[0][1].endswith("GB free: 1.5 GB too little")
    for of_one_dtype in lines.values():
        assert "            plus about 55 MB for Python and numpy" in of_one_dtype


@pytest.mark.parametrize(
    ("source", "target", "needs_torch"),
    [
        ("float32", "bfloat16", True),
        ("bfloat16 and float32", "float16", True),
        ("float32", "float32", False),
        ("bfloat16 and float32", "float32", False),
        ("float16", "bfloat16", False),
    ],
)
def test_only_casts_from_float32_take_the_memory_of_torch(tmp_path, source, target, needs_torch):
    write_sparse_checkpoint(tmp_path / "CodeLlama-7b", CODE_LLAMA_7B, 1, tokenizer=False)
    job = plan_conversion(tmp_path / "CodeLlama-7b", Options(skip_tokenizer=True))
    described = describe_job(job, with_space(tmp_path, 10, 10))
    lines = list(plan_lines({**described, "source_dtype": source, "dtype": target}))
    numpy_alone = "            plus about 55 MB for Python and numpy"
    with_torch = f"{numpy_alone}, and 200 MB for torch, which the cast needs"
    assert (with_torch if needs_torch else numpy_alone) in lines
