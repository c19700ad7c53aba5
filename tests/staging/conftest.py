"""A checkpoint and what becomes of it, and a disk that fills up."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from codellama_convert.convert.run import convert_checkpoint
from tests.staging.runs import OPTIONS
from tests.staging.space.disks import Disk
from tests.witness.checkpoints import GQA, random_model, save_checkpoint


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and what an uninterrupted run makes of it."""
    folder = tmp_path_factory.mktemp("output_folder")
    save_checkpoint(folder / "in", GQA, random_model(GQA, torch.bfloat16, 3), n_ranks=2)
    convert_checkpoint(folder / "in", folder / "out", options=OPTIONS)
    assert len(list((folder / "out").glob("model-*.safetensors"))) == 6
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Too small for the model by some blocks."""
    made = Disk(tmp_path / "disk")
    made.path.mkdir()
    problem = made.mount("size=200k") if os.geteuid() == 0 else "only root may mount"
    if problem:
        pytest.skip(problem)
    try:
        yield made
    finally:
        subprocess.run(["umount", "-l", str(made.path)], check=True)
