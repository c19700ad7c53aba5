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

from tests.faults.dying import program_that_dies
from tests.programs import BIN, needs_commands, path_with
from tests.witness.checkpoints import GQA, MHA, random_model, save_checkpoint, tokenizer_model

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "examples"

pytestmark = needs_commands


def bash(
    script: str, *arguments: object, cwd: Path = REPOSITORY, own_group: bool = False, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a script with both streams in one, as a terminal shows them."""
    return subprocess.run(
        ["bash", str(EXAMPLES / script), *map(str, arguments)], check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=250, cwd=cwd,
        start_new_session=own_group,
        env={**os.environ, "PATH": path_with(BIN),
             "CODELLAMA_CONVERT_ENVIRONMENT": sys.prefix, "HF_HUB_OFFLINE": "1", **more},
    )  # fmt: skip


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


# --- the quickstart -------------------------------------------------------------------------------


def without_figures(text: str) -> str:
    """Leave out what differs from machine to machine: seconds, rates, memory."""
    text = re.sub(r"in [0-9.]+ s( \([0-9.]+ [MG]B/s\))?", "in S", text)
    return re.sub(r"peak memory [0-9.]+ MB", "peak memory M", text)


@pytest.mark.transformers
def test_the_quickstart_prints_what_the_readme_shows():
    output = EXAMPLES / "tiny-codellama-hf"
    was_there = output.exists()
    done = bash("quickstart.sh")
    if not was_there:
        shutil.rmtree(output, ignore_errors=True)
    assert done.returncode == 0, done.stdout
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
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
    assert without_figures(line) == without_figures(line.replace("0.01 GB/s", "10.1 MB/s"))
    assert without_figures(line) != without_figures(slower.replace("1.2", "1.3"))


# --- the smoke conversion -------------------------------------------------------------------------


@pytest.mark.transformers
def test_the_smoke_conversion_ends_with_generated_tokens(tmp_path):
    done = bash("ci_smoke.sh", tmp_path / "a folder")
    assert done.returncode == 0, done.stdout
    last = "transformers loaded 164,160 parameters and generated 8 tokens"
    assert done.stdout.splitlines()[-1] == last
    assert "equals the checkpoint" in done.stdout
    # Its pieces are all there: the infilling pieces' D stands alone in the text, too.
    assert "longer pieces" not in done.stdout
    assert (tmp_path / "a folder" / "tiny-checkpoint-hf" / "config.json").exists()


def test_the_smoke_conversion_fails_where_a_step_fails(tmp_path):
    (tmp_path / "tiny-checkpoint").touch()
    done = bash(
        "ci_smoke.sh", tmp_path, PATH=path_with(program_that_dies(tmp_path / "bin", 3), BIN)
    )
    assert done.returncode != 0
    assert "generated" not in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="a script in python's place")
@pytest.mark.parametrize(
    ("there", "missing"),
    [
        (("click", "sentencepiece", "torch"), "transformers"),  # pip install . and nothing more
        ((), "click sentencepiece torch transformers"),  # the command from elsewhere, as by pipx
    ],
)
def test_the_smoke_conversion_says_first_what_is_not_installed(tmp_path, there, missing):
    """It converted, and then ended in a traceback."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    for name in there:
        (tmp_path / f"{name}.py").touch()
    path = path_with(python.parent, BIN)
    done = bash("ci_smoke.sh", tmp_path / "work", PATH=path)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 1
    assert f"lacks {missing};" in done.stdout
    assert f"pip install {missing}\n" in done.stdout
    assert not (tmp_path / "work").exists()


# --- many checkpoints -----------------------------------------------------------------------------


@pytest.fixture
def downloads(tmp_path):
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
def one(tmp_path):
    """A folder with a single checkpoint in it."""
    save_checkpoint(tmp_path / "one" / "CodeLlama-7b", MHA, random_model(MHA, torch.bfloat16, 1))
    return tmp_path / "one"


def table(printed: str) -> dict[str, str]:
    lines = printed[printed.index("result  ") :].splitlines()[1:]
    rows = [re.fullmatch(r"(.{14}) *\d+  (.*)", line) for line in lines]
    return {Path(row[2]).name: row[1].strip() for row in rows if row is not None}


def test_a_batch_goes_on_after_a_failure_and_is_taken_up_again(downloads):
    options = ("--max_position_embeddings", "1234")
    done = bash("batch_convert.sh", downloads, *options)
    assert done.returncode == 1, done.stdout
    assert table(done.stdout) == {
        "CodeLlama-7b": "converted",
        "7B": "converted",
        "13B": "converted",
        "llama-2-7b": "converted",
        "torn": "failed (1)",
    }
    assert done.stdout.splitlines()[-1].startswith("Error: 1 of 5 failed")
    assert "consolidated.01.pth" in done.stdout
    (downloads / "whole.pth").rename(downloads / "torn" / "consolidated.01.pth")
    again = bash("batch_convert.sh", f"{downloads}/", *options)
    assert again.returncode == 0, again.stdout
    assert table(again.stdout) == {
        "CodeLlama-7b": "there already",
        "7B": "there already",
        "13B": "there already",
        "llama-2-7b": "there already",
        "torn": "converted",
    }
    for name in ("CodeLlama-7b", "LLaMA/7B", "LLaMA/13B", "old/llama-2-7b", "torn"):
        output = downloads / f"{name}-hf"
        assert b'"max_position_embeddings": 1234' in (output / "config.json").read_bytes()
        assert (output / "tokenizer.json").exists()
    forced = bash("batch_convert.sh", downloads, *options, "--overwrite")
    assert set(table(forced.stdout).values()) == {"converted"}


def test_a_batch_that_was_killed_goes_on_with_the_same_bytes(one, tmp_path):
    options = ("--max_shard_size", "30KB", "--quiet")
    dying = path_with(program_that_dies(tmp_path / "bin", 45))
    killed = bash("batch_convert.sh", one, *options, PATH=dying)
    assert killed.returncode == 1
    assert table(killed.stdout) == {"CodeLlama-7b": "failed (137)"}
    output = one / "CodeLlama-7b-hf"
    kept = list((output / ".codellama-convert.partial").glob("model-*.safetensors"))
    assert kept
    assert bash("batch_convert.sh", one, *options).returncode == 0
    resumed = content(output)
    shutil.rmtree(output)
    assert bash("batch_convert.sh", one, *options).returncode == 0
    assert content(output) == resumed


def test_a_batch_clears_up_what_was_killed_after_the_last_file(one, tmp_path):
    """The model is whole by then, but staged work still lies beside it."""
    killed = bash("batch_convert.sh", one, PATH=path_with(program_that_dies(tmp_path / "bin", 32)))
    assert table(killed.stdout) == {"CodeLlama-7b": "failed (137)"}
    output = one / "CodeLlama-7b-hf"
    assert (output / "model.safetensors").exists()
    assert (output / ".codellama-convert.partial").exists()
    again = bash("batch_convert.sh", one)
    assert table(again.stdout) == {"CodeLlama-7b": "converted"}
    assert not (output / ".codellama-convert.partial").exists()


def test_one_crash_does_not_stop_a_batch(downloads, tmp_path):
    """As where the system runs out of memory; every conversion dies here, and each is tried."""
    shutil.rmtree(downloads / "torn")
    dying = path_with(program_that_dies(tmp_path / "bin", 3))
    killed = bash("batch_convert.sh", downloads, "--quiet", PATH=dying)
    assert killed.returncode == 1
    assert list(table(killed.stdout).values()) == 4 * ["failed (137)"]


# What Ctrl-C does in a terminal: the signal goes to the script and to the program alike. The
# program sends it, once it has set up its handlers: no clock is involved.
CTRL_C = """\
#!{python}
import os, signal, sys
from codellama_convert.storage.watch import exit_on_signals
exit_on_signals()
if os.path.basename(sys.argv[2]) == "7B":
    os.killpg(0, signal.SIGINT)
from codellama_convert.__main__ import main
main()
"""


def test_ctrl_c_ends_a_batch_with_its_table(downloads, tmp_path):
    """In a temporary folder with the random name y9HH7B, the first model was taken for 7B."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "codellama-convert"
    program.write_text(CTRL_C.format(python=sys.executable))
    program.chmod(0o755)
    path = path_with(program.parent)
    stopped = bash(
        "batch_convert.sh", downloads, own_group=True, PATH=path, PYTHONPATH=str(REPOSITORY)
    )
    assert stopped.returncode == 130, stopped.stdout
    assert table(stopped.stdout) == {
        "CodeLlama-7b": "converted",
        "13B": "converted",
        "7B": "interrupted",
        "llama-2-7b": "not begun",
        "torn": "not begun",
    }
    assert not (downloads / "old" / "llama-2-7b-hf").exists()


def test_a_batch_of_tokenizers_is_taken_up_again_too(one):
    options = ("--model_size", "tokenizer_only")
    first, second = (bash("batch_convert.sh", one, *options) for _ in range(2))
    assert table(first.stdout) == {"CodeLlama-7b": "converted"}
    assert table(second.stdout) == {"CodeLlama-7b": "there already"}
    assert not (one / "CodeLlama-7b-hf" / "model.safetensors").exists()


def test_a_batch_finds_its_folder_through_a_link_and_as_a_dot(one, tmp_path):
    (tmp_path / "link").symlink_to(one, target_is_directory=True)
    linked = bash("batch_convert.sh", tmp_path / "link")
    assert table(linked.stdout) == {"CodeLlama-7b": "converted"}
    shutil.rmtree(one / "CodeLlama-7b-hf")
    dotted = bash("batch_convert.sh", ".", cwd=one / "CodeLlama-7b")
    assert table(dotted.stdout) == {"CodeLlama-7b": "converted"}
    assert (one / "CodeLlama-7b-hf" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "fact"),
    [
        ((), 2, "Usage:"),
        (("--dtype", "float16"), 2, "Usage:"),
        (("--help",), 0, "Usage:"),
        (("/no/such/folder",), 2, "/no/such/folder: no such folder"),
        ((EXAMPLES, "--output_dir", "x"), 2, "--output_dir"),
        ((EXAMPLES, "--input-dir=x"), 2, "--input-dir"),
    ],
)
def test_a_batch_needs_a_folder_and_finds_the_others_itself(arguments, status, fact):
    done = bash("batch_convert.sh", *arguments)
    assert done.returncode == status, done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert fact in done.stdout


def test_a_batch_without_any_checkpoint_says_so(tmp_path):
    done = bash("batch_convert.sh", tmp_path)
    assert done.returncode == 1
    assert "no checkpoint" in done.stdout


# --- names and settings that scripts trip over ----------------------------------------------------

HOSTILE_NAME = "a \x1b[31m\n== forged\n"


@pytest.mark.skipif(os.name == "nt", reason="names as POSIX has them")
def test_a_batch_takes_every_name_and_prints_it_as_one_word(one):
    """Newlines at the end of a name were lost, and its escape sequences reached the terminal."""
    (one / "CodeLlama-7b").rename(one / HOSTILE_NAME)
    for result in ("converted", "there already"):
        done = bash("batch_convert.sh", one)
        assert done.returncode == 0, done.stdout
        assert "\x1b" not in done.stdout
        assert not [line for line in done.stdout.splitlines() if line == "== forged"]
        last = done.stdout.splitlines()[-1]
        assert last.startswith(f"{result} ")
        assert last.endswith(r"a \E[31m\n== forged\n'")
    assert (one / f"{HOSTILE_NAME}-hf" / "model.safetensors").exists()
    dotted = bash("batch_convert.sh", ".", "--overwrite", cwd=one / HOSTILE_NAME)
    assert dotted.returncode == 0, dotted.stdout
    assert sorted(path.name for path in one.iterdir()) == [HOSTILE_NAME, f"{HOSTILE_NAME}-hf"]


SCRIPTS = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for folder in (".ci", "examples", "tests")
    for path in (REPOSITORY / folder).iterdir()
    if path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env bash")
)


def test_scripts_are_found():
    assert {".ci/run", "tests/run.sh", "examples/ci_smoke.sh"} <= set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_finds_its_folder_whatever_cdpath_says(tmp_path, name):
    """With CDPATH in the environment, cd went elsewhere, and printed where."""
    lines = (REPOSITORY / name).read_text(encoding="utf-8").splitlines()
    moves = [n for n, line in enumerate(lines) if "BASH_SOURCE" in line]
    if not moves:
        assert not [line for line in lines if re.match(r"\s*cd ", line)]
        return
    (move,) = moves
    home, decoy = tmp_path / "home", tmp_path / "decoy"
    for folder in (home, decoy):
        for inside in (".ci", "examples", "tests"):
            (folder / inside).mkdir(parents=True)
    show = 'printf "[%s]" "${root-$PWD}"'
    (home / name).write_text("\n".join([*lines[: move + 1], show]), encoding="utf-8")

    def found(**more: str) -> str:
        return subprocess.run(
            ["bash", name], check=True, text=True, stdout=subprocess.PIPE, cwd=home,
            env={**os.environ, **more},
        ).stdout  # fmt: skip

    assert found(CDPATH=str(decoy)) == found()
    assert found().startswith(f"[{home}")
