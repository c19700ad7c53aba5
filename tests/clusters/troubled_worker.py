"""Own what befalls a dask worker in the middle of its work: what `dask worker --preload` is given.

Its environment says what. DIE_AFTER and FREEZE_AFTER name the step of the output protocol after which
it is killed or stopped. After its first file, no file may be larger than MOST_BYTES, and the files of
the first folder in REPLACE take the places of those in the second.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from codellama_convert.staging import crash_points
from tests.faults.dying import die_after


def dask_setup(worker: object) -> None:
    """Prepare it; dask calls this."""
    del worker
    if "DIE_AFTER" in os.environ:
        die_after(os.environ["DIE_AFTER"])
    if "FREEZE_AFTER" in os.environ:
        _once_after(os.environ["FREEZE_AFTER"], _freeze)
    if "MOST_BYTES" in os.environ:
        _once_after("header saved", _allow_little)
    if "REPLACE" in os.environ:
        _once_after("header saved", _replace)


def _once_after(step: str, act: Callable[[], None]) -> None:
    def pass_or_act(name: str) -> None:
        if name == step:
            crash_points.hook = None
            act()

    crash_points.hook = pass_or_act


def _freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _allow_little() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["MOST_BYTES"]), most))


def _replace() -> None:
    new, old = map(Path, os.environ["REPLACE"].split(":"))
    for path in new.iterdir():
        shutil.copyfile(path, old / f"{path.name}.new")
        (old / f"{path.name}.new").replace(old / path.name)
