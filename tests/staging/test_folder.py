"""The promise of the output folder: after a kill at any instant, nothing that loads or all of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from codellama_convert.convert.run import RunOptions, convert_checkpoint, run
from codellama_convert.errors import CastError, ConvertError, Interrupted, OutputError
from codellama_convert.formats.pth.reader import read_rank
from codellama_convert.plan.job import Options, plan_conversion
from codellama_convert.staging.folder import OutputFolder
from codellama_convert.storage.signals import StopRequest
from codellama_convert.storage.watch import Watch
from codellama_convert.tensors import FLOAT16, FLOAT32
from tests.faults.dying import module_that_dies
from tests.outputs import ROOT, STAGING, StopAfter, command, content, environment, finish, loads
from tests.staging.runs import OPTIONS
from tests.witness.checkpoints import GQA, MHA, random_model, save_checkpoint

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills and signals as POSIX has them")


def start(source: Path, target: Path, *more: str, kill_at: int | None = None) -> int:
    """Run the command line in a process of its own; give its exit status, -9 for a kill."""
    arguments = command(source, target, *more)
    if kill_at is not None:
        arguments = [*module_that_dies(kill_at), *arguments[3:]]
    done = finish(arguments)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode


# --- resuming -------------------------------------------------------------------------------------


def interrupted(source: Path, target: Path, options: Options, looks: int = 30) -> None:
    with pytest.raises(Interrupted) as caught:
        run(plan_conversion(source, options), target, watch=Watch(stop=StopAfter(looks)))
    assert "run the same command again" in str(caught.value)
    assert STAGING in str(caught.value)


def test_whole_files_are_kept_and_not_written_again(converted, tmp_path):
    target = tmp_path / "out"
    interrupted(converted / "in", target, OPTIONS)
    staged = sorted((target / STAGING).glob("model-*.safetensors"))
    assert staged
    assert not list((target / STAGING).glob("*.part"))
    inodes = {path.name: path.stat().st_ino for path in staged}
    run(plan_conversion(converted / "in", OPTIONS), target)
    assert content(target) == content(converted / "out")
    assert {name: (target / name).stat().st_ino for name in inodes} == inodes


def test_a_staged_file_that_was_damaged_is_written_again(converted, tmp_path):
    target = tmp_path / "out"
    interrupted(converted / "in", target, OPTIONS)
    (first, *_) = sorted((target / STAGING).glob("model-*.safetensors"))
    damaged = bytearray(first.read_bytes())
    damaged[-5] ^= 4
    first.write_bytes(damaged)
    run(plan_conversion(converted / "in", OPTIONS), target)
    assert content(target) == content(converted / "out")


@pytest.mark.parametrize("tail", [b'{"file":{"name":"mod', b"\x00" * 50, b'{"x":1}\n'])
def test_a_torn_journal_line_means_nothing(converted, tmp_path, tail):
    target = tmp_path / "out"
    interrupted(converted / "in", target, OPTIONS)
    with (target / STAGING / "journal.jsonl").open("ab") as journal:
        journal.write(tail)
    interrupted(converted / "in", target, OPTIONS, looks=10)
    run(plan_conversion(converted / "in", OPTIONS), target)
    assert content(target) == content(converted / "out")


def test_odd_values_in_files_that_were_kept_are_still_reported(tmp_path):
    state = {name: torch.ones_like(t) for name, t in random_model(MHA, torch.bfloat16, 5).items()}
    state["tok_embeddings.weight"][0, 0] = float("nan")  # in the first file
    state["tok_embeddings.weight"][0, 1] = 2e-8
    save_checkpoint(tmp_path / "in", MHA, state)
    options = Options(max_shard_bytes=20_000, dtype=FLOAT16, workers=1)
    job = plan_conversion(tmp_path / "in", options)
    stop = StopRequest()
    first_file_bytes = sum(tensor.spec.n_bytes for tensor in job.weight_files[0].tensors)
    done = 0

    def stop_after_the_first_file(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if done > first_file_bytes:
            stop.ask(signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(job, tmp_path / "out", watch=Watch(stop_after_the_first_file, stop))
    assert (tmp_path / "out" / STAGING / job.weight_files[0].name).exists()
    report = run(job, tmp_path / "out")
    assert report.nonfinite == {"model.embed_tokens.weight": 1}
    assert report.became_zero == {"model.embed_tokens.weight": 1}


def test_odd_values_are_still_reported_where_only_publishing_was_left(tmp_path, monkeypatch):
    """A run that was killed in its last second had said nothing of them yet."""
    state = random_model(MHA, torch.bfloat16, 5)
    state["norm.weight"][0] = float("inf")
    save_checkpoint(tmp_path / "in", MHA, state)
    job = plan_conversion(tmp_path / "in", Options())
    monkeypatch.setattr(OutputFolder, "publish", raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(job, tmp_path / "out")
    monkeypatch.undo()
    assert not loads(tmp_path / "out")
    report = run(job, tmp_path / "out")
    assert loads(tmp_path / "out")
    assert report.nonfinite == {"model.norm.weight": 1}
    assert report.kept_bytes == report.tensor_bytes


def raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_one_storage_behind_several_files_is_still_checked_after_a_resume(tmp_path):
    """A rank with one storage for all tensors: its sum spans files of both runs."""
    state = random_model(GQA, torch.bfloat16, 3)
    save_checkpoint(tmp_path / "in", GQA, state, n_ranks=2, storage="flat")
    convert_checkpoint(tmp_path / "in", tmp_path / "whole", options=OPTIONS)
    interrupted(tmp_path / "in", tmp_path / "out", OPTIONS)
    run(plan_conversion(tmp_path / "in", OPTIONS), tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    rank = tmp_path / "in" / "consolidated.01.pth"
    damaged = bytearray(rank.read_bytes())
    storage = read_rank(rank).storages["data/0"]
    damaged[storage.offset + storage.n_bytes - 1] ^= 1  # what the first run had not read yet
    interrupted(tmp_path / "in", tmp_path / "out2", OPTIONS)
    rank.write_bytes(damaged)
    with pytest.raises(ConvertError, match=r"consolidated\.01\.pth.*CRC-32 mismatch"):
        run(plan_conversion(tmp_path / "in", OPTIONS), tmp_path / "out2")
    assert not loads(tmp_path / "out2")


def test_staged_work_of_other_options_is_refused_with_both_values(converted, tmp_path):
    target = tmp_path / "out"
    interrupted(converted / "in", target, OPTIONS)
    other = Options(max_shard_bytes=60_000, dtype=FLOAT32)
    with pytest.raises(OutputError) as caught:
        run(plan_conversion(converted / "in", other), target)
    for fact in ("bfloat16", "float32", "--restart"):
        assert fact in str(caught.value)
    run(plan_conversion(converted / "in", other), target, RunOptions(restart=True))
    assert json.loads((target / "config.json").read_text())["torch_dtype"] == "float32"
    assert not (target / STAGING).exists()


def test_staged_work_of_other_weights_is_refused_by_the_files_name(converted, tmp_path):
    target = tmp_path / "out"
    interrupted(converted / "in", target, OPTIONS)
    save_checkpoint(tmp_path / "in", GQA, random_model(GQA, torch.bfloat16, 4), n_ranks=2)
    with pytest.raises(OutputError, match=r"consolidated\.00\.pth"):
        run(plan_conversion(tmp_path / "in", OPTIONS), target)


def test_a_cast_that_cannot_succeed_leaves_nothing_staged(tmp_path):
    state = random_model(MHA, torch.bfloat16, 5)
    state["output.weight"][0, 0] = 1e30
    save_checkpoint(tmp_path / "in", MHA, state)
    options = Options(max_shard_bytes=30_000, dtype=FLOAT16)
    with pytest.raises(CastError):
        convert_checkpoint(tmp_path / "in", tmp_path / "out", options=options)
    assert not (tmp_path / "out").exists()


def test_the_same_command_twice_gives_the_same_record(converted, tmp_path):
    """Nothing of times, machines, workers or buffers may enter conversion.json."""
    options = Options(max_shard_bytes=60_000, workers=5, tile_bytes=999, io_mode="buffered")
    elsewhere = tmp_path / "elsewhere" / "in"
    shutil.copytree(converted / "in", elsewhere)
    convert_checkpoint(elsewhere, tmp_path / "other", options=options)
    assert content(tmp_path / "other") == content(converted / "out")


# --- other runs, full disks, signals --------------------------------------------------------------


def test_a_second_run_in_the_same_folder_is_refused(converted, tmp_path):
    import fcntl

    target = tmp_path / "out"
    target.mkdir()
    lock = target / ".codellama-convert.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another conversion"):
            run(plan_conversion(converted / "in", OPTIONS), target)
    run(plan_conversion(converted / "in", OPTIONS), target)
    assert content(target) == content(converted / "out")


def test_a_limit_on_file_sizes_is_met_before_any_data_is_written(converted, tmp_path):
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "from codellama_convert.__main__ import main\n"
        "main()\n"
    )
    target = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", code, *command(converted / "in", target)[3:]], check=False,
        capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("Error: ")
    assert "File too large" in line
    assert "model-00001-of-00006.safetensors" in line
    assert not loads(target)
    assert not target.exists()
    assert start(converted / "in", target) == 0


def test_a_journal_that_cannot_be_read_is_one_line(converted, tmp_path):
    target = tmp_path / "out"
    (target / STAGING / "journal.jsonl").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"journal\.jsonl: cannot read") as caught:
        run(plan_conversion(converted / "in", OPTIONS), target)
    assert "\n" not in str(caught.value)


def test_killed_at_random_times_it_still_arrives(converted, tmp_path):
    expected = content(converted / "out")
    target = tmp_path / "out"
    delay = 0.15
    for _ in range(6):
        child = subprocess.Popen(
            command(converted / "in", target), cwd=ROOT, env=environment(),
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(delay)
        child.kill()
        child.wait()
        if loads(target):
            assert {n: c for n, c in content(target).items() if n in expected} == expected
            break
        delay += 0.12
    if loads(target) and not (target / STAGING).exists():
        (target / ".codellama-convert.lock").unlink(missing_ok=True)
    else:
        assert start(converted / "in", target) == 0
    assert content(target) == expected
