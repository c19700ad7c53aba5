"""Ranks that workers write are named when they are whole, and kept whoever dies."""

from __future__ import annotations

from threading import Semaphore

import pytest

from codellama_convert import WorkerError, plan_reverse
from codellama_convert.convert.jobs import FileRequest, write_file
from codellama_convert.convert.write_pass import FileReport
from codellama_convert.staging import crash_points
from tests.convert.executors.ranks import (
    N_RANKS,
    OPTIONS,
    assert_keeps,
    back,
    die_with_two,
    inodes,
)
from tests.convert.executors.workers import (
    Through,
    die_in_the_third,
    lose_the_first,
    spawned,
)
from tests.faults.dying import run_and_die
from tests.outputs import STAGING, content, flip_bit, journal_of, loads, put_journal


def test_each_rank_gets_its_name_as_soon_as_it_is_whole(converted, plain, tmp_path, monkeypatch):
    """One worker, which begins with a rank only when the one before has its name and its record."""
    named = Semaphore(0)
    monkeypatch.setattr(
        crash_points, "hook", lambda step: named.release() if step == "file journaled" else None
    )

    def wait(number: int, request: FileRequest) -> FileReport:
        assert number == 1 or named.acquire(timeout=60)
        assert len(inodes(tmp_path / "out" / STAGING)) == number - 1
        return write_file(request)

    with Through(wait) as pool:
        back(converted / "out", tmp_path / "out", pool)
    assert content(tmp_path / "out") == plain


def test_workers_that_are_lost_cost_their_ranks_only(converted, plain, tmp_path):
    with Through(lose_the_first(3)) as losing:
        back(converted / "out", tmp_path / "out", losing)
    assert len(losing.asked) == N_RANKS + 3
    assert content(tmp_path / "out") == plain
    assert not (tmp_path / "out" / STAGING).exists()


def test_a_pool_whose_worker_is_killed_keeps_the_ranks_that_are_whole(converted, plain, tmp_path):
    target = tmp_path / "out"
    with (
        Through(die_in_the_third, spawned(1)) as dying,
        pytest.raises(WorkerError, match="a worker died"),
    ):
        back(converted / "out", target, dying)
    assert not loads(target)
    assert len(inodes(target / STAGING)) == 2
    assert_keeps(converted / "out", target, 2, plain)


@pytest.mark.parametrize("damaged", [None, 0, 1])
def test_a_killed_coordinator_is_followed_by_one_that_keeps_whole_ranks(
    converted, plain, tmp_path, damaged
):
    die_with_two(converted / "out", tmp_path / "out")
    if damaged is not None:
        flip_bit(sorted((tmp_path / "out" / STAGING).glob("*.pth"))[damaged], -500)
    n_kept = 2 if damaged is None else 1
    assert_keeps(converted / "out", tmp_path / "out", n_kept, plain)


def test_what_workers_left_is_finished_without_them(converted, plain, tmp_path):
    die_with_two(converted / "out", tmp_path / "out")
    back(converted / "out", tmp_path / "out")
    assert content(tmp_path / "out") == plain


def test_what_a_plain_run_left_is_finished_by_workers(converted, plain, tmp_path):
    """All was read for the first rank: none of them can be kept by itself."""
    run_and_die(
        plan_reverse(converted / "out", OPTIONS), tmp_path / "out", "file journaled", times=3
    )
    assert len(inodes(tmp_path / "out" / STAGING)) == 3
    assert_keeps(converted / "out", tmp_path / "out", 0, plain)


def test_a_record_with_another_ranks_sums_is_not_believed(converted, plain, tmp_path):
    """The rows of one rank would count twice, and those of the other be read by nobody."""
    die_with_two(converted / "out", tmp_path / "out")
    journal = journal_of(tmp_path / "out")
    assert journal is not None
    one, other = journal.sealed.values()
    one.source[:] = other.source
    put_journal(tmp_path / "out", journal)
    assert_keeps(converted / "out", tmp_path / "out", 1, plain)
