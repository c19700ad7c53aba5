"""An output in one file and one in several, to be damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from codellama_convert import Options, convert_checkpoint, plan_conversion
from tests.witness.checkpoints import GQA, random_model, save_checkpoint


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A checkpoint of odd values, converted into several files ("out") and into one ("one")."""
    folder = tmp_path_factory.mktemp("verify")
    state = random_model(GQA, torch.bfloat16, 3, special_values=True)
    save_checkpoint(folder / "in", GQA, state, n_ranks=2)
    convert_checkpoint(folder / "in", folder / "out", options=Options(max_shard_bytes=60_000))
    convert_checkpoint(folder / "in", folder / "one")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One checkpoint, converted into one file ("one") and into several ("many")."""
    folder = tmp_path_factory.mktemp("damage")
    save_checkpoint(folder / "in", GQA, n_ranks=2)
    convert_checkpoint(folder / "in", folder / "one")
    convert_checkpoint(folder / "in", folder / "many", options=Options(max_shard_bytes=60_000))
    return folder


@pytest.fixture(scope="module")
def job(place):
    return plan_conversion(place / "in", Options())


@pytest.fixture
def one(place, tmp_path):
    return Path(shutil.copytree(place / "one", tmp_path / "one"))


@pytest.fixture
def many(place, tmp_path):
    return Path(shutil.copytree(place / "many", tmp_path / "many"))
