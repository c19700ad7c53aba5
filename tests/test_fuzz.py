"""A quick share of the fuzzers; `python -m tests.fuzz --full` runs the sweep."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.fuzz import (
    PLANTED_IN_LAYOUTS,
    fuzz_files,
    fuzz_layouts,
    fuzz_pickles,
    planted_in_layouts,
    planted_in_pickles,
)
from tests.fuzz_outputs import RIGHT, fuzz_outputs
from tests.fuzz_records import fuzz_records, planted_in_records

ROOT = Path(__file__).parent.parent
N_FILES, N_PICKLES, N_LAYOUTS, N_OUTPUTS, N_RECORDS = 600, 600, 30, 500, 200


def test_damaged_files_give_the_same_bytes_or_an_error() -> None:
    tally = fuzz_files(N_FILES)
    assert set(tally) == {"exact", "refused"}
    assert tally["refused"] > N_FILES / 2
    assert tally["exact"] > 0, "no mutant hit bytes that do not matter: are they all damaged?"


def test_without_the_crc_check_damaged_files_are_silently_wrong() -> None:
    """The planted fault: a fuzzer that cannot see it proves nothing."""
    tally = fuzz_files(N_FILES // 2, check_crc=False)
    assert tally["wrong"] > N_FILES / 20


def test_forged_pickles_are_refused_or_converted() -> None:
    tally = fuzz_pickles(N_PICKLES)
    assert set(tally) == {"converted", "refused"}


def test_damaged_outputs_are_found_and_damaged_small_inputs_are_no_crash() -> None:
    tally = fuzz_outputs(N_OUTPUTS)
    assert set(tally) <= RIGHT, tally
    assert tally["found"] > N_OUTPUTS / 2
    assert tally["refused"] > 0
    assert tally["converted"] > 0


def test_without_the_comparison_of_values_damaged_outputs_are_missed() -> None:
    """The planted fault."""
    assert fuzz_outputs(N_OUTPUTS // 2, compare_values=False)["missed"] > N_OUTPUTS / 40


def test_forged_journals_end_in_the_right_model_or_in_one_line() -> None:
    tally = fuzz_records(N_RECORDS)
    assert set(tally) == {"exact", "refused"}, tally


def test_journals_that_are_believed_end_in_tracebacks() -> None:
    """The planted fault."""
    assert planted_in_records()["crash"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in /proc")
def test_the_sweep_runs_by_its_command_in_bounded_memory() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--pickles", "300", "--seed", "1"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stdout.startswith("pass  forged pickles, peak +")


def test_random_layouts_equal_the_oracle_and_the_library_bit_for_bit() -> None:
    fuzz_layouts(N_LAYOUTS)


def test_a_mistake_that_is_planted_in_the_pickle_machine_is_found() -> None:
    assert planted_in_pickles()["crash"] > 0


@pytest.mark.parametrize("plant", PLANTED_IN_LAYOUTS.values(), ids=PLANTED_IN_LAYOUTS.keys())
def test_a_mistake_that_is_planted_in_the_moving_of_bytes_is_found(
    plant: Callable[[], AbstractContextManager[object]],
) -> None:
    assert planted_in_layouts(plant) == {"wrong": 1}
