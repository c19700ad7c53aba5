"""A checkpoint for the command line."""

from __future__ import annotations

import pytest

from tests.witness.checkpoints import GQA, save_checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    return save_checkpoint(tmp_path / "CodeLlama-7b", GQA, n_ranks=1)
