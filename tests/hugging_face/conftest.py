"""Own what most tests of a Hugging Face folder begin with."""

from __future__ import annotations

import pytest

from tests.hugging_face.folders import weights
from tests.witness.checkpoints import State


@pytest.fixture(scope="module")
def state() -> State:
    return weights()
