"""Sharing work among threads: every item once, and one problem stops all."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from codellama_convert.errors import Interrupted
from codellama_convert.storage.threads import default_workers, share_out
from codellama_convert.storage.watch import Watch


@pytest.mark.parametrize("n_workers", [1, 2, 5])
def test_every_item_is_worked_on_once(n_workers):
    seen: list[int] = []
    share_out(range(100), [None] * n_workers, lambda item, _buffer, _watch: seen.append(item))
    assert sorted(seen) == list(range(100))


def test_each_worker_has_a_buffer_of_its_own():
    users: dict[int, set[int]] = {}
    both_run = threading.Barrier(2, timeout=30)

    def work(item: int, buffer: bytearray, _watch: object) -> None:
        if item < 2:
            both_run.wait()  # so that neither worker can take both
        users.setdefault(id(buffer), set()).add(threading.get_ident())

    share_out(range(50), [bytearray(1), bytearray(1)], work)
    assert [len(threads) for threads in users.values()] == [1, 1]


@pytest.mark.parametrize("n_workers", [1, 3])
def test_a_problem_is_raised_and_stops_the_others(n_workers):
    seen: list[int] = []

    def work(item: int, _buffer: object, _watch: object) -> None:
        if item == 5:
            raise ValueError("five")
        time.sleep(0.001)
        seen.append(item)

    with pytest.raises(ValueError, match="five"):
        share_out(range(100_000), [None] * n_workers, work)
    assert 5 not in seen
    assert len(seen) < 1000


def test_a_worker_in_a_long_item_ends_once_another_failed():
    asked = threading.Event()

    def work(item: int, _buffer: object, watch: Watch) -> None:
        if item == 0:
            asked.wait(30)
            raise ValueError("zero")
        asked.set()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            watch.check()
            time.sleep(0.001)
        raise AssertionError("it was not stopped")

    with pytest.raises(ValueError, match="zero"):
        share_out(range(2), [None, None], work)


@pytest.mark.parametrize("n_workers", [1, 3])
def test_results_stand_in_the_order_of_the_items(n_workers):
    def work(item: int, _buffer: object, _watch: object) -> int:
        time.sleep(0.002 if item % 2 else 0.0)
        return 10 * item

    assert share_out(range(6), [None] * n_workers, work) == [0, 10, 20, 30, 40, 50]
    assert share_out([], [None] * n_workers, work) == []


@pytest.mark.parametrize("n_workers", [1, 3])
def test_the_work_of_all_workers_is_reported_and_stopped_in_one_place(n_workers):
    done: list[int] = []
    watch = Watch(done.append)
    share_out(range(5), [None] * n_workers, lambda item, _, own: own.advance(item), watch)
    assert sorted(done) == [0, 1, 2, 3, 4]
    watch.stop.ask(signal.SIGTERM)
    done.clear()
    with pytest.raises(Interrupted):
        share_out(range(1000), [None] * n_workers, lambda item, _, own: own.advance(item), watch)
    assert len(done) <= n_workers


def test_no_more_threads_are_started_than_there_are_items():
    users: set[int] = set()
    share_out([1], [None] * 4, lambda _item, _buffer, _watch: users.add(threading.get_ident()))
    assert users == {threading.get_ident()}  # a single one needs none


def test_workers_are_as_many_as_cores_from_2_to_8():
    assert 2 <= default_workers() <= 8
