"""The process keeps to the memory that its plan says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.witness.checkpoints import CODE_LLAMA_7B, CODE_LLAMA_70B
from tests.witness.sparse import write_sparse_checkpoint, write_sparse_folder

REPOSITORY = Path(__file__).parents[2]


def peak_of_numpy() -> int:
    """Give the peak RSS of a process that imports numpy and nothing else, in bytes."""
    code = "import numpy\nprint(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True,
        env={"PATH": "", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}, timeout=60,
    )  # fmt: skip
    return int(done.stdout) * 1024


def run_measured(*arguments: str) -> tuple[str, int]:
    """Run the command line in a process of its own; give its stdout and its peak RSS in bytes.

    VmHWM starts at zero with the program; ru_maxrss would still hold the peak of this process.
    """
    code = (
        "import sys\n"
        "from codellama_convert.cli.commands import main\n"
        "try:\n    main(sys.argv[1:], prog_name='codellama-convert')\n"
        "finally:\n"
        "    heavy = sorted({'torch', 'numpy', 'ssl', 'decimal'} & set(sys.modules))\n"
        "    status = open('/proc/self/status').read()\n"
        "    peak = status.split('VmHWM:')[1].split()[0]\n"
        "    print('\\n@@', peak, *heavy)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True,
        cwd=REPOSITORY, env={"PATH": "", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        timeout=120,
    )  # fmt: skip
    is_plan = not {"plan", "--plan"}.isdisjoint(arguments)
    # Of plan, 1 means that the disk of this machine is too small for such a model.
    assert done.returncode == 0 or (done.returncode == 1 and is_plan), done.stderr
    printed, _, figures = done.stdout.rpartition("\n@@ ")
    peak, *heavy = figures.split()
    # ssl comes with asyncio and takes 3 MB, decimal with fractions and takes 1.
    assert not {"torch", "ssl", "decimal"} & set(heavy)
    if is_plan:
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
@pytest.mark.parametrize("shape", [CODE_LLAMA_7B, CODE_LLAMA_70B], ids=["7b", "70b"])
def test_a_conversion_of_one_dtype_with_its_tokenizer_takes_little_beside_numpy(tmp_path, shape):
    """It took 13 MB more: asyncio's, ssl's and fractions', and tiles larger than they need be.

    Python and numpy take 25 to 31 MB, as much of their files as the kernel maps at once: the same
    numpy takes more where it was just installed. The rest is ours, and 64 MB where they take 26.
    """
    folder = tmp_path / "in"
    write_sparse_checkpoint(folder, replace(shape, n_layers=1), 1 if shape is CODE_LLAMA_7B else 8)
    common = ("--input_dir", str(folder), "--output_dir", str(tmp_path / "out"))
    _, peak = run_measured(*common, "--workers", "2")
    assert (tmp_path / "out" / "tokenizer.json").stat().st_size > 1_000_000
    assert peak - peak_of_numpy() < 38_000_000


@needs_proc
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_cast_of_16_bits_needs_neither_torch_nor_its_memory(tmp_path, dtype):
    """It took 266 MB: torch alone took 200 of them, and half a second to import."""
    folder = tmp_path / "in"
    write_sparse_checkpoint(folder, replace(CODE_LLAMA_7B, n_layers=1), 1)
    common = ("--input_dir", str(folder), "--output_dir", str(tmp_path / "out"))
    _, peak = run_measured(*common, "--dtype", dtype)  # which looks for torch among the modules
    assert peak < 80_000_000


@needs_proc
@pytest.mark.parametrize(
    ("more", "n_gb"), [((), 138), (("--dask", "nobody:1"), 480)], ids=["here", "on a cluster"]
)
def test_planning_70b_in_8_ranks_stays_under_64_mb(tmp_path, more, n_gb):
    folder = write_sparse_folder(tmp_path / "CodeLlama-70b-hf", CODE_LLAMA_70B, 29)
    printed, peak = run_measured("reverse", "--input_dir", str(folder), "--plan", "--json", *more)
    assert round(json.loads(printed)["read_bytes"] / 1e9) == n_gb
    assert json.loads(printed)["parameters"] == 68976910336
    assert len([one for one in json.loads(printed)["files"] if one["name"].endswith(".pth")]) == 8
    assert peak < 64_000_000


@needs_proc
@pytest.mark.parametrize("n_ranks", [1, 2, 8])
def test_the_memory_of_writing_ranks_is_small(tmp_path, n_ranks):
    """A true width, so true tiles; each rank more has a share of every buffer."""
    folder = write_sparse_folder(tmp_path / "in", replace(CODE_LLAMA_7B, n_layers=1), 2)
    common = ("reverse", "--input_dir", str(folder), "--ranks", str(n_ranks))
    printed, _ = run_measured(*common, "--plan", "--json")
    assert json.loads(printed)["buffer_bytes"] <= 32_000_000
    _, peak = run_measured(*common, "--output_dir", str(tmp_path / "out"))
    assert peak < 80_000_000
    shutil.rmtree(tmp_path / "out")


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
