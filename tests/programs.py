"""Own where the programs of this environment lie, and what tests need to run them in a shell."""

from __future__ import annotations

import os
import shutil
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
