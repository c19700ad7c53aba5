"""With an executor, what the commands do beside writing is its workers' too."""

from __future__ import annotations

from pathlib import Path

import pytest

from codellama_convert import Options, RunOptions, plan_conversion
from codellama_convert.cli import reverse
from codellama_convert.cli.steps import convert_job
from codellama_convert.convert.jobs import write_file
from codellama_convert.storage.digests import take_digest
from codellama_convert.storage.signals import StopRequest
from codellama_convert.verify.jobs import compare_some
from tests.convert.executors.workers import Counting
from tests.witness.checkpoints import GQA, save_checkpoint


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = save_checkpoint(tmp_path / "in", GQA)
    (folder / "checklist.chk").write_text(f"{'0' * 32}  consolidated.00.pth\n")
    return folder


def test_checksums_and_verify_are_work_for_the_executor(source, tmp_path):
    """They were read by the one process that had nothing else to do."""
    job = plan_conversion(source, Options(checksums="warn"))
    with Counting() as pool:
        convert_job(
            job, tmp_path / "out", RunOptions(), verify_too=True, quiet=True, stop=StopRequest(),
            executor=pool,
        )  # fmt: skip
    asked = [work for work, _ in pool.asked]
    assert asked[:2] == [take_digest, write_file]
    assert set(asked[2:]) == {compare_some}


def test_ranks_are_verified_by_the_executor(source, tmp_path, monkeypatch):
    with Counting() as pool:
        monkeypatch.setattr("codellama_convert.convert.dask.dask_executor", lambda *_: pool)
        reverse.reverse.main(
            [str(source), str(tmp_path / "out"), "--ranks", "1", "--verify", "--quiet"],
            standalone_mode=False,
        )
    asked = [work for work, _ in pool.asked]
    assert asked[0] == write_file
    assert set(asked[1:]) == {compare_some}
