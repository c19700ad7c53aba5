"""A disk that is full while ranks are written: one line, nothing published, and it can be resumed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from codellama_convert.convert.run import run
from codellama_convert.errors import OutputError
from codellama_convert.staging import crash_points
from codellama_convert.storage.watch import Watch
from tests.faults.directions import BACK, FORWARD
from tests.faults.dying import run_and_die
from tests.outputs import STAGING, content, error_line, finish
from tests.staging.space.disks import Disk, bytes_of, fill, steps_until_refused

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts as Linux has them")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder, and four ranks of it."""
    folder = tmp_path_factory.mktemp("small_disk")
    BACK.save(folder / "in", 3)
    run(BACK.job(folder / "in"), folder / "out")
    return folder


def test_a_disk_that_is_too_small_by_one_block_is_refused_and_nothing_reserved(
    written: Path, disk: Disk
) -> None:
    disk.change("size=700k")
    job = BACK.job(written / "in")
    fill(disk, bytes_of(job) - 1)
    fact = rf"needs .* \({bytes_of(job):,} bytes\) and has "
    assert steps_until_refused(job, disk.path / "out", fact) <= {"locked"}
    assert [path.name for path in disk.path.iterdir()] == ["ballast"]
    fill(disk, bytes_of(job))
    run(job, disk.path / "out")
    assert content(disk.path / "out") == content(written / "out")


def test_a_disk_that_somebody_else_fills_is_found_before_the_data(
    written: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All ranks are reserved before the first byte of one is written."""
    disk.change("size=700k")
    job = BACK.job(written / "in")
    monkeypatch.setattr(
        crash_points, "hook", lambda name: fill(disk, 200_000) if name == "journal begun" else None
    )
    done: list[int] = []
    with pytest.raises(OutputError, match=r"cannot reserve .*: No space left on device"):
        run(job, disk.path / "out", watch=Watch(done.append))
    assert done == []
    assert [path.name for path in disk.path.iterdir()] == ["ballast"]


def test_a_disk_that_fills_up_between_two_runs_costs_no_whole_rank(
    written: Path, disk: Disk
) -> None:
    disk.change("size=700k")
    target = disk.path / "out"
    job = BACK.job(written / "in")
    run_and_die(job, target, "file journaled", times=4)
    kept = {path.name: path.stat().st_ino for path in (target / STAGING).glob("*.pth")}
    assert sorted(kept) == BACK.weights
    fill(disk, 0)
    arguments = BACK.command(written / "in", target, "--workers", "1")
    assert "needs " in error_line(finish(arguments))
    found = {path.name: path.stat().st_ino for path in (target / STAGING).glob("*.pth")}
    assert found == kept
    (disk.path / "ballast").unlink()
    assert finish(arguments).returncode == 0
    assert content(target) == content(written / "out")
    assert {name: (target / name).stat().st_ino for name in kept} == kept


def test_a_rank_too_large_for_the_file_system_is_told_the_option_that_helps(
    written: Path, tmp_path: Path
) -> None:
    """FAT32 ends at 4 GB a file; it named --max_shard_size, which this command does not have."""
    limited = ["bash", "-c", 'ulimit -f 20; exec "$@"', "bash"]  # 20 KiB
    line = error_line(finish([*limited, *BACK.command(written / "in", tmp_path / "out")]))
    assert "File too large" in line
    assert "consolidated.00.pth" in line
    assert "--ranks" in line
    assert "--max_shard_size" not in line
    ranks = FORWARD.save(tmp_path / "ranks", 3)
    line = error_line(finish([*limited, *FORWARD.command(ranks, tmp_path / "hf")]))
    assert "--max_shard_size" in line
    assert "--ranks" not in line
