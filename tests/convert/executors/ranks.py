"""Own the way back by an executor: what is asked for, what is staged, and what is kept of it."""

from __future__ import annotations

import os
import signal
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from codellama_convert import reverse_checkpoint
from codellama_convert.convert.jobs import write_file
from codellama_convert.plan.ranks.options import ReverseOptions
from tests.convert.executors.workers import Counting
from tests.faults.dying import die_after
from tests.outputs import LOCK, STAGING, content, journal_of

N_RANKS = 4
OPTIONS = ReverseOptions(n_ranks=N_RANKS, workers=1)
NAMES = [f"consolidated.{number:02d}.pth" for number in range(N_RANKS)]


def back(source: Path, target: Path, how: Executor | None = None) -> Any:
    return reverse_checkpoint(source, target, options=OPTIONS, executor=how)


def requests(pool: Counting) -> list[tuple[str, ...]]:
    return sorted(request.names for fn, request in pool.asked if fn is write_file)


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.glob("consolidated.*.pth")}


def die_with_two(source: Path, target: Path) -> None:
    """Leave what a coordinator leaves that is killed when two ranks have their names."""
    pid = os.fork()
    if pid == 0:
        try:
            die_after("file journaled", times=2)
            with ThreadPoolExecutor(1) as pool:
                back(source, target, pool)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    (target / LOCK).unlink()
    assert len(inodes(target / STAGING)) == 2


def assert_keeps(source: Path, target: Path, n_kept: int, expected: dict[str, bytes]) -> None:
    """Run by workers once more, and see how many ranks of the earlier run are kept."""
    staged = inodes(target / STAGING)
    journal = journal_of(target)
    assert journal is not None
    assert staged.keys() == journal.sealed.keys()
    hold = [(target / STAGING / name).open("rb") for name in staged]  # so no inode is used again
    with Counting() as pool:
        report = back(source, target, pool)
    for file in hold:
        file.close()
    assert len(requests(pool)) == N_RANKS - n_kept
    assert len(staged.items() & inodes(target).items()) == n_kept
    assert (report.kept_bytes > 0) == (n_kept > 0)
    assert report.kept_bytes < report.tensor_bytes
    assert content(target) == expected
    assert not (target / STAGING).exists()
