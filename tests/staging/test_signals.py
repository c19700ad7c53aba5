"""A signal while files are staged: what is whole is kept, and the same command resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch

from tests.outputs import ROOT, STAGING, command, content, environment, finish, loads
from tests.witness.checkpoints import MHA, random_model, save_checkpoint

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills and signals as POSIX has them")


# Runs the command line, which gets the signal once the first file is whole.
SIGNALLED = """
import os, sys
from codellama_convert.__main__ import main
from codellama_convert.staging import crash_points
number = int(sys.argv.pop(1))
def signalled(step):
    if step == "file named":
        crash_points.hook = None
        os.kill(os.getpid(), number)
crash_points.hook = signalled
main()
"""


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_keeps_what_is_whole_and_tells_how_to_resume(converted, tmp_path, name, status):
    number = signal.Signals[name]  # here and not above: Windows, which skips, has no SIGHUP
    target = tmp_path / "out"
    arguments = command(converted / "in", target, "--workers", "1")
    stopped = finish([sys.executable, "-c", SIGNALLED, str(int(number)), *arguments[3:]])
    assert stopped.returncode == status, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert "run the same command again to resume" in stopped.stderr.splitlines()[-1]
    assert not loads(target)
    kept = {p.name: p.stat().st_ino for p in (target / STAGING).glob("*.safetensors")}
    assert len(kept) == 1
    assert finish(arguments).returncode == 0
    assert {name: (target / name).stat().st_ino for name in kept} == kept
    assert content(target) == content(converted / "out")
    assert not (target / STAGING).exists()


def test_a_signal_during_the_imports_gives_no_traceback(tmp_path):
    save_checkpoint(tmp_path / "in", MHA, random_model(MHA, torch.bfloat16))
    code = (
        "import builtins, os, signal, sys\n"
        "from codellama_convert.__main__ import main\n"
        "real, wanted = builtins.__import__, sys.argv.pop(1)\n"
        "def interrupted(name, *rest, **named):\n"
        "    if name == wanted:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return real(name, *rest, **named)\n"
        "builtins.__import__ = interrupted\n"
        "main()\n"
    )
    for module in ("click", "numpy", "codellama_convert.plan.job"):
        done = subprocess.run(
            [sys.executable, "-c", code, module, *command(tmp_path / "in", tmp_path / "out")[3:]],
            check=False, capture_output=True, text=True, cwd=ROOT, env=environment(),
        )  # fmt: skip
        assert done.returncode == 130, (module, done.stderr)
        # numpy is imported when the notes of the plan are printed, and the run may be under way.
        said = ("note: ", "Interrupted; run the same command again to resume")
        assert [line for line in done.stderr.splitlines() if not line.startswith(said)] == [], (
            module
        )
    assert not loads(tmp_path / "out")
