"""Many checkpoints with one command: each by itself, one table, and the same command resumes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from click.testing import Result

from tests.cli.running import run
from tests.cli.terminal.test_signals import hooked
from tests.faults.dying import module_that_dies
from tests.outputs import STAGING, content, finish
from tests.witness.checkpoints import GQA, MHA, random_model, save_checkpoint, tokenizer_model

CONTEXT = ("--max_position_embeddings", "1234")
SHARDS = ("--max_shard_size", "30KB")


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    """Checkpoints as people keep them: side by side, deeper, Llama 1's layout, and a torn one."""
    root = tmp_path / "my 7B downloads"
    save_checkpoint(root / "CodeLlama-7b", MHA, random_model(MHA, torch.bfloat16, 1))
    save_checkpoint(root / "old" / "llama-2-7b", GQA, random_model(GQA, torch.float16, 2))
    for name in ("7B", "13B"):
        save_checkpoint(
            root / "LLaMA" / name, MHA, random_model(MHA, torch.float16, 4), tokenizer=False
        )
    (root / "LLaMA" / "tokenizer.model").write_bytes(tokenizer_model(MHA.vocab))
    torn = save_checkpoint(root / "torn", GQA, random_model(GQA, torch.bfloat16, 3), n_ranks=2)
    rank = torn / "consolidated.01.pth"
    (root / "whole.pth").write_bytes(rank.read_bytes())
    rank.write_bytes(rank.read_bytes()[:-5000])
    return root


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with two checkpoints in it."""
    for number, name in enumerate(("CodeLlama-7b", "llama-2-7b")):
        save_checkpoint(tmp_path / "two" / name, MHA, random_model(MHA, torch.bfloat16, number))
    return tmp_path / "two"


def table(printed: str) -> dict[str, str]:
    head, *rows = printed.splitlines()
    assert head == "result              seconds  checkpoint"
    found = [re.fullmatch(r"(.{17}) {,7}[0-9]+\.[0-9]  (.*)", row) for row in rows]
    assert None not in found, printed
    return {row[2]: row[1].strip() for row in found if row is not None}


def mend(downloads: Path) -> None:
    (downloads / "whole.pth").rename(downloads / "torn" / "consolidated.01.pth")


def test_a_batch_continues_after_a_failure_and_with_the_same_command(downloads: Path) -> None:
    done = run("batch", downloads, *CONTEXT)
    assert done.exit_code == 1
    assert table(done.stdout) == {
        "CodeLlama-7b": "converted",
        "LLaMA/13B": "converted",
        "LLaMA/7B": "converted",
        "old/llama-2-7b": "converted",
        "torn": "failed",
    }
    *_, cause, last = done.stderr.splitlines()
    assert cause.startswith(f"Error: {downloads / 'torn' / 'consolidated.01.pth'}: ")
    assert last == "Error: 1 of 5 failed; their messages are above"
    assert f"2/5 {downloads / 'LLaMA' / '13B'}" in done.stderr.splitlines()
    mend(downloads)
    again = run("batch", f"{downloads}/", *CONTEXT)
    assert again.exit_code == 0, again.output
    assert table(again.stdout) == {
        "CodeLlama-7b": "already converted",
        "LLaMA/13B": "already converted",
        "LLaMA/7B": "already converted",
        "old/llama-2-7b": "already converted",
        "torn": "converted",
    }
    for name in ("CodeLlama-7b", "LLaMA/7B", "LLaMA/13B", "old/llama-2-7b", "torn"):
        output = downloads / f"{name}-hf"
        assert b'"max_position_embeddings": 1234' in (output / "config.json").read_bytes()
        assert (output / "tokenizer.json").exists()


def test_a_batch_takes_the_options_of_convert(two: Path) -> None:
    assert run("batch", two).exit_code == 0
    other = run("batch", two, "--dtype", "float16")
    assert other.exit_code == 1
    assert set(table(other.stdout).values()) == {"failed"}
    forced = run("batch", two, "--dtype", "float16", "--overwrite", "--verify", "--model_card")
    assert set(table(forced.stdout).values()) == {"converted"}
    alone = two.parent / "alone"
    for name in ("CodeLlama-7b", "llama-2-7b"):
        both = ("--output_dir", alone / name, "--dtype", "float16", "--model_card")
        assert run("convert", two / name, *both).exit_code == 0
        assert content(alone / name) == content(two / f"{name}-hf")
    assert run("batch", two, "--quiet", "--dtype", "float16").stdout == ""
    unused = run("batch", two, "--model_size", "tokenizer_only", "--model_card")
    assert unused.exit_code == 2
    assert "model_card" in unused.stderr


def test_a_machine_reads_what_became_of_each(downloads: Path) -> None:
    shutil.rmtree(downloads / "LLaMA")
    assert run("batch", downloads / "old").exit_code == 0
    done = run("batch", downloads, "--json")
    assert done.exit_code == 1
    converted, already, failed = json.loads(done.stdout)["conversions"]
    assert converted["result"] == "converted"
    assert converted["input_dir"] == str(downloads / "CodeLlama-7b")
    assert converted["output_dir"] == str(downloads / "CodeLlama-7b-hf")
    assert converted["seconds"] > 0
    assert converted["tensor_bytes"] > already["seconds"]
    assert already["result"] == "already converted"
    assert failed["result"] == "failed"
    assert failed["kind"] == "CheckpointError"
    assert failed["path"] == str(downloads / "torn" / "consolidated.01.pth")
    assert failed["exit_status"] == 1
    mend(downloads)
    assert run("batch", downloads, "--json").exit_code == 0


def test_a_batch_that_was_killed_resumes_with_the_same_bytes(two: Path) -> None:
    options = ("batch", str(two), *SHARDS)
    killed = finish([*module_that_dies(45), *options])
    assert killed.returncode == -signal.SIGKILL
    output = two / "CodeLlama-7b-hf"
    kept = list((output / STAGING).glob("model-*.safetensors"))
    assert kept
    assert not (two / "llama-2-7b-hf").exists()
    assert table(run(*options).stdout) == dict.fromkeys(("CodeLlama-7b", "llama-2-7b"), "converted")
    resumed = content(output)
    shutil.rmtree(output)
    assert run(*options).exit_code == 0
    assert content(output) == resumed


# Where the program may be when the signal comes: in a file, between two checkpoints, in the last step
# of one, after which nothing is left of it to stop.
MOMENTS = {
    "a file is sealed": ("staging.part_files:PartFiles:seal", "SIGINT", "interrupted"),
    "a checkpoint is opened": ("plan.job::open_checkpoint", "SIGTERM", "interrupted"),
    "it is published": ("staging.folder:OutputFolder:publish", "SIGHUP", "converted"),
}


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_ends_a_batch_with_its_table(two: Path, moment: str) -> None:
    """Ctrl-C stops all that is left, not the checkpoint that it finds at work alone."""
    place, name, of_the_second = MOMENTS[moment]
    for other in ("a", "z"):
        shutil.copytree(two / "llama-2-7b", two / other)
    assert run("batch", two / "CodeLlama-7b", *SHARDS).exit_code == 0
    if moment == "a checkpoint is opened":  # the first of all then
        shutil.rmtree(two / "CodeLlama-7b")
        shutil.rmtree(two / "CodeLlama-7b-hf")
    number = getattr(signal, name)
    arguments = [sys.executable, "-m", "codellama_convert", "batch", str(two), *SHARDS]
    stopped = hooked(place, number, arguments)
    assert stopped.returncode == 128 + number, stopped.stderr
    assert "Traceback" not in stopped.stderr
    first = {} if moment == "a checkpoint is opened" else {"CodeLlama-7b": "already converted"}
    n_left = 2 if of_the_second == "converted" else 3
    assert table(stopped.stdout) == {
        **first,
        "a": of_the_second,
        "llama-2-7b": "not begun",
        "z": "not begun",
    }
    assert stopped.stderr.splitlines()[-1] == (
        f"Interrupted with {n_left} of {len(table(stopped.stdout))} left; "
        "run the same command again to resume"
    )
    assert not (two / "z-hf").exists()
    assert set(table(finish(arguments).stdout).values()) <= {"converted", "already converted"}


def test_the_checkpoint_itself_a_link_and_a_dot_name_a_folder_too(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(two, target_is_directory=True)
    assert set(table(run("batch", tmp_path / "link").stdout)) == {"CodeLlama-7b", "llama-2-7b"}
    shutil.rmtree(two / "CodeLlama-7b-hf")
    monkeypatch.chdir(two / "CodeLlama-7b")
    assert table(run("batch", ".").stdout) == {".": "converted"}
    assert (two / "CodeLlama-7b-hf" / "model.safetensors").exists()


def test_two_checkpoints_never_share_an_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two commits in a hub's cache the later replaced the earlier's output under --overwrite."""
    snapshots = tmp_path / "hub" / "models--meta-llama--Llama-2-7b" / "snapshots"
    for seed, commit in enumerate(("a" * 40, "b" * 40)):
        save_checkpoint(snapshots / commit, MHA, random_model(MHA, torch.bfloat16, seed))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    done = run("batch", tmp_path / "hub", "--overwrite")
    assert done.exit_code == 1
    assert list(table(done.stdout).values()) == ["converted", "failed"]
    first, second = (snapshots / commit for commit in ("a" * 40, "b" * 40))
    assert f"Llama-2-7b-hf: is the output of {first} already; convert {second} by itself" in (
        done.stderr
    )
    again = run("batch", tmp_path / "hub")
    assert list(table(again.stdout).values()) == ["already converted", "failed"]


def refused(*arguments: object) -> Result:
    result = run("batch", *arguments)
    assert result.stdout == ""
    return result


def test_a_folder_without_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    none = refused(tmp_path / "empty")
    assert none.exit_code == 1
    assert f"Error: {tmp_path / 'empty'}: holds no checkpoint" in none.stderr
    assert refused().exit_code == 2
    assert refused(tmp_path / "missing").exit_code == 2
    assert refused(tmp_path / "empty", "--output_dir", "x").exit_code == 2


@pytest.mark.skipif(os.name == "nt", reason="names as POSIX has them")
def test_every_name_is_taken_and_printed_on_one_line(two: Path) -> None:
    hostile = "a \x1b[31m\n== forged\n"
    (two / "CodeLlama-7b").rename(two / hostile)
    for result in ("converted", "already converted"):
        done = run("batch", two)
        assert done.exit_code == 0, done.stderr
        assert table(done.stdout)["a \\x1b[31m\\n== forged\\n"] == result
        assert "\x1b" not in done.output
        assert "== forged" not in done.output.splitlines()
    assert (two / f"{hostile}-hf" / "model.safetensors").exists()
