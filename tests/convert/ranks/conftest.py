"""A checkpoint whose way there and back is told by several modules."""

from __future__ import annotations

import pytest

from tests.witness.checkpoints import GQA, save_checkpoint


@pytest.fixture
def source(tmp_path):
    return save_checkpoint(tmp_path / "in", GQA, n_ranks=2)
