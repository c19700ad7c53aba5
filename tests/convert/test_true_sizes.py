"""What `python -m tests.faults.sweep sizes` does with more than 4 GB, at a small size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.convert.true_sizes import RANK_OVER_4_GB, differing_ranks

SMALL = replace(RANK_OVER_4_GB, dim=64, hidden=128, vocab=640)


def test_a_rank_is_torchs_own_and_a_source_of_other_numbers_is_seen(tmp_path: Path) -> None:
    (tmp_path / "same").mkdir()
    assert differing_ranks(tmp_path / "same", SMALL) == []
    (tmp_path / "other").mkdir()
    assert differing_ranks(tmp_path / "other", SMALL, plant=False) == ["consolidated.00.pth"]
