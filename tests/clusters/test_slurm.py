"""The Slurm script of examples/clusters, with a stand-in for sbatch that runs what it is given."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.outputs import ROOT, content, convert_whole
from tests.programs import BIN, needs_commands, path_with

pytestmark = needs_commands

SCRIPT = ROOT / "examples" / "clusters" / "slurm_array.sh"
# Notes its arguments, runs every task of an array but the one in LOST, and what follows it unless
# NO_END is set, and prints a job's number.
SBATCH = """\
#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$SUBMITTED"
array=
while [[ $1 == --* ]]; do
  if [[ $1 == --array=1-* ]]; then array=${1#--array=1-}; fi
  shift
done
if [[ -z $array && -z ${NO_END-} ]]; then bash "$@" >&2; fi
for ((task = 1; task <= ${array:-0}; task++)); do
  if ((task != ${LOST:-0})); then SLURM_ARRAY_TASK_ID=$task bash "$@" >&2; fi
done
echo "42;cluster"
"""


def submit(tmp_path: Path, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir(exist_ok=True)
    program.write_text(SBATCH, encoding="utf-8")
    program.chmod(0o755)
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, arguments)], check=False, text=True, capture_output=True,
        timeout=120, cwd=tmp_path,
        env={**os.environ, "PATH": path_with(program.parent, BIN), "PYTHONPATH": str(ROOT),
             "SUBMITTED": str(tmp_path / "submitted"), **more},
    )  # fmt: skip


@pytest.mark.parametrize("lost", ["0", "2"])
def test_the_script_submits_the_parts_and_what_finishes_them(tmp_path: Path, lost: str) -> None:
    convert_whole(tmp_path)
    options = ("--max_shard_size", "60KB", "--verify")  # which is the end's
    done = submit(tmp_path, 3, "in", "a new folder", *options, LOST=lost)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "submitted 42 (3 parts), and 42 to finish after them\n"
    assert content(tmp_path / "a new folder") == content(tmp_path / "out")
    assert done.stderr.count("wrote part ") == (3 if lost == "0" else 2), done.stderr
    parts, end = (tmp_path / "submitted").read_text(encoding="utf-8").splitlines()
    assert "--array=1-3" in parts
    assert "--dependency=afterany:42 " in end


def test_restart_is_for_the_end_and_the_parts_say_so(tmp_path: Path) -> None:
    """What an earlier conversion with other options has left goes away there."""
    convert_whole(tmp_path)
    options = ("--max_shard_size", "60KB")
    left = submit(tmp_path, 2, "in", "new", *options, "--dtype", "float16", LOST="2", NO_END="1")
    assert left.returncode == 0, left.stderr
    refused = submit(tmp_path, 2, "in", "new", *options)
    assert refused.stderr.count("discard it with --restart in the command without --part") == 2
    assert not (tmp_path / "new" / "config.json").exists()
    done = submit(tmp_path, 2, "in", "new", *options, "--restart")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("--restart") >= 2, "each part refuses it"
    assert content(tmp_path / "new") == content(tmp_path / "out")


@pytest.mark.parametrize("arguments", [(), ("0", "in", "out"), ("3", "in"), ("in", "out")])
def test_the_script_says_how_it_is_used(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    refused = submit(tmp_path, *arguments)
    assert refused.returncode == 2
    assert refused.stderr.startswith("Usage: ")
    assert not (tmp_path / "submitted").exists()
