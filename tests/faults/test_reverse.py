"""The way back while things fail: the promises are those of the way there."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from codellama_convert.convert.run import run
from codellama_convert.errors import OutputError
from codellama_convert.formats.tensor_reader import TensorReader
from tests.faults.directions import ACROSS, BACK, Direction
from tests.faults.dying import run_and_die
from tests.faults.kills import KillBench, spoil_the_check, spoil_the_order
from tests.outputs import STAGING, content, flip_bit

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills as POSIX has them")
by_direction = pytest.mark.parametrize("direction", [BACK, ACROSS], ids=lambda one: one.name)


def share(n_steps: int) -> list[int]:
    """Choose every eighth step, and the last ones; `tests.faults.sweep` kills at all."""
    assert n_steps > 30
    return [step for step in range(1, n_steps + 1) if step % 8 == 0 or step > n_steps - 7]


# --- kills ----------------------------------------------------------------------------------------


@by_direction
def test_a_kill_at_any_step_leaves_nothing_that_loads_and_the_rerun_the_same_bytes(
    quick_path: Path, direction: Direction
) -> None:
    bench = KillBench(quick_path, direction)
    for kill_at in share(bench.n_steps):
        assert bench.problems(kill_at) == []
    assert set(bench.ends) == {"nothing", "new"}


def test_a_kill_while_overwriting_never_mixes_two_models(quick_path: Path) -> None:
    bench = KillBench(quick_path, BACK, older=True)
    for kill_at in share(bench.n_steps):
        assert bench.problems(kill_at) == []
    assert set(bench.ends) == {"old", "nothing", "new"}


@pytest.mark.parametrize("older", [False, True])
def test_the_sweep_sees_params_json_that_is_not_the_last(quick_path: Path, *, older: bool) -> None:
    """The control of the tests above."""
    bench = KillBench(quick_path, BACK, older=older, spoil=spoil_the_order)
    late = range(bench.n_steps - 20, bench.n_steps + 1)
    assert any("torn" in problem for kill_at in late for problem in bench.problems(kill_at))


@by_direction
def test_a_kill_and_damage_after_it_cost_no_right_byte(
    quick_path: Path, direction: Direction
) -> None:
    """All tensors of a source's rank lie in one storage, so its sum spans all that was read."""
    bench = KillBench(quick_path, direction, storage="flat", damage=True)
    for kill_at in share(bench.n_steps)[::2]:
        assert bench.problems(kill_at) == []


def test_the_sweep_sees_damage_that_is_not_looked_for(quick_path: Path) -> None:
    """The control of the test above."""
    bench = KillBench(quick_path, BACK, damage=True, spoil=spoil_the_check)
    middle = range(bench.n_steps // 2, bench.n_steps)
    assert any("other bytes" in problem for n in middle for problem in bench.problems(n))


# --- ranks are kept together ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each direction a source, another one of the same sizes, and what becomes of either."""
    top = tmp_path_factory.mktemp("together")
    for direction in (BACK, ACROSS):
        for seed, name in ((3, "in"), (4, "other")):
            source = direction.save(top / direction.name / name, seed)
            run(direction.job(source), top / direction.name / f"of-{name}")
    return top


def die_after_ranks(folder: Path, direction: Direction, target: Path, n_ranks: int) -> Path:
    """Leave so many staged ranks; give the staging folder."""
    job = direction.job(folder / direction.name / "in")
    run_and_die(job, target, "file journaled", times=n_ranks)
    staged = sorted(path.name for path in (target / STAGING).glob("*.pth"))
    assert staged == direction.weights[:n_ranks]
    return target / STAGING


def kept(direction: Direction, source: Path, target: Path) -> list[bool]:
    """Resume; give for each rank that was staged whether it is the same file."""
    with ExitStack() as stack:  # open, so that no new file gets the number of one that is gone
        paths = list(map((target / STAGING).joinpath, direction.weights))
        before = [
            os.fstat(stack.enter_context(path.open("rb")).fileno()).st_ino
            for path in paths if path.exists()
        ]  # fmt: skip
        run(direction.job(source), target)
        after = [(target / name).stat().st_ino for name in direction.weights]
    return [one == other for one, other in zip(before, after, strict=False)]


@by_direction
@pytest.mark.parametrize("damaged", [None, 0, 2])
def test_ranks_of_which_one_is_damaged_are_all_written_again(
    folders: Path, tmp_path: Path, direction: Direction, damaged: int | None
) -> None:
    """What was read for one was read for all: no rank can be written again by itself."""
    staging = die_after_ranks(folders, direction, tmp_path / "out", 4)
    if damaged is not None:
        flip_bit(staging / direction.weights[damaged], -500)
    source = folders / direction.name / "in"
    assert kept(direction, source, tmp_path / "out") == [damaged is None] * 4
    assert content(tmp_path / "out") == content(folders / direction.name / "of-in")


@by_direction
@pytest.mark.parametrize("n_ranks", [1, 3])
def test_ranks_that_are_not_all_there_are_written_again(
    folders: Path, tmp_path: Path, direction: Direction, n_ranks: int
) -> None:
    die_after_ranks(folders, direction, tmp_path / "out", n_ranks)
    source = folders / direction.name / "in"
    assert kept(direction, source, tmp_path / "out") == [False] * n_ranks
    assert content(tmp_path / "out") == content(folders / direction.name / "of-in")


def replace_files(folder: Path, new: Path, pattern: str) -> None:
    """Put other weights in place of a folder's, of the same sizes and times."""
    paths = sorted(folder.glob(pattern))
    assert len(paths) > 1
    for path in paths:
        status = path.stat()
        assert (new / path.name).stat().st_size == status.st_size
        shutil.copyfile(new / path.name, path)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def changed_source(folders: Path, tmp_path: Path, direction: Direction, pattern: str) -> Path:
    """Stage all ranks of a source, and then change it unseen; give it."""
    source = tmp_path / direction.name / "in"
    shutil.copytree(folders / direction.name / "in", source)
    die_after_ranks(tmp_path, direction, tmp_path / "out", 4)
    replace_files(source, folders / direction.name / "other", pattern)
    return source


def test_a_safetensors_file_that_changed_unseen_is_read_again(
    folders: Path, tmp_path: Path
) -> None:
    """The format keeps no sums: what was read before is read again, to compare its sums."""
    source = changed_source(folders, tmp_path, BACK, "model-0000[23]*.safetensors")
    assert kept(BACK, source, tmp_path / "out") == [False] * 4
    run(BACK.job(source), tmp_path / "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    ranks = [
        content(folders / BACK.name / one)["consolidated.00.pth"] for one in ("of-in", "of-other")
    ]
    assert content(tmp_path / "out")["consolidated.00.pth"] not in ranks


def test_a_rank_that_believes_its_record_would_be_seen(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above."""
    source = changed_source(folders, tmp_path, BACK, "*.safetensors")
    monkeypatch.setattr(TensorReader, "confirms", lambda *_: True)
    assert kept(BACK, source, tmp_path / "out") == [True] * 4
    assert content(tmp_path / "out") == content(folders / BACK.name / "of-in")


def test_ranks_that_changed_unseen_are_another_source(folders: Path, tmp_path: Path) -> None:
    """A rank's own sums say so."""
    source = changed_source(folders, tmp_path, ACROSS, "*.pth")
    with pytest.raises(OutputError, match="another"):
        run(ACROSS.job(source), tmp_path / "out")
