"""Links and other things in the place of our own files are refused, and not followed."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from codellama_convert.convert.run import RunOptions
from codellama_convert.errors import OutputError
from tests.fuzzers.running import time_limit
from tests.outputs import LOCK, STAGING, content
from tests.staging.runs import OVER, convert, everything, interrupt

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links and locks as POSIX has them")


@pytest.mark.parametrize("how", [RunOptions(), OVER, RunOptions(restart=True, overwrite=True)])
def test_a_staging_folder_that_is_a_link_is_refused_and_not_followed(
    converted: Path, tmp_path: Path, how: RunOptions
) -> None:
    """Even one that leads to our own staged work: what was begun there was deleted or written."""
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "out"
    interrupt(converted, elsewhere)
    (elsewhere / STAGING / "mine.part").write_bytes(b"mine")
    target.mkdir()
    (target / STAGING).symlink_to(elsewhere / STAGING)
    before = everything(tmp_path)
    with pytest.raises(OutputError, match=rf"{STAGING}: is not a folder"):
        convert(converted, target, how)
    assert everything(tmp_path) == before
    (target / STAGING).unlink()
    convert(converted, target, how)
    assert content(target) == content(converted / "out")


def test_a_file_in_the_place_of_the_staging_folder_is_refused(
    converted: Path, tmp_path: Path
) -> None:
    (tmp_path / STAGING).write_bytes(b"mine")
    with pytest.raises(OutputError, match=rf"{STAGING}: is not a folder"):
        convert(converted, tmp_path)
    assert everything(tmp_path) == {STAGING: b"mine"}


@pytest.mark.parametrize("leads_to", ["fifo", "/dev/zero", "journal"])
def test_a_journal_that_is_no_regular_file_is_refused_without_a_hang(
    converted: Path, tmp_path: Path, leads_to: str
) -> None:
    target, journal = tmp_path / "out", tmp_path / "out" / STAGING / "journal.jsonl"
    interrupt(converted, target)
    kept = journal.read_bytes()
    journal.rename(tmp_path / "journal")
    if leads_to == "fifo":
        os.mkfifo(journal)
    else:
        journal.symlink_to(tmp_path / leads_to)
    with time_limit(20), pytest.raises(OutputError, match=r"journal\.jsonl: cannot read"):
        convert(converted, target)
    assert (tmp_path / "journal").read_bytes() == kept
    convert(converted, target, RunOptions(restart=True))
    assert content(target) == content(converted / "out")
    assert (tmp_path / "journal").read_bytes() == kept


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing"])
def test_a_lock_that_is_a_link_is_refused_and_not_followed(
    converted: Path,
    tmp_path: Path,
    there: bool,  # noqa: FBT001 - a parameter of a test
) -> None:
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "out"
    if there:
        elsewhere.write_bytes(b"mine")
    target.mkdir()
    (target / LOCK).symlink_to(elsewhere)
    before = everything(tmp_path)
    with pytest.raises(OutputError, match="cannot create"):
        convert(converted, target)
    assert everything(tmp_path) == before
    (target / LOCK).unlink()
    (target / LOCK).touch()  # as a kill after the end leaves it
    convert(converted, target)
    assert content(target) == content(converted / "out")


def test_links_in_the_place_of_final_names_are_replaced_and_not_followed(
    converted: Path, tmp_path: Path
) -> None:
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    target.mkdir()
    for name in content(converted / "out"):
        (elsewhere / name).write_bytes(b"mine")
        (target / name).symlink_to(elsewhere / name)
    convert(converted, target, OVER)
    assert content(target) == content(converted / "out")
    assert not any(path.is_symlink() for path in target.iterdir())
    assert set(content(elsewhere).values()) == {b"mine"}


def test_an_output_folder_may_be_a_link_to_a_folder(converted: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with pytest.raises(OutputError, match="cannot create"):
        convert(converted, tmp_path / "link")
    assert not (tmp_path / "there").exists()
    (tmp_path / "there").mkdir()
    convert(converted, tmp_path / "link")
    assert content(tmp_path / "there") == content(converted / "out")
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002, 0o077])
def test_every_file_has_the_users_umask(converted: Path, tmp_path: Path, umask: int) -> None:
    """Not the input's permissions: a checkpoint for one user becomes a model for all, or not."""
    shutil.copytree(converted / "in", tmp_path / "in")
    for path in (tmp_path / "in").iterdir():
        path.chmod(0o600)
    before = os.umask(umask)
    try:
        convert(tmp_path, tmp_path / "out")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert modes == {0o666 & ~umask}
