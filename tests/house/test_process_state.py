"""Each test finds its process as the first one does: it ends alike alone, after others, and again."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from codellama_convert.staging import crash_points
from tests.outputs import environment
from tests.process_state import process_state

FOLDER = Path.cwd()
HANDLER = signal.getsignal(signal.SIGTERM)
LEVEL = logging.root.level
UMASK = process_state()["umask"]
THREADS = torch.get_num_threads()

# How each part of the state is changed, and changed back.
CHANGES = {
    "working folder": (lambda: os.chdir("/"), lambda: os.chdir(FOLDER)),
    "$LEFT": (lambda: os.environ.update(LEFT="1"), lambda: os.environ.pop("LEFT")),
    "umask": (lambda: os.umask(0o027), lambda: os.umask(UMASK)),
    "handler of <Signals.SIGTERM: 15>": (
        lambda: signal.signal(signal.SIGTERM, lambda *_: None),
        lambda: signal.signal(signal.SIGTERM, HANDLER),
    ),
    "sys.path": (lambda: sys.path.append("left"), lambda: sys.path.remove("left")),
    "level of logging": (lambda: logging.root.setLevel(1), lambda: logging.root.setLevel(LEVEL)),
    "hook of the crash points": (
        lambda: setattr(crash_points, "hook", print),
        lambda: setattr(crash_points, "hook", None),
    ),
    "torch's threads": (
        lambda: torch.set_num_threads(THREADS + 1),
        lambda: torch.set_num_threads(THREADS),
    ),
    "torch's dtype": (
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_dtype(torch.float32),
    ),
    "torch's determinism": (
        lambda: torch.use_deterministic_algorithms(mode=True),
        lambda: torch.use_deterministic_algorithms(mode=False),
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_seen(what):
    change, undo = CHANGES[what]
    before = process_state()
    change()
    after = process_state()
    undo()
    parts = before.keys() | after.keys()
    assert {part for part in parts if after.get(part) != before.get(part)} == {what}
    assert process_state() == before


TESTS = """
import os
import pytest
import torch

drawn = []

def test_that_leaves_something_behind():
    os.environ["LEFT"] = "a secret"

def test_that_leaves_nothing_behind(monkeypatch):
    monkeypatch.setenv("RIGHT", "a secret")

@pytest.mark.parametrize("time", range(2))
def test_that_draws(time):
    drawn.append(torch.rand(9).tolist())

def test_that_looks():
    assert drawn[0] == drawn[1]
"""


def test_a_test_that_leaves_something_behind_fails_and_each_draws_alike(tmp_path):
    """Once a pipeline that draws its tokens was expected to fill every gap right."""
    (tmp_path / "test_it.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-rE",
         "test_it.py"],
        check=False, capture_output=True, text=True, cwd=tmp_path, env=environment(), timeout=120,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout
    assert "ERROR test_it.py::test_that_leaves_something_behind - " in done.stdout
    assert " 5 passed, 1 error in " in done.stdout
    assert "LEFT" in done.stdout
    assert "a secret" not in done.stdout.replace('= "a secret"', "")
