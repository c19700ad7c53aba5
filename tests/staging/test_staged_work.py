"""Staged work that was damaged, and the lock."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from codellama_convert.convert.run import run
from codellama_convert.errors import Interrupted, OutputError
from codellama_convert.plan.job import Options, plan_conversion
from codellama_convert.storage.lock import FolderLock
from codellama_convert.storage.signals import StopRequest
from codellama_convert.storage.watch import Watch
from tests.outputs import LOCK, STAGING, StopAfter, content, finish
from tests.staging.runs import OPTIONS, OVER, convert, flip, interrupt
from tests.witness.checkpoints import GQA, random_model, save_checkpoint

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links and locks as POSIX has them")


# --- resuming -------------------------------------------------------------------------------------


def test_staged_work_of_another_version_is_refused_with_both(
    converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    interrupt(converted, target)
    monkeypatch.setattr("codellama_convert.plan.job.__version__", "999.0")
    with pytest.raises(
        OutputError, match=r"version is '0\.1\.0' there and '999\.0' now.*--restart"
    ):
        convert(converted, target)
    monkeypatch.undo()
    convert(converted, target)
    assert content(target) == content(converted / "out")


def test_staged_work_of_another_checkpoint_is_named_without_sums(
    converted: Path, tmp_path: Path
) -> None:
    """Lists of sizes and sums were printed, and the same options were asked for in vain."""
    target = tmp_path / "out"
    interrupt(converted, target)
    save_checkpoint(tmp_path / "in", GQA, random_model(GQA, torch.bfloat16, 4), n_ranks=4)
    with pytest.raises(OutputError) as caught:
        convert(tmp_path, target)
    assert str(caught.value) == (
        f"{target}: holds staged work of another checkpoint: consolidated.00.pth is not the same "
        "file; consolidated.01.pth is not the same file; consolidated.02.pth is read now only; "
        "consolidated.03.pth is read now only; name another place with --output_dir, or "
        "discard the unfinished work with --restart"
    )
    convert(converted, target)
    assert content(target) == content(converted / "out")


def test_overwriting_drops_staged_work_of_another_conversion(
    converted: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    shutil.copytree(converted / "out", target)
    other = Options(max_shard_bytes=90_000, workers=1, tile_bytes=8192)
    with pytest.raises(Interrupted):
        run(plan_conversion(converted / "in", other), target, OVER, watch=Watch(stop=StopAfter(30)))
    assert list((target / STAGING).glob("model-*-of-00004.safetensors"))
    assert content(target) == content(converted / "out")
    convert(converted, target, OVER)
    assert content(target) == content(converted / "out")
    assert not (target / STAGING).exists()


@pytest.mark.parametrize("how", ["link", "folder", "full folder", "short"])
def test_a_staged_file_that_is_none_any_more_is_written_again(
    converted: Path, tmp_path: Path, how: str
) -> None:
    """A folder in its place ended every further run: `cannot rename: Is a directory`."""
    target = tmp_path / "out"
    interrupt(converted, target)
    (first, *_) = sorted((target / STAGING).glob("model-*.safetensors"))
    if how == "link":
        first.rename(tmp_path / "elsewhere")
        first.symlink_to(tmp_path / "elsewhere")
    elif "folder" in how:
        first.unlink()
        first.mkdir()
        if how == "full folder":
            (first / "below").write_bytes(b"x")
    else:
        os.truncate(first, first.stat().st_size - 1)
    convert(converted, target)
    assert content(target) == content(converted / "out")
    assert not any(path.is_symlink() for path in target.iterdir())
    if how == "link":
        assert (tmp_path / "elsewhere").exists(), "a link is removed, and not what it leads to"


def test_a_journal_that_was_damaged_does_not_get_into_the_record(
    converted: Path, tmp_path: Path
) -> None:
    """One digit of a tensor's sum: the file is whole, and its record would say that it is not."""
    target = tmp_path / "out"
    interrupt(converted, target)
    journal = target / STAGING / "journal.jsonl"
    before = journal.read_bytes()
    flip(journal, "tensors")
    assert len(journal.read_bytes()) == len(before)
    assert all(json.loads(line) for line in journal.read_bytes().splitlines())
    convert(converted, target)
    assert content(target) == content(converted / "out")


# --- the lock -------------------------------------------------------------------------------------


def test_a_lock_that_was_removed_while_it_was_taken_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that held it ended between our open and our flock, and another one began."""
    import fcntl

    real = fcntl.flock

    def late(fd: int, how: int) -> None:
        (tmp_path / LOCK).unlink()
        (tmp_path / LOCK).touch()
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(OutputError, match="another conversion"):
        FolderLock(tmp_path).take()
    assert (tmp_path / LOCK).exists()  # the other run's
    monkeypatch.undo()
    lock = FolderLock(tmp_path)
    lock.take()
    with pytest.raises(OutputError, match="another conversion"):
        FolderLock(tmp_path).take()
    lock.release()
    assert not (tmp_path / LOCK).exists()


def test_a_lock_of_a_run_that_has_just_ended_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended between our open and our flock, and we said that it was still running."""
    import fcntl

    real = fcntl.flock
    ended = iter([(tmp_path / LOCK).unlink])

    def late(fd: int, how: int) -> None:
        for end in ended:
            end()
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    lock = FolderLock(tmp_path)
    lock.take()
    assert next(ended, None) is None, "the other run has ended"
    assert (tmp_path / LOCK).exists()
    with pytest.raises(OutputError, match="another conversion"):
        FolderLock(tmp_path).take()
    lock.release()
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("error", [errno.EACCES, errno.ENOENT, errno.EMFILE])
def test_a_library_that_does_not_load_is_not_another_run(error: int) -> None:
    """With 6 open files a run said that another conversion was running: fcntl came with the lock."""
    code = (
        "import errno, os, sys\n"
        "from codellama_convert.storage import lock\n"
        "class Broken:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        raise OSError({error}, os.strerror({error}), name)\n"
        "sys.modules.pop('fcntl', None)\n"
        "sys.meta_path.insert(0, Broken())\n"
        "held = lock.FolderLock(lock.Path(sys.argv[1]))\n"
        "held.take()\n"
        "held.release()\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        done = finish([sys.executable, "-c", code, folder])
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stop_before_the_first_whole_file_leaves_what_can_go_on(
    converted: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    stop = StopRequest()
    stop.ask(signal.SIGTERM)
    with pytest.raises(Interrupted):
        run(plan_conversion(converted / "in", OPTIONS), target, watch=Watch(stop=stop))
    staged = {path.name for path in (target / STAGING).iterdir()}
    assert "journal.jsonl" in staged
    assert not [name for name in staged if name.endswith((".part", ".safetensors"))]
    convert(converted, target)
    assert content(target) == content(converted / "out")


@pytest.mark.parametrize(
    ("place", "what"), [("/dev/null", "not a folder"), ("/dev/null/out", "Not a directory")]
)
def test_a_device_in_the_place_of_the_folder_is_one_line(
    converted: Path, place: str, what: str
) -> None:
    """As NUL and CON are on Windows, whatever folder they are said to lie in."""
    with pytest.raises(OutputError, match=rf"^{place}: .*{what}.*--output_dir"):
        convert(converted, Path(place))
