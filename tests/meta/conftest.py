"""Own what most tests of checklists begin with."""

from __future__ import annotations

import pytest

from tests.meta.checklists import write_list
from tests.witness.checkpoints import GQA, save_checkpoint


@pytest.fixture
def download(tmp_path):
    """A download with its list, as md5sum writes it (FACTS 1.7)."""
    folder = save_checkpoint(tmp_path / "CodeLlama-7b", GQA, n_ranks=2)
    names = ["consolidated.00.pth", "consolidated.01.pth", "params.json", "tokenizer.model"]
    write_list(folder / "checklist.chk", folder, names)
    return folder
