"""A neighbour who may write where the output folder lies gets nothing out, and nothing of his in."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from codellama_convert.convert.run import RunOptions, run
from codellama_convert.errors import OutputError
from codellama_convert.storage.held_folder import HeldFolder
from tests.faults.directions import BACK, FORWARD, Direction
from tests.faults.neighbours import (
    NOBODY,
    OF_A_NEIGHBOUR,
    OF_ANYBODY,
    NeighbourBench,
    Place,
    planted_belief,
    why_not,
)
from tests.outputs import STAGING, content, stop_after_files

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="users and links as POSIX has them")
needs_root = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


Benches = Callable[[Direction], NeighbourBench]
in_both_directions = pytest.mark.parametrize(
    "direction", [FORWARD, BACK], ids=lambda direction: direction.name
)


@pytest.fixture(scope="module")
def benches() -> Iterator[Benches]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield cache(lambda direction: NeighbourBench(Path(folder) / direction.name, direction))


@pytest.fixture
def bench(benches: Benches) -> NeighbourBench:
    return benches(FORWARD)


def a_share(bench: NeighbourBench, number: int) -> range:
    """Every eighth step, others for each attack; `tests.faults.sweep neighbours` runs all."""
    return range(number % 8, len(bench.steps), 8)


@needs_root
@in_both_directions
@pytest.mark.parametrize("attack", OF_A_NEIGHBOUR)
def test_another_user_gets_nothing_out_and_nothing_in(
    benches: Benches, attack: str, direction: Direction
) -> None:
    """The journal, swapped for a link, wrote 6 kB of ours into a file of his choice."""
    bench = benches(direction)
    for at in a_share(bench, list(OF_A_NEIGHBOUR).index(attack)):
        assert bench.problems(OF_A_NEIGHBOUR[attack], at, as_other=True) == []


@in_both_directions
@pytest.mark.parametrize("attack", OF_ANYBODY)
def test_what_is_swapped_in_the_staging_folder_is_neither_written_nor_published(
    benches: Benches, attack: str, direction: Direction
) -> None:
    """As where a file system knows no permissions; a FIFO hung until SIGKILL."""
    if "for a file" in attack and why_not() is not None:
        pytest.skip("a file of one's own is not another user's")
    bench = benches(direction)
    for at in a_share(bench, list(OF_ANYBODY).index(attack)):
        assert bench.problems(OF_ANYBODY[attack], at, as_other=False) == []


@in_both_directions
@pytest.mark.parametrize("attack", ["part for a hard link", "sealed for a link"])
def test_the_attacks_are_live(benches: Benches, attack: str, direction: Direction) -> None:
    """The control: where whatever lies there is taken for ours, they succeed."""
    bench = benches(direction)
    with planted_belief():
        found = (
            problem for at in range(8, len(bench.steps))
            for problem in bench.problems(OF_ANYBODY[attack], at, as_other=False)
        )  # fmt: skip
        assert any("outside" in one or "published" in one for one in found)


@pytest.fixture
def staged(bench: NeighbourBench, tmp_path: Path) -> Path:
    """Stop a conversion after its first file."""
    stop_after_files(bench.job(), tmp_path / "out", 1)
    return tmp_path / "out"


def give_away_the_folder(staging: Path) -> None:
    os.chown(staging, NOBODY, NOBODY)


def give_away_the_journal(staging: Path) -> None:
    os.chown(staging / "journal.jsonl", NOBODY, NOBODY)


def link_the_journal(staging: Path) -> None:
    os.link(staging / "journal.jsonl", staging.parent.parent / "second")


@pytest.mark.parametrize(
    ("plant", "fact"),
    [
        pytest.param(give_away_the_folder, "belongs to another user", marks=needs_root),
        pytest.param(give_away_the_journal, "belongs to another user", marks=needs_root),
        (link_the_journal, "has a second name"),
    ],
)
def test_staged_work_that_may_be_anothers_is_refused_and_left(
    bench: NeighbourBench, staged: Path, plant: Callable[[Path], None], fact: str
) -> None:
    """A planted journal sent a 5-byte model out with exit 0."""
    plant(staged / STAGING)
    before = content(staged / STAGING)
    job = bench.job()
    with pytest.raises(OutputError, match=rf"{STAGING}.*{fact}"):
        run(job, staged)
    assert content(staged / STAGING) == before
    assert {path.name for path in staged.iterdir()} == {STAGING}
    for path in (staged / STAGING, *(staged / STAGING).iterdir()):
        os.chown(path, os.geteuid(), os.getegid())
    (staged.parent / "second").unlink(missing_ok=True)
    run(job, staged)
    assert content(staged) == bench.expected


@needs_root
@pytest.mark.parametrize("how", [RunOptions(restart=True), RunOptions(overwrite=True)])
def test_no_option_drops_what_another_user_has_staged(
    bench: NeighbourBench, staged: Path, how: RunOptions
) -> None:
    give_away_the_folder(staged / STAGING)
    before = content(staged / STAGING)
    with pytest.raises(OutputError, match="belongs to another user"):
        run(bench.job(), staged, how)
    assert content(staged / STAGING) == before


@needs_root
def test_a_staged_file_of_another_user_is_written_again(
    bench: NeighbourBench, staged: Path
) -> None:
    (first,) = (staged / STAGING).glob("model-*")
    inode = first.stat().st_ino
    os.chown(first, NOBODY, NOBODY)
    run(bench.job(), staged)
    assert content(staged) == bench.expected
    assert (staged / first.name).stat().st_uid == os.geteuid()
    assert (staged / first.name).stat().st_ino != inode


def test_where_a_mount_gives_all_files_to_one_user_they_are_ours(
    bench: NeighbourBench, staged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS with all_squash, SMB with uid=: what we make there is not ours by its owner."""
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY - 1)
    run(bench.job(), staged)
    assert content(staged) == bench.expected


def test_nobody_else_may_look_into_the_staging_folder(bench: NeighbourBench, staged: Path) -> None:
    """An older version's was open to all that the umask let in."""
    assert (staged / STAGING).stat().st_mode & 0o777 == 0o700
    (staged / STAGING).chmod(0o775)
    stop_after_files(bench.job(), staged, 2)
    assert (staged / STAGING).stat().st_mode & 0o777 == 0o700


# --- the held folder ------------------------------------------------------------------------------


def test_what_is_done_by_name_stays_in_the_folder_that_was_opened(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs").mkdir()
    with HeldFolder(tmp_path / "ours") as held:
        (tmp_path / "ours").rename(tmp_path / "away")
        (tmp_path / "ours").symlink_to(tmp_path / "theirs")
        assert not held.is_in_its_place()
        os.close(held.open("new", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        held.make_folder("inner")
        held.rename("new", held, "newer")
        assert held.names() == {"newer", "inner"}
        held.remove("inner")
        held.sync()
    assert {path.name for path in (tmp_path / "away").iterdir()} == {"newer"}
    assert list((tmp_path / "theirs").iterdir()) == []


@pytest.mark.parametrize("what", ["link", "hard link", "fifo", "folder"])
def test_only_a_file_of_ours_is_opened(tmp_path: Path, what: str) -> None:
    outside, place = tmp_path / "outside", tmp_path / "folder" / "name"
    place.parent.mkdir()
    outside.write_bytes(b"mine")
    {
        "link": lambda: place.symlink_to(outside),
        "hard link": lambda: os.link(outside, place),
        "fifo": lambda: os.mkfifo(place),
        "folder": place.mkdir,
    }[what]()
    with HeldFolder(place.parent) as held:
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY | os.O_APPEND):
            with pytest.raises(OSError, match=r"."):
                held.open("name", flags)
        held.remove("name")
        os.close(held.open("name", os.O_WRONLY | os.O_CREAT))
        os.close(held.open("name", os.O_RDONLY))
    assert outside.read_bytes() == b"mine"


def test_a_folder_in_a_held_one_is_opened_and_a_link_is_not(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    with HeldFolder(tmp_path) as held:
        HeldFolder(tmp_path / "folder", within=held).close()
        with pytest.raises(OSError, match=r"."):
            HeldFolder(tmp_path / "link", within=held)
    HeldFolder(tmp_path / "link").close()  # what a user names may be one


def test_removing_a_link_leaves_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "kept")
    shutil.copytree(tmp_path / "kept", tmp_path / "folder" / "deep" / "er")
    with HeldFolder(tmp_path / "folder") as held:
        for name in ("link", "deep", "gone"):
            held.remove(name)
        assert held.names() == set()
    assert (tmp_path / "kept" / "file").exists()


def test_strikes_change_something(bench: NeighbourBench, tmp_path: Path) -> None:
    """A neighbour who never strikes proves nothing."""
    place = Place(tmp_path / "out", tmp_path / "outside", tmp_path / "his")
    for path in (place.outside, place.his):
        path.mkdir()
    (place.outside / "canary").touch()
    stop_after_files(bench.job(), place.target, 1)
    (place.staging / "model-x.part").touch()
    for attack, strike in {**OF_ANYBODY, **OF_A_NEIGHBOUR}.items():
        before = {path.name: path.lstat().st_ino for path in place.staging.iterdir()}
        inode = place.staging.lstat().st_ino
        strike(place)
        if place.staging.lstat().st_ino == inode:
            after = {path.name: path.lstat().st_ino for path in place.staging.iterdir()}
            assert after != before, attack
        shutil.rmtree(place.target, ignore_errors=True)
        shutil.rmtree(place.his)
        place.his.mkdir()
        stop_after_files(bench.job(), place.target, 1)
        (place.staging / "model-x.part").touch()
