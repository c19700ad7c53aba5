"""The shell scripts in examples/, run as a user or a CI would, in the suite's own environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from codellama_convert.faults import KILL_AT
from tests.checkpoints import GQA, MHA, random_model, save_checkpoint

REPOSITORY = Path(__file__).resolve().parents[1]
EXAMPLES = REPOSITORY / "examples"
BIN = Path(sys.prefix) / "bin"

pytestmark = [
    pytest.mark.transformers,
    pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash"),
    pytest.mark.skipif(
        not (BIN / "codellama-convert").exists(),
        reason="needs the package installed in a virtual environment with a bin folder",
    ),
]


def bash(script: str, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a script with both streams in one, as a terminal shows them."""
    return subprocess.run(
        ["bash", str(EXAMPLES / script), *map(str, arguments)], check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=250, cwd=REPOSITORY,
        env={**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
             "CODELLAMA_CONVERT_ENVIRONMENT": sys.prefix, "HF_HUB_OFFLINE": "1", **more},
    )  # fmt: skip


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


# --- the quickstart -------------------------------------------------------------------------------


def without_figures(text: str) -> str:
    """Leave out what differs from machine to machine: seconds, rates, memory."""
    text = re.sub(r"in [0-9.]+ s( \([0-9.]+ GB/s\))?", "in S", text)
    return re.sub(r"peak memory [0-9.]+ MB", "peak memory M", text)


def test_the_quickstart_prints_what_the_readme_shows():
    output = EXAMPLES / "tiny-codellama-hf"
    was_there = output.exists()
    done = bash("quickstart.sh")
    if not was_there:
        shutil.rmtree(output, ignore_errors=True)
    assert done.returncode == 0, done.stdout
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    shown = re.search(
        r"```console\n(\$ codellama-convert --input_dir examples/.*?)```", readme, re.DOTALL
    )
    assert shown is not None
    assert without_figures(shown[1]).strip() == without_figures(done.stdout).strip()
    assert "        The same text with every character above code 127 left out." in done.stdout


def test_figures_are_all_that_may_differ():
    line = "wrote x: 1.2 MB in 0.1 s (0.01 GB/s), peak memory 37.5 MB, 1 note"
    slower = "wrote x: 1.2 MB in 10.9 s, peak memory 40.1 MB, 1 note"
    assert without_figures(line) == without_figures(slower)
    assert without_figures(line) != without_figures(slower.replace("1.2", "1.3"))


# --- the smoke conversion -------------------------------------------------------------------------


def test_the_smoke_conversion_ends_with_generated_tokens(tmp_path):
    done = bash("ci_smoke.sh", tmp_path / "a folder")
    assert done.returncode == 0, done.stdout
    last = "transformers loaded 164,160 parameters and generated 8 tokens"
    assert done.stdout.splitlines()[-1] == last
    assert "equals the checkpoint" in done.stdout
    assert (tmp_path / "a folder" / "tiny-checkpoint-hf" / "config.json").exists()


def test_the_smoke_conversion_fails_where_a_step_fails(tmp_path):
    (tmp_path / "tiny-checkpoint").touch()
    done = bash("ci_smoke.sh", tmp_path, **{KILL_AT: "3"})
    assert done.returncode != 0
    assert "generated" not in done.stdout


# --- many checkpoints -----------------------------------------------------------------------------


@pytest.fixture
def downloads(tmp_path):
    """Two checkpoints, one of them two folders deep, and a third whose second rank is torn."""
    root = tmp_path / "my downloads"
    save_checkpoint(root / "CodeLlama-7b", MHA, random_model(MHA, torch.bfloat16, 1))
    save_checkpoint(root / "old" / "llama-2-7b", GQA, random_model(GQA, torch.float16, 2))
    torn = save_checkpoint(root / "torn", GQA, random_model(GQA, torch.bfloat16, 3), n_ranks=2)
    rank = torn / "consolidated.01.pth"
    (root / "whole.pth").write_bytes(rank.read_bytes())
    rank.write_bytes(rank.read_bytes()[:-5000])
    return root


def table(printed: str) -> dict[str, str]:
    lines = printed[printed.index("result  ") :].splitlines()[1:]
    rows = [re.fullmatch(r"(.{14}) *\d+  (.*)", line) for line in lines]
    return {Path(row[2]).name: row[1].strip() for row in rows if row is not None}


def test_a_batch_goes_on_after_a_failure_and_is_taken_up_again(downloads):
    done = bash("batch_convert.sh", downloads, "--dtype", "float32")
    assert done.returncode == 1, done.stdout
    assert table(done.stdout) == {
        "CodeLlama-7b": "converted",
        "llama-2-7b": "converted",
        "torn": "failed (1)",
    }
    assert done.stdout.splitlines()[-1].startswith("Error: 1 of 3 failed")
    assert "consolidated.01.pth" in done.stdout
    (downloads / "whole.pth").rename(downloads / "torn" / "consolidated.01.pth")
    again = bash("batch_convert.sh", f"{downloads}/", "--dtype", "float32")
    assert again.returncode == 0, again.stdout
    assert table(again.stdout) == {
        "CodeLlama-7b": "there already",
        "llama-2-7b": "there already",
        "torn": "converted",
    }
    for folder in (downloads / "CodeLlama-7b-hf", downloads / "old" / "llama-2-7b-hf"):
        assert b'"torch_dtype": "float32"' in (folder / "config.json").read_bytes()
    forced = bash("batch_convert.sh", downloads, "--dtype", "float32", "--overwrite")
    assert set(table(forced.stdout).values()) == {"converted"}


def test_a_batch_that_was_killed_goes_on_with_the_same_bytes(downloads):
    shutil.rmtree(downloads / "torn")
    shutil.rmtree(downloads / "old")
    options = ("--max_shard_size", "30KB", "--quiet")
    killed = bash("batch_convert.sh", downloads, *options, **{KILL_AT: "20"})
    assert killed.returncode == 137
    assert table(killed.stdout) == {"CodeLlama-7b": "interrupted"}
    output = downloads / "CodeLlama-7b-hf"
    kept = list((output / ".codellama-convert.partial").glob("model-*.safetensors"))
    assert kept
    assert bash("batch_convert.sh", downloads, *options).returncode == 0
    resumed = content(output)
    shutil.rmtree(output)
    assert bash("batch_convert.sh", downloads, *options).returncode == 0
    assert content(output) == resumed


@pytest.mark.parametrize(
    ("arguments", "status", "fact"),
    [
        ((), 2, "Usage:"),
        (("--dtype", "float16"), 2, "Usage:"),
        (("/no/such/folder",), 2, "no such folder"),
        ((EXAMPLES / "tiny-codellama" / "..",), 0, "converted"),
    ],
)
def test_a_batch_needs_a_folder(arguments, status, fact, tmp_path):
    if status == 0:  # the accepted neighbour, on a copy
        shutil.copytree(EXAMPLES / "tiny-codellama", tmp_path / "tiny-codellama")
        arguments = (tmp_path,)
    done = bash("batch_convert.sh", *arguments)
    assert done.returncode == status, done.stdout
    assert fact in done.stdout


def test_a_batch_without_any_checkpoint_says_so(tmp_path):
    done = bash("batch_convert.sh", tmp_path)
    assert done.returncode == 1
    assert "no checkpoint" in done.stdout
