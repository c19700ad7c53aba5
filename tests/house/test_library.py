"""The library as a script calls it: what the command line would refuse, it refuses too."""

from __future__ import annotations

from pathlib import Path

import pytest

from codellama_convert import (
    RunOptions,
    convert_checkpoint,
)
from codellama_convert.errors import ConvertError
from tests.witness.checkpoints import GQA, save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("library") / "in", GQA)


def test_overwriting_may_be_asked_for_in_either_place(checkpoint: Path, tmp_path: Path) -> None:
    """Beside run options it was passed over."""
    for _ in range(2):
        convert_checkpoint(
            checkpoint, tmp_path / "out", run_options=RunOptions(sha256=True), overwrite=True
        )
    convert_checkpoint(checkpoint, tmp_path / "out", run_options=RunOptions(overwrite=True))
    with pytest.raises(ConvertError, match="not empty"):
        convert_checkpoint(checkpoint, tmp_path / "out", run_options=RunOptions(sha256=True))
