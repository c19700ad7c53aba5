"""Killed at any step, a run leaves nothing that loads, and the next one finishes."""

from __future__ import annotations

import os

import pytest

from tests.faults.kills import KillBench, spoil_the_check, spoil_the_order
from tests.faults.resumes import spoil_the_records

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills and signals as POSIX has them")


FULL = bool(os.environ.get("CODELLAMA_CONVERT_FULL_SWEEP"))


def sweep(total: int) -> list[int]:
    """All steps in the full sweep; in the quick suite every fifth, and the last ones."""
    assert total > 30
    return [n for n in range(1, total + 1) if FULL or n % 5 == 0 or n > total - 8]


def test_a_kill_at_any_step_leaves_nothing_that_loads_and_the_rerun_the_same_bytes(quick_path):
    bench = KillBench(quick_path, older=False)
    for kill_at in sweep(bench.n_steps):
        assert bench.problems(kill_at) == []
    assert set(bench.ends) == {"nothing", "new"}


def test_a_kill_while_overwriting_never_mixes_two_models(quick_path):
    bench = KillBench(quick_path, older=True)
    for kill_at in sweep(bench.n_steps):
        assert bench.problems(kill_at) == []
    assert set(bench.ends) == {"old", "nothing", "new"}


@pytest.mark.parametrize("older", [False, True])
def test_the_sweep_sees_an_index_that_is_not_the_last(quick_path, older):
    """The control of the two tests above: files come after what leads to them."""
    bench = KillBench(quick_path, older=older, spoil=spoil_the_order)
    late = range(bench.n_steps - 30, bench.n_steps + 1)
    assert any("torn" in problem for kill_at in late for problem in bench.problems(kill_at))


def test_a_kill_at_any_step_and_damage_after_it_cost_the_damaged_files_only(quick_path):
    """All tensors of a rank lie in one storage, so its sum spans files of all runs."""
    bench = KillBench(quick_path, storage="flat", damage=True)
    for kill_at in sweep(bench.n_steps)[::2]:
        assert bench.problems(kill_at) == []


def test_the_sweep_sees_records_of_all_that_was_read_so_far(quick_path):
    """The control of the test above."""
    bench = KillBench(quick_path, storage="flat", damage=True, spoil=spoil_the_records)
    middle = range(bench.n_steps // 3, bench.n_steps * 2 // 3)
    assert any("written again" in problem for n in middle for problem in bench.problems(n))


@pytest.mark.parametrize("older", [False, True])
def test_a_file_that_was_damaged_while_publishing_does_not_go_out(quick_path, older):
    bench = KillBench(quick_path, older=older)
    for kill_at in sweep(bench.n_steps)[-14:]:
        assert bench.problems_of_damage(kill_at, kill_at) == []
    assert set(bench.ends) == {"staged file damaged", "moved file damaged"}


@pytest.mark.parametrize("older", [False, True])
def test_the_sweep_sees_a_publishing_without_a_check(quick_path, older):
    """The control of the test above: what an earlier run has left goes out as it lies there."""
    bench = KillBench(quick_path, older=older, spoil=spoil_the_check)
    late = range(bench.n_steps - 30, bench.n_steps + 1, 4)
    assert any(bench.problems_of_damage(kill_at, kill_at) for kill_at in late)
