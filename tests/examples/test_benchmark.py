"""The benchmark, run as a reader would, on a checkpoint of a few megabytes; no time is asserted."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path

import pytest

from codellama_convert.convert.run import convert_checkpoint
from codellama_convert.errors import CheckpointError
from codellama_convert.formats.pth.reader import read_rank
from codellama_convert.plan.job import Options, plan_conversion

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "examples" / "benchmark"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="measures through Linux's /proc")

# Each kind once; what else there is differs by an option, and the table of a refusal names it.
MEASURED = ("floor", "cp", "auto", "floor-read", "verify", "floor-float32", "float32")


def script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def make(folder: Path, *options: str) -> Path:
    made = script("make_true_size_checkpoint.py", folder, *options)
    assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    options = ("--size=13B", "--layers=1", "--sparse")
    return make(tmp_path_factory.mktemp("sparse") / "CodeLlama-13b", *options)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    done = script(
        "benchmark.py", "--size=tiny", "--rounds=1", "--work_dir", folder / "work", "--keep",
        "--only", ",".join(MEASURED), "--json", folder / "results.json",
        "--pictures", folder / "pictures",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture(scope="module")
def filled(measured):
    folder, _ = measured
    return folder / "work" / "tiny-2-layers" / "CodeLlama-tiny"


def test_the_values_are_finite_and_torch_reads_what_the_package_converts(filled, tmp_path):
    import torch
    from safetensors.torch import load_file

    convert_checkpoint(filled, tmp_path / "out", options=Options())
    ours = load_file(tmp_path / "out" / "model.safetensors")
    ranks = [torch.load(path, weights_only=True) for path in sorted(filled.glob("*.pth"))]
    norms = [rank["layers.1.ffn_norm.weight"] for rank in ranks]
    assert torch.equal(ours["model.layers.1.post_attention_layernorm.weight"], norms[0])
    assert torch.equal(*norms)
    assert 0.5 < norms[0].float().mean() < 1.5
    head = torch.cat([rank["output.weight"] for rank in ranks])
    assert torch.equal(ours["lm_head.weight"], head)
    for tensor in ours.values():
        assert tensor.float().abs().max() < 10
        assert (tensor != 0).float().mean() > 0.99


def test_every_crc_is_the_true_one_and_a_flipped_byte_is_found(filled, tmp_path):
    for path in filled.glob("*.pth"):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            assert all(entry.CRC for entry in archive.infolist())
    copy = tmp_path / "CodeLlama-tiny"
    copy.mkdir()
    for path in filled.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    storage = read_rank(copy / "consolidated.01.pth").tensors["output.weight"].storage
    with (copy / "consolidated.01.pth").open("r+b") as file:
        file.seek(storage.offset + storage.n_bytes // 2)
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 0x10]))
    with pytest.raises(CheckpointError, match=r"consolidated\.01\.pth.*CRC-32"):
        convert_checkpoint(copy, tmp_path / "out", options=Options())


def test_a_sparse_checkpoint_has_true_crcs_and_next_to_no_bytes(sparse):
    job = plan_conversion(sparse, Options())
    assert job.weights is not None
    # 13B: embedding, head, four attention and three feed-forward matrices, three norms.
    parameters = 2 * 32016 * 5120 + 4 * 5120 * 5120 + 3 * 13824 * 5120 + 3 * 5120
    assert job.weights.plan.n_parameters == parameters
    assert job.tokenizer is not None
    assert job.tokenizer.model.n_pieces == 32016
    on_disk = sum(512 * path.stat().st_blocks for path in sparse.iterdir())
    assert on_disk < 2_000_000
    for rank in job.ranks:
        storage = rank.tensors["layers.0.attention.wo.weight"].storage
        assert storage.crc == zlib.crc32(bytes(storage.n_bytes))


def test_a_llama_3_has_its_releases_params_split_and_size(tmp_path):
    """The benchmark knew Code Llama's shapes alone."""
    folder = make(tmp_path / "Llama3.1-405B", "--size=Llama3.1-405B", "--layers=2", "--sparse")
    params = json.loads((folder / "params.json").read_text(encoding="utf-8"))
    assert params == {
        "dim": 16384, "n_layers": 2, "n_heads": 128, "n_kv_heads": 8, "vocab_size": 128256,
        "ffn_dim_multiplier": 1.2, "multiple_of": 4096, "norm_eps": 1e-05,
        "rope_theta": 500000.0, "use_scaled_rope": True,
    }  # fmt: skip
    ranks = [read_rank(path) for path in sorted(folder.glob("*.pth"))]
    assert len(ranks) == 8
    tensors = ranks[7].tensors
    assert tensors["tok_embeddings.weight"].shape == (16032, 16384)
    assert tensors["layers.1.attention.wk.weight"].shape == (128, 16384)
    assert "rope.freqs" not in tensors
    assert (folder / "tokenizer.model").exists() == (find_spec("llama_models") is not None)
    options = Options(skip_tokenizer=True)
    # Embedding and head, two layers of GQA and a feed-forward width of 53,248, and the last norm.
    layer = 2 * 16384 * 16384 + 2 * 1024 * 16384 + 3 * 53248 * 16384 + 2 * 16384
    n_bytes = 2 * (2 * 128256 * 16384 + 2 * layer + 16384)
    assert plan_conversion(folder, options).tensor_bytes == n_bytes


def test_the_ranks_of_a_sparse_checkpoint_differ_in_one_storage(sparse):
    indexes = [read_rank(path) for path in sorted(sparse.glob("*.pth"))]
    crcs = [{name: s.crc for name, s in index.storages.items()} for index in indexes]
    differing = [name for name in crcs[0] if crcs[0][name] != crcs[1][name]]
    assert differing == [indexes[0].tensors["output.weight"].storage.name]
    for index in indexes:
        storage = index.tensors["output.weight"].storage
        with index.path.open("rb") as file:
            file.seek(storage.offset)
            assert zlib.crc32(file.read(storage.n_bytes)) == storage.crc


def test_the_floor_copies_bytes_and_a_cast_s_floor_writes_them_twice(filled, tmp_path):
    source = filled / "consolidated.00.pth"
    once = script("direct_copy.py", source, "--target", tmp_path / "once", "--tile-bytes", 1 << 20)
    assert once.returncode == 0, once.stderr
    assert (tmp_path / "once").read_bytes() == source.read_bytes()
    twice = script("direct_copy.py", source, "--target", tmp_path / "twice", "--write_times", 2)
    assert twice.returncode == 0, twice.stderr
    n_blocks = -(-source.stat().st_size // 4096)
    assert (tmp_path / "twice").stat().st_size == 2 * 4096 * n_blocks
    dashes = ("--target", tmp_path / "dashes", "--write-times", 2, "--tile_bytes", 4096)
    assert script("direct_copy.py", source, *dashes).returncode == 0
    assert (tmp_path / "dashes").stat().st_size == 2 * 4096 * n_blocks
    again = script("direct_copy.py", source, "--target", tmp_path / "once")
    assert again.returncode != 0  # nothing is written over


def test_the_results_name_every_run_and_show_no_temporary_disk(measured):
    folder, table = measured
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    rows = {row["case"]: row for row in results["summary"]}
    assert tuple(rows) == MEASURED
    assert len(results["runs"]) == len(rows)
    assert results["checkpoint"]["bytes"] > 10_000_000
    for row in rows.values():
        assert row["title"] in table
        assert row["seconds"] > 0
        # A plain copy of a tiny checkpoint may end before the kernel has counted its pages.
        is_tool = row["title"].startswith(("convert", "verify"))
        assert row["peak_rss_bytes"] > (1_000_000 if is_tool else 0)
        # A run's journal is a few kB; a second copy of any tensor would be a megabyte.
        assert row["temporary_bytes"] < 65_536
    assert rows["floor"]["temporary_bytes"] == rows["floor-float32"]["temporary_bytes"] == 0
    assert rows["float32"]["bytes"] * 2 == rows["auto"]["bytes"] * 3
    ratio = rows["auto"]["seconds"] / rows["floor"]["seconds"]
    assert rows["auto"]["to_floor"] == pytest.approx(ratio)
    assert rows["floor"]["to_floor"] == 1
    assert f"| {ratio:.2f} |" in table
    outputs = {run["case"]: run["output_bytes"] for run in results["runs"]}
    assert outputs["float32"] > 1.9 * outputs["auto"]


def test_the_results_tell_no_paths(measured):
    folder, table = measured
    text = (folder / "results.json").read_text(encoding="utf-8")
    for told in (text, table):
        assert str(folder) not in told
        assert sys.prefix not in told
        assert platform.node() not in told


def test_a_kept_checkpoint_is_used_again_and_removed_without_keep(measured, tmp_path):
    folder, _ = measured
    assert [path.name for path in (folder / "work").iterdir()] == ["tiny-2-layers"]
    shutil.copytree(folder / "work", tmp_path / "work")
    again = script("benchmark.py", "--size=tiny", "--only=floor", "--work_dir", tmp_path / "work")
    assert again.returncode == 0, again.stderr
    assert "making" not in again.stderr
    assert list((tmp_path / "work").iterdir()) == []


def test_the_pictures_are_small_and_drawn_again_the_same(measured, tmp_path):
    folder, table = measured
    again = script(
        "benchmark.py", "--plot_from", folder / "results.json", "--pictures", tmp_path / "again"
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout == table
    for name in ("benchmark-time.svg", "benchmark-memory.svg"):
        drawn = (folder / "pictures" / name).read_bytes()
        assert drawn == (tmp_path / "again" / name).read_bytes()
        assert b"<svg" in drawn
        assert len(drawn) < 60_000


def test_pictures_without_matplotlib_are_refused_before_anything_is_measured(
    measured, monkeypatch, tmp_path
):
    """It was found out after all rounds, and without --json they were lost."""
    folder, table = measured
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "matplotlib.py").write_text("raise ImportError('none here')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path / "without"), str(REPOSITORY))))
    pictures = ("--pictures", tmp_path / "pictures")
    work = ("--size=tiny", "--only=floor", "--rounds=1", "--work_dir", tmp_path / "work")
    for wanted in (work, ("--plot_from", folder / "results.json")):
        refused = script("benchmark.py", *wanted, *pictures)
        assert refused.returncode == 1
        assert refused.stdout == ""
        assert len(refused.stderr.splitlines()) == 1
        assert "pip install matplotlib" in refused.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["without"]
    shown = script("benchmark.py", "--plot_from", folder / "results.json")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == table


def test_a_run_that_is_not_known_is_a_usage_error(tmp_path):
    done = script("benchmark.py", "--only=floor,warp", "--work_dir", tmp_path / "work")
    assert done.returncode == 2
    assert "warp" in done.stderr
    for name in (*MEASURED, "direct", "buffered", "float16"):
        assert name in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_on_the_disk_is_refused_with_both_sizes(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import benchmark
    import click

    benchmark.require_space(tmp_path, 1, "the checkpoint")
    with pytest.raises(click.ClickException, match=r"the checkpoint takes 1000000000\.0 GB.*free"):
        benchmark.require_space(tmp_path, 10**18, "the checkpoint")


def test_the_measured_peak_is_the_process_s_own(monkeypatch, tmp_path):
    """The kernel counts the memory of whoever starts a process into that process's ru_maxrss."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import benchmark_meter

    ballast = bytearray(b"x" * (64 << 20))
    command = [sys.executable, "-S", "-c", "import time; time.sleep(0.5)"]
    measured = benchmark_meter.measure("sleep", command, watched=[tmp_path], env={})
    assert 1 << 20 < measured.peak_rss_bytes < len(ballast)
    grown = [sys.executable, "-S", "-c", "b = b'x' * (300 << 20); import time; time.sleep(0.5)"]
    measured = benchmark_meter.measure("grow", grown, watched=[tmp_path], env={})
    assert 300 << 20 < measured.peak_rss_bytes < 360 << 20


def test_a_failing_run_tells_its_own_last_words(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import benchmark_meter
    import click

    command = ["/bin/sh", "-c", "echo no such disk >&2; exit 3"]
    with pytest.raises(click.ClickException, match=r"(?s)floor: exit 3.*no such disk"):
        benchmark_meter.measure("floor", command, watched=[tmp_path], env={})


def test_temporary_files_are_seen(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import benchmark_meter

    code = (
        "head -c 1000000 /dev/zero > $D/tmp && sync $D/tmp && sleep 0.5 && rm $D/tmp && sleep 0.2"
    )
    command = ["/bin/sh", "-c", code]
    measured = benchmark_meter.measure("x", command, watched=[tmp_path], env={"D": str(tmp_path)})
    assert measured.output_bytes == 0
    assert measured.temporary_bytes >= 1_000_000


def test_the_size_formula_agrees_with_the_tensors(monkeypatch, filled):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from make_true_size_checkpoint import SIZES

    assert SIZES["tiny"].n_bytes == plan_conversion(filled, Options()).tensor_bytes
    assert SIZES["7B"].n_bytes == 13_477_093_376  # CodeLlama-7b-hf's total_size on the hub
    assert SIZES["70B"].n_bytes == 137_953_820_672
    assert SIZES["Llama3.1-8B"].n_bytes == 16_060_522_496  # Llama-3.1-8B's total_size on the hub
    assert SIZES["Llama3.1-405B"].n_bytes == 811_706_777_600  # 405,853,388,800 parameters
