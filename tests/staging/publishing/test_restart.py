"""--restart drops the work of a run that was publishing, and nothing that is not ours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from codellama_convert.convert.run import RunOptions, run
from codellama_convert.errors import OutputError
from codellama_convert.plan.job import plan_conversion
from tests.outputs import content, loads
from tests.staging.publishing.stopped import N_MOVES, OPTIONS, SHARD, convert, stop_in_publish

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills as POSIX has them")


@pytest.mark.parametrize(
    ("kill_at", "times"), [("publishing journaled", 1), ("file moved", 1), ("file moved", 9),
                           ("published", 1), ("staging emptied", 1)],
)  # fmt: skip
def test_restart_drops_what_was_moved_too(
    converted: Path, tmp_path: Path, kill_at: str, times: int
) -> None:
    """Its hint promised that; it refused the folder for the files that it had moved there itself."""
    target = tmp_path / "out"
    stop_in_publish(converted, target, kill_at, times=times)
    held = [path.open("rb") for path in target.rglob("*.safetensors")]  # so no inode comes again
    assert len(held) == 6
    dropped = {os.fstat(file.fileno()).st_ino for file in held}
    convert(converted, target, RunOptions(restart=True))
    assert content(target) == content(converted / "out")
    assert not dropped & {path.stat().st_ino for path in target.iterdir()}
    for file in held:
        file.close()


@pytest.mark.parametrize("name", ["notes.txt", SHARD])
def test_restart_refuses_what_is_not_ours_and_moves_nothing(
    converted: Path, tmp_path: Path, name: str
) -> None:
    target = tmp_path / "out"
    stop_in_publish(converted, target, "file moved", times=N_MOVES - 1)
    (target / name).write_bytes(b"mine")
    before = content(target)
    with pytest.raises(OutputError, match=f"not empty .*{name}"):
        convert(converted, target, RunOptions(restart=True))
    assert content(target) == before
    convert(converted, target, RunOptions(restart=True, overwrite=True))
    assert content(target).items() >= content(converted / "out").items()


def test_restart_drops_the_half_published_work_of_another_conversion(
    converted: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    stop_in_publish(converted, target, "file moved", times=9)
    job = plan_conversion(converted / "in-old", OPTIONS)
    with pytest.raises(
        OutputError, match=r"another checkpoint.*discard the unfinished work with --restart"
    ):
        run(job, target)
    run(job, target, RunOptions(restart=True))
    assert content(target) == content(converted / "old")


def test_restart_does_not_drop_a_whole_model_of_another_conversion(
    converted: Path, tmp_path: Path
) -> None:
    """Only its journal was left to remove: what lies there is a model, and no staged work."""
    target = tmp_path / "out"
    stop_in_publish(converted, target, "published")
    before = content(target)
    job = plan_conversion(converted / "in-old", OPTIONS)
    with pytest.raises(OutputError, match="not empty"):
        run(job, target, RunOptions(restart=True))
    assert content(target).items() <= before.items()
    assert loads(target)
    run(job, target, RunOptions(restart=True, overwrite=True))
    assert content(target) == content(converted / "old")
