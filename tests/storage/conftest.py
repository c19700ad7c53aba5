"""A file of random bytes, and every way to read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from codellama_convert.storage import blocks as files
from codellama_convert.storage.blocks import IoMode
from tests.storage.content import CONTENT


@pytest.fixture(params=["buffered", "auto", "no-positional-io"])
def io_mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> IoMode:
    """The page cache, past it where the file system can, and the way of Windows: seek and read."""
    if request.param == "no-positional-io":
        monkeypatch.setattr(files, "_HAS_POSITIONAL_IO", False)
        return "auto"
    mode: IoMode = request.param
    return mode


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path
