"""A checkpoint, and what a plain run makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from codellama_convert import convert_checkpoint
from tests.convert.executors.ranks import back
from tests.convert.executors.workers import OPTIONS
from tests.outputs import content
from tests.witness.checkpoints import GQA, random_model, save_checkpoint


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("executor")
    save_checkpoint(folder / "in", GQA, random_model(GQA, torch.bfloat16, 3), n_ranks=2)
    convert_checkpoint(folder / "in", folder / "out", options=OPTIONS)
    return folder


@pytest.fixture(scope="session")
def plain(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a plain run makes of the Hugging Face folder."""
    folder = tmp_path_factory.mktemp("plain-ranks")
    back(converted / "out", folder / "ranks")
    return content(folder / "ranks")
