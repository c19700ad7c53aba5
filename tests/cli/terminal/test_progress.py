"""What a log shows of long work: a line now and then, where no bar can be drawn."""

from __future__ import annotations

import sys
from threading import Thread

import pytest

from codellama_convert.cli.progress import ProgressLines, progress_bar
from codellama_convert.cli.words import progress_line
from tests.cli.running import run


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_a_line_every_half_minute(capsys):
    """Hours in a CI's log, or behind `nohup`, were silent: nobody could tell whether it hung."""
    clock = Clock()
    lines = ProgressLines("converting", 13_500_000_000, clock=clock)
    for seconds, n_bytes in ((1, 10**8), (29.5, 10**9), (30.5, 10**9), (31, 10**9), (59, 10**9), (61, 10**9)):  # fmt: skip
        clock.now = 1000 + seconds
        lines.advance(n_bytes)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "converting: 2.1 GB of 13.5 GB (15%), 68.9 MB/s, 3 min left",
        "converting: 5.1 GB of 13.5 GB (37%), 83.6 MB/s, 2 min left",
    ]


def test_many_threads_count_every_byte(capsys):
    clock = Clock()
    lines = ProgressLines("verifying", 80_000, clock=clock)
    threads = [Thread(target=lambda: [lines.advance(1) for _ in range(10_000)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    clock.now += 40
    lines.advance(0)
    assert capsys.readouterr().err == "verifying: 80.0 kB of 80.0 kB (100%), 0.0 MB/s, 0 s left\n"


def test_what_cannot_be_printed_does_not_end_the_work(monkeypatch):
    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")

        def flush(self):
            raise OSError(28, "No space left on device")

    clock = Clock()
    lines = ProgressLines("converting", 10, interval_seconds=0.0, clock=clock)
    monkeypatch.setattr(sys, "stderr", Full())
    lines.advance(5)
    lines.advance(5)


@pytest.mark.parametrize(
    ("done", "total", "seconds", "line"),
    [
        (5_000_000_000, 10_000_000_000, 10.0, "w: 5.0 GB of 10.0 GB (50%), 0.50 GB/s, 10 s left"),
        (1_000_000_000, 10_000_000_000, 10.0, "w: 1.0 GB of 10.0 GB (10%), 0.10 GB/s, 90 s left"),
        (1_000_000_000, 10_000_000_000, 20.0, "w: 1.0 GB of 10.0 GB (10%), 50.0 MB/s, 3 min left"),
        (10_000_000, 10_000_000_000, 20.0, "w: 10.0 MB of 10.0 GB (0%), 0.5 MB/s, 5.5 h left"),
        (2_000_000, None, 1.0, "w: 2.0 MB, 2.0 MB/s"),
        (0, 10_000, 31.0, "w: 0 B of 10.0 kB (0%)"),
        (20_000, 10_000, 1.0, "w: 20.0 kB of 10.0 kB (200%), 0.0 MB/s, 0 s left"),
        (0, 0, 1.0, "w: 0 B"),
    ],
)
def test_a_line_says_how_far_how_fast_and_how_long(done, total, seconds, line):
    assert progress_line("w", done, total, seconds) == line


@pytest.mark.parametrize(("hidden", "n_lines"), [(False, 1), (True, 0)])
def test_quiet_says_nothing(capsys, hidden, n_lines):
    with progress_bar("converting", 10, hidden=hidden, interval_seconds=0.0) as advance:
        assert (advance is None) == hidden
        if advance is not None:
            advance(10)
    assert len(capsys.readouterr().err.splitlines()) == n_lines


def test_a_short_run_says_nothing_of_it(checkpoint):
    done = run("--input_dir", checkpoint)
    assert done.exit_code == 0
    assert "converting" not in done.stderr
