"""A quick share of the fuzzers; `python -m tests.fuzzers.fuzz --full` runs the sweep."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.fuzzers.fuzz_files import fuzz_files
from tests.fuzzers.fuzz_layouts import (
    PLANTED_IN_LAYOUTS,
    fuzz_layouts,
    planted_in_layouts,
    planted_in_pickles,
)
from tests.fuzzers.fuzz_numbers import RIGHT as RIGHT_NUMBERS
from tests.fuzzers.fuzz_numbers import fuzz_numbers
from tests.fuzzers.fuzz_outputs import RIGHT, fuzz_outputs
from tests.fuzzers.fuzz_pickles import fuzz_pickles
from tests.fuzzers.fuzz_records import fuzz_records, planted_in_records
from tests.fuzzers.fuzz_tokenizers import RIGHT as RIGHT_TOKENIZERS
from tests.fuzzers.fuzz_tokenizers import fuzz_tokenizers

ROOT = Path(__file__).parents[2]
N_FILES, N_PICKLES, N_LAYOUTS, N_OUTPUTS, N_RECORDS = 600, 600, 30, 500, 200
N_TOKENIZERS, N_NUMBERS = 100, 300
needs_pipes = pytest.mark.skipif(os.name == "nt", reason="waits for an answer through a pipe")


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
        [sys.executable, "-m", "tests.fuzzers.fuzz", "--pickles", "300", "--seed", "1"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stdout.startswith("pass  forged pickles, peak +")


@needs_pipes
def test_forged_tokenizers_are_refused_or_harmless_at_every_entrance() -> None:
    """In a process of their own, where an abort of sentencepiece counts, at most 96 MB and 10 s."""
    tally, peak, _ = fuzz_tokenizers(N_TOKENIZERS)
    assert set(tally) <= RIGHT_TOKENIZERS, tally
    assert tally["refused"] > N_TOKENIZERS / 3
    assert tally["done"] > N_TOKENIZERS / 20
    assert peak > 20 << 20 or sys.platform != "linux"


@needs_pipes
def test_wild_numbers_are_refused_found_or_possible() -> None:
    """2**31, 2**32, 2**53, 2**63, 2**64 and their neighbours in every numeric field."""
    tally, _, _ = fuzz_numbers(N_NUMBERS)
    assert set(tally) <= RIGHT_NUMBERS, tally
    assert tally["refused"] > N_NUMBERS / 3
    assert tally["exact"] > 0
    assert tally["found"] > 0


@needs_pipes
def test_mistakes_that_are_planted_behind_the_entrances_are_found() -> None:
    assert fuzz_tokenizers(40, seed=4, plant="tokenizers")[0]["crash"] > 0
    assert fuzz_numbers(60, seed=4, plant="numbers")[0]["crash"] > 0


def test_random_layouts_equal_the_oracle_and_the_library_bit_for_bit() -> None:
    fuzz_layouts(N_LAYOUTS)


def test_a_mistake_that_is_planted_in_the_pickle_machine_is_found() -> None:
    assert planted_in_pickles()["crash"] > 0


@pytest.mark.parametrize("plant", PLANTED_IN_LAYOUTS.values(), ids=PLANTED_IN_LAYOUTS.keys())
def test_a_mistake_that_is_planted_in_the_moving_of_bytes_is_found(
    plant: Callable[[], AbstractContextManager[object]],
) -> None:
    assert planted_in_layouts(plant) == {"wrong": 1}
