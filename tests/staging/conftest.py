"""A checkpoint and what becomes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from codellama_convert.convert.run import convert_checkpoint
from tests.staging.runs import OPTIONS
from tests.witness.checkpoints import GQA, random_model, save_checkpoint


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and what an uninterrupted run makes of it."""
    folder = tmp_path_factory.mktemp("output_folder")
    save_checkpoint(folder / "in", GQA, random_model(GQA, torch.bfloat16, 3), n_ranks=2)
    convert_checkpoint(folder / "in", folder / "out", options=OPTIONS)
    return folder
