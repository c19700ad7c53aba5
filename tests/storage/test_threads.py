"""Sharing work among threads: every item once, and one problem stops all."""

from __future__ import annotations

import threading
import time

import pytest

from codellama_convert.storage.threads import share_out


@pytest.mark.parametrize("n_workers", [1, 2, 5])
def test_every_item_is_worked_on_once(n_workers):
    seen: list[int] = []
    share_out(range(100), [None] * n_workers, lambda item, _buffer, _failed: seen.append(item))
    assert sorted(seen) == list(range(100))


def test_each_worker_has_a_buffer_of_its_own():
    users: dict[int, set[int]] = {}
    both_run = threading.Barrier(2, timeout=30)

    def work(item: int, buffer: bytearray, _failed: object) -> None:
        if item < 2:
            both_run.wait()  # so that neither worker can take both
        users.setdefault(id(buffer), set()).add(threading.get_ident())

    share_out(range(50), [bytearray(1), bytearray(1)], work)
    assert [len(threads) for threads in users.values()] == [1, 1]


@pytest.mark.parametrize("n_workers", [1, 3])
def test_a_problem_is_raised_and_stops_the_others(n_workers):
    seen: list[int] = []

    def work(item: int, _buffer: object, _failed: object) -> None:
        if item == 5:
            raise ValueError("five")
        time.sleep(0.001)
        seen.append(item)

    with pytest.raises(ValueError, match="five"):
        share_out(range(100_000), [None] * n_workers, work)
    assert 5 not in seen
    assert len(seen) < 1000


def test_a_worker_in_a_long_item_can_ask_whether_another_failed():
    asked = threading.Event()

    def work(item: int, _buffer: object, failed) -> None:
        if item == 0:
            asked.wait(30)
            raise ValueError("zero")
        asked.set()
        deadline = time.monotonic() + 30
        while not failed():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    with pytest.raises(ValueError, match="zero"):
        share_out(range(2), [None, None], work)
