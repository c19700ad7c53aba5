"""What watches long work: it hears of every piece, and a wish to stop is met between two."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from codellama_convert.errors import Interrupted
from codellama_convert.storage.signals import StopRequest
from codellama_convert.storage.watch import Watch


def test_every_piece_is_reported_and_looking_alone_reports_none():
    done: list[int] = []
    watch = Watch(done.append)
    watch.advance(3)
    watch.check()
    watch.advance(4)
    assert done == [3, 4]


def test_nobody_need_listen():
    Watch().advance(1)
    Watch().check()


def test_a_wish_to_stop_ends_the_work_after_the_piece_that_is_done():
    done: list[int] = []
    watch = Watch(done.append, StopRequest(), "run it again")
    watch.stop.ask(signal.SIGTERM)
    for call in (watch.check, lambda: watch.advance(5)):
        with pytest.raises(Interrupted, match="run it again") as caught:
            call()
        assert caught.value.signal_number == signal.SIGTERM
    assert done == [5]


def test_another_listener_shares_the_wish_to_stop():
    """A bar of its own shows how far the check of the sums is."""
    one: list[int] = []
    other: list[int] = []
    watch = Watch(one.append)
    second = replace(watch, progress=other.append)
    second.advance(2)
    watch.stop.ask(signal.SIGINT)
    with pytest.raises(Interrupted):
        second.check()
    assert (one, other) == ([], [2])


def test_two_watches_do_not_share_a_stop():
    Watch().stop.ask(signal.SIGINT)
    Watch().check()
