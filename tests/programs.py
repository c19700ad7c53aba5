"""Own where the programs of this environment lie, and what tests need to run them in a shell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.prefix) / "bin"

needs_commands = pytest.mark.skipif(
    not (BIN / "codellama-convert").exists() or shutil.which("bash") is None,
    reason="needs bash, and the package installed in a virtual environment with a bin folder",
)


def path_with(*folders: Path) -> str:
    """Give a PATH whose programs are looked for in these folders first."""
    return os.pathsep.join((*map(str, folders), os.environ["PATH"]))


def run_script(script: str, folder: Path) -> str:
    """Run a script of bash that must succeed, with this environment's programs; return its output."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], check=False, cwd=folder, text=True, timeout=250,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PATH": path_with(BIN), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, f"{script}\n{done.stdout}"
    return done.stdout
