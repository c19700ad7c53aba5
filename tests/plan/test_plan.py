"""The plan: every byte's place, spelled with small numbers, and true-size checkpoints in no time."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codellama_convert.cli.words import describe_job, plan_lines
from codellama_convert.convert.record import file_sizes
from codellama_convert.errors import ConfigError, LayoutError
from codellama_convert.model.config import ModelConfig
from codellama_convert.model.tensor_table import RULES, build_layout
from codellama_convert.plan.job import Options, plan_conversion
from codellama_convert.plan.plan import build_plan, fit_plan, split_into_files
from codellama_convert.staging.occupied import Space
from codellama_convert.staging.output_state import OutputState
from codellama_convert.tensors import BFLOAT16, FLOAT32
from tests.witness.checkpoints import (
    CODE_LLAMA_7B,
    CODE_LLAMA_13B,
    CODE_LLAMA_34B,
    CODE_LLAMA_70B,
    Shape,
    meta_shapes,
    write_sparse_checkpoint,
)

REPOSITORY = Path(__file__).parents[2]
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
    assert row.part_shape == part
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
            rows += range(tile.start_row, tile.start_row + tile.n_rows)
            if tensor.layout.tp_dim == 0:
                part = tensor.spec.n_rows // n_ranks
                assert tile.start_row // part == (tile.start_row + tile.n_rows - 1) // part
            if tensor.layout.head_dim:
                assert tile.start_row % 2 == tile.n_rows % 2 == 0
            assert tile.n_rows * tensor.row_bytes <= max(tile_bytes, tensor.row_bytes * 2)
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
    assert [(tile.start_row, tile.n_rows) for tile in tensor.tiles()] == tiles
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
    assert plan.file_bytes == sum(len(file.header) for file in plan.files) + 4 * 1096
    assert json.loads(plan.index)["metadata"] == {"total_size": 4 * 1096}
    # down_proj is written whole, 8 x 12 x 4 bytes, and read as 8 x 6 x 2: a page and two of slack.
    assert (plan.read_tile_bytes, plan.write_tile_bytes) == (96, 384)
    assert plan.buffer_bytes == 3 * 2 * (4096 + 2 * 4096)
    assert build_plan(layout, dtype=FLOAT32, max_shard_bytes=4 * 1096).index is None


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
    assert job.plan is not None
    assert job.plan.n_parameters == parameters
    assert job.plan.tensor_bytes == 2 * parameters
    assert len(job.plan.tensors) == n_tensors
    assert len(job.plan.files) == n_files
    assert job.notes == ()


def test_code_llama_7b_is_split_as_the_published_files_are(tmp_path):
    """The hub's CodeLlama-7b-hf was split at 10 GB: 9,976,701,592 and 3,500,425,616 bytes.

    Its header differs from ours in nothing but the padding of safetensors 0.3; the sums of the
    tensors' bytes are the same.
    """
    write_sparse_checkpoint(tmp_path / "CodeLlama-7b", CODE_LLAMA_7B, 1, tokenizer=False)
    options = Options(skip_tokenizer=True, max_shard_bytes=10_000_000_000)
    plan = plan_conversion(tmp_path / "CodeLlama-7b", options).plan
    assert plan is not None
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
    return OutputState(folder, None, 0, Space(needed, free))


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
    assert "            plus about 55 MB for Python and numpy" in lines[None]
    cast = "            plus about 55 MB for Python and numpy, and 260 MB for torch, which the cast needs"
    assert cast in lines[FLOAT32]


def run_measured(*arguments: str) -> tuple[str, int]:
    """Run the command line in a process of its own; give its stdout and its peak RSS in bytes.

    VmHWM starts at zero with the program; ru_maxrss would still hold the peak of this process.
    """
    code = (
        "import sys\n"
        "from codellama_convert.cli.commands import main\n"
        "try:\n    main(sys.argv[1:], prog_name='codellama-convert')\n"
        "finally:\n"
        "    heavy = sorted({'torch', 'numpy', 'click', 'tqdm'} & set(sys.modules))\n"
        "    status = open('/proc/self/status').read()\n"
        "    peak = status.split('VmHWM:')[1].split()[0]\n"
        "    print('\\n@@', peak, *heavy)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True,
        cwd=REPOSITORY, env={"PATH": "", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        timeout=120,
    )  # fmt: skip
    # Of plan, 1 means that the disk of this machine is too small for such a model.
    assert done.returncode == 0 or (done.returncode == 1 and "plan" in arguments), done.stderr
    printed, _, figures = done.stdout.rpartition("\n@@ ")
    peak, *heavy = figures.split()
    assert "torch" not in heavy
    if "plan" in arguments:
        assert "numpy" not in heavy
    return printed, int(peak) * 1024


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc"
)


@needs_proc
def test_planning_70b_stays_under_64_mb(tmp_path):
    write_sparse_checkpoint(tmp_path / "CodeLlama-70b", CODE_LLAMA_70B, 8)
    folder = str(tmp_path / "CodeLlama-70b")
    printed, peak = run_measured("plan", "--input_dir", folder, "--json")
    assert json.loads(printed)["parameters"] == 68976910336
    assert peak < 64_000_000


@needs_proc
def test_the_memory_of_converting_and_verifying_is_small_and_does_not_grow_with_the_model(tmp_path):
    """True widths, so true tiles; the second model has twice the first one's bytes."""
    peaks = []
    small = replace(CODE_LLAMA_7B, n_layers=1)
    grown = replace(CODE_LLAMA_7B, n_layers=4)
    for number, shape in enumerate((small, grown)):
        folder = tmp_path / f"in{number}"
        write_sparse_checkpoint(folder, shape, 1)
        _, peak = run_measured(
            "--input_dir", str(folder), "--output_dir", str(tmp_path / "out"), "--overwrite"
        )
        _, verify_peak = run_measured(
            "verify", "--input_dir", str(folder), "--output_dir", str(tmp_path / "out")
        )
        peaks.append(max(peak, verify_peak))
    small_bytes, grown_bytes = (2 * (32016 * 4096 * 2 + n * 202383360) for n in (1, 4))
    assert grown_bytes > 2 * small_bytes
    assert max(peaks) < 96_000_000
    assert peaks[1] - peaks[0] < 4_000_000


@needs_proc
@pytest.mark.parametrize("workers", [1, 8])
def test_the_process_keeps_to_the_buffers_that_the_plan_prints(tmp_path, workers):
    folder = tmp_path / "in"
    write_sparse_checkpoint(folder, replace(CODE_LLAMA_7B, n_layers=1), 1, tokenizer=False)
    peaks, buffers = [], []
    for arguments in (("--workers", "1", "--max_ram", "3MB"), ("--workers", str(workers))):
        common = ("--input_dir", str(folder), "--skip_tokenizer", "--json", *arguments)
        printed, _ = run_measured("plan", *common)
        buffers.append(json.loads(printed)["buffer_bytes"])
        _, peak = run_measured(*common, "--output_dir", str(tmp_path / "out"), "--overwrite")
        peaks.append(peak)
    assert buffers[0] <= 3_000_000
    assert buffers[1] <= 32_000_000
    assert peaks[1] - peaks[0] <= buffers[1] - buffers[0] + 4_000_000


@pytest.mark.parametrize(
    ("workers", "keep", "budget", "expected"),
    [
        (1, False, None, (1, 4 << 20)),  # the largest, whatever would fit
        (2, False, None, (2, 4 << 20)),
        (4, False, None, (4, 2 << 20)),
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
