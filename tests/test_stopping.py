"""A signal stops the program where it can go on later, whatever it is busy with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.checkpoints import GQA, random_model, save_checkpoint
from tests.outputs import ROOT, STAGING, command, content, environment, finish, loads

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")

# Runs the command line; the first call of the named function first sends the named signal.
HOOKED = """
import importlib, os, signal, sys
module, owner, name, number, times = sys.argv[1:6]
del sys.argv[1:6]
holder = importlib.import_module("codellama_convert." + module)
holder = getattr(holder, owner) if owner else holder
real = getattr(holder, name)
left = int(times)
def hooked(*arguments, **named):
    global left
    while left:
        left -= 1
        os.kill(os.getpid(), int(number))
    return real(*arguments, **named)
setattr(holder, name, hooked)
from codellama_convert.__main__ import main
main()
"""


def hooked(
    place: str, number: int, arguments: list[str], *, times: int = 1
) -> subprocess.CompletedProcess[str]:
    """Run a command that gets a signal when it first comes to a place: module:owner:function."""
    module, owner, name = place.split(":")
    start = [sys.executable, "-c", HOOKED, module, owner, name, str(int(number)), str(times)]
    return finish([*start, *arguments[3:]])


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and what an uninterrupted run makes of it."""
    folder = tmp_path_factory.mktemp("stopping")
    save_checkpoint(folder / "in", GQA, random_model(GQA, torch.bfloat16, 3), n_ranks=2)
    assert finish(command(folder / "in", folder / "out")).returncode == 0
    return folder


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT"])
@pytest.mark.parametrize("before", ["SIG_IGN", "SIG_DFL"])
def test_a_signal_that_the_caller_has_ignored_stays_ignored(
    converted: Path, tmp_path: Path, name: str, before: str
) -> None:
    """Under nohup a closed terminal must not end a conversion; it did."""
    number, ignored = getattr(signal, name), before == "SIG_IGN"
    starter = (
        "import os, signal, sys\n"
        f"signal.signal({int(number)}, signal.{before})\n"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
    )
    hook = ["-c", HOOKED, "convert", "OutputFolder", "seal", str(int(number)), "1"]
    arguments = command(converted / "in", tmp_path / "out")[3:]
    done = subprocess.run(
        [sys.executable, "-c", starter, *hook, *arguments], check=False, capture_output=True,
        text=True, cwd=ROOT, env=environment(), timeout=120,
    )  # fmt: skip
    assert done.returncode == (0 if ignored else 128 + number), done.stderr
    assert loads(tmp_path / "out") == ignored
    if ignored:
        assert content(tmp_path / "out") == content(converted / "out")
    else:
        assert (tmp_path / "out" / STAGING).is_dir()
