"""Own the death of a process: at a chosen step of the output protocol it is killed, as by a power cut.

`python -m tests.faults.dying 36 convert --input_dir ...` is the command line that dies at the 36th step.
It starts as fast as the program: no torch comes with it.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from itertools import count
from pathlib import Path

from codellama_convert.__main__ import main
from codellama_convert.convert.run import run
from codellama_convert.plan.job import Job
from codellama_convert.plan.run_options import RunOptions
from codellama_convert.staging import crash_points as faults
from codellama_convert.storage.lock import LOCK_NAME

_ROOT = Path(__file__).resolve().parents[2]


def die_at(number: int) -> None:
    """Kill this process at a later step: at once, nothing flushed, nothing cleaned up."""
    steps = count(1)

    def pass_or_die(name: str) -> None:
        del name
        if next(steps) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    faults.hook = pass_or_die


def die_after(step: str, times: int = 1) -> None:
    """Kill this process right after a step, when it is passed for the n-th time."""
    steps = count(1)

    def pass_or_die(name: str) -> None:
        if name == step and next(steps) == times:
            os.kill(os.getpid(), signal.SIGKILL)

    faults.hook = pass_or_die


def run_and_die(
    job: Job, target: Path, step: str, *, how: RunOptions | None = None, times: int = 1
) -> None:
    """Run a job in a forked child that dies right after a step; the lock that it leaves goes."""
    pid = os.fork()
    if pid == 0:
        try:
            die_after(step, times)
            run(job, target, how)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    (target / LOCK_NAME).unlink()


def module_that_dies(kill_at: int) -> list[str]:
    """Spell the command line that dies at a step; its own arguments follow."""
    return [sys.executable, "-m", "tests.faults.dying", str(kill_at)]


def program_that_dies(folder: Path, kill_at: int) -> Path:
    """Put a `codellama-convert` that dies at a step into a folder for PATH, and return the folder."""
    folder.mkdir(parents=True)
    program = folder / "codellama-convert"
    start = shlex.join(module_that_dies(kill_at))
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(_ROOT))} exec {start} "$@"\n', encoding="utf-8"
    )
    program.chmod(0o755)
    return folder


if __name__ == "__main__":
    die_at(int(sys.argv.pop(1)))
    main()
