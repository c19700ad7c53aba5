"""Run the scripts of examples/benchmark, as a reader would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "examples" / "benchmark"

needs_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="the benchmark measures through Linux's /proc"
)


def script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, whatever that is."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def make(folder: Path, *options: str) -> Path:
    """Make a checkpoint of a true shape."""
    made = script("make_true_size_checkpoint.py", folder, *options)
    assert made.returncode == 0, made.stderr
    return folder
