"""A checkpoint and what becomes of it, beside an older model of its shape."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from codellama_convert.convert.run import convert_checkpoint
from tests.outputs import content
from tests.staging.publishing.stopped import OPTIONS
from tests.witness.checkpoints import GQA, random_model, save_checkpoint


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and what becomes of it; another model of the same shape, `in-old` and `old`."""
    folder = tmp_path_factory.mktemp("publishing")
    save_checkpoint(folder / "in", GQA, random_model(GQA, torch.bfloat16, 3), n_ranks=2)
    convert_checkpoint(folder / "in", folder / "out", options=OPTIONS)
    save_checkpoint(folder / "in-old", GQA, random_model(GQA, torch.bfloat16, 99), n_ranks=2)
    convert_checkpoint(folder / "in-old", folder / "old", options=OPTIONS)
    assert content(folder / "old").keys() == content(folder / "out").keys()
    return folder
