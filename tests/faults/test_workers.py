"""The coordinator while things fail: the promises of a run whose files workers write are the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.directions import BACK_BY_WORKERS, BY_ORDERLY_WORKERS, BY_WORKERS, Direction
from tests.faults.kills import KillBench, spoil_the_check, spoil_the_order
from tests.faults.neighbours import (
    OF_ANYBODY,
    OF_ANYBODY_BY_WORKERS,
    NeighbourBench,
    planted_belief,
)
from tests.faults.syscalls import scenes, strace
from tests.faults.syscalls.bench import Bench, sweep

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills and links as POSIX has them")
by_direction = pytest.mark.parametrize(
    "direction", [BY_WORKERS, BACK_BY_WORKERS], ids=lambda one: one.name
)


def share(n_steps: int) -> range:
    """Choose every twelfth step; `tests.faults.sweep workers` takes all."""
    assert n_steps > 30
    return range(5, n_steps + 1, 12)


@by_direction
def test_a_kill_at_any_step_leaves_nothing_that_loads_and_the_rerun_the_same_bytes(
    quick_path: Path, direction: Direction
) -> None:
    bench = KillBench(quick_path, direction)
    for kill_at in (*share(bench.n_steps), bench.n_steps):
        assert bench.problems(kill_at) == []
    assert set(bench.ends) == {"nothing", "new"}


def test_the_sweep_sees_an_index_that_is_not_the_last(quick_path: Path) -> None:
    """The control of the test above."""
    bench = KillBench(quick_path, BY_WORKERS, spoil=spoil_the_order)
    late = range(bench.n_steps - 15, bench.n_steps + 1)
    assert any("torn" in problem for kill_at in late for problem in bench.problems(kill_at))


def test_a_kill_and_damage_after_it_cost_no_right_byte(quick_path: Path) -> None:
    bench = KillBench(quick_path, BY_WORKERS, storage="flat", damage=True)
    for kill_at in share(bench.n_steps):
        assert bench.problems(kill_at) == []


def test_the_sweep_sees_workers_who_do_not_read_what_is_kept(quick_path: Path) -> None:
    """The control of the test above."""
    bench = KillBench(quick_path, BACK_BY_WORKERS, damage=True, spoil=spoil_the_check)
    middle = range(bench.n_steps // 2, bench.n_steps)
    assert any("other bytes" in problem for n in middle for problem in bench.problems(n))


def test_what_a_neighbour_swaps_is_neither_written_nor_published(quick_path: Path) -> None:
    bench = NeighbourBench(quick_path / "bench", BY_ORDERLY_WORKERS)
    attacks = {**OF_ANYBODY, **OF_ANYBODY_BY_WORKERS}
    for number, (name, strike) in enumerate(attacks.items()):
        if os.geteuid() == 0 or "for a file" not in name:
            for at in range(number, len(bench.steps), 24):
                assert bench.problems(strike, at, as_other=False) == [], name
    with planted_belief():  # the control
        strike, found = OF_ANYBODY["part for a hard link"], "outside"
        some = (bench.problems(strike, at, as_other=False) for at in range(2, 30, 2))
        assert any(found in problem for problems in some for problem in problems)


@pytest.mark.skipif(strace.why_not() is not None, reason=str(strace.why_not()))
def test_whatever_call_fails_nothing_is_torn_and_the_rerun_finishes(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "bench", scenes.BY_WORKERS[0])
    faults = scenes.of_workers(list(bench.faults()))
    counts, problems = sweep(bench, faults[::20])
    assert problems == []
    assert len(counts) > 3
