"""The shell scripts in examples/, run as a user or a CI would, in the suite's own environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.dying import program_that_dies
from tests.programs import BIN, needs_commands, path_with

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


# --- names and settings that scripts trip over ----------------------------------------------------

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
