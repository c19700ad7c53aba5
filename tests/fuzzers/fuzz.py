"""Run every fuzzer: each is a module beside this one, and `running` what they share.

A quick share of each runs in tests/fuzzers/test_fuzz.py. The full sweep, twenty minutes on one core:

    python -m tests.fuzzers.fuzz --full

It is part of `python -m tests.faults.sweep`, which runs all families. It runs 20,000 damaged files, the
same with the CRC-32 check switched off (which must find silently wrong weights, or the first run
proved nothing), 20,000 forged pickles whose CRC-32 is right, 20,000 forged journals of staged work
(tests/fuzzers/fuzz_records.py), 1,000 random layouts that are interrupted and resumed, and, through every
public entrance of a process of its own, 20,000 forged tokenizers and 20,000 wild numbers
(tests/fuzzers/fuzz_tokenizers.py, tests/fuzzers/fuzz_numbers.py); it prints how many ended how, and exits with 1 if
any ended wrong. Of all but the files some more are run by a program with a planted mistake, which
must be found.
`--files N`, `--pickles N`, `--layouts N`, `--records N`, `--outputs N`, `--tokenizers N` and
`--numbers N` run some of it; `--seed N` runs others of its kind.
Every mutant follows from its family, the seed and its number, which are printed where one fails.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable

from tests.fuzzers import fuzz_numbers, fuzz_outputs, fuzz_records, fuzz_tokenizers
from tests.fuzzers.fuzz_files import fuzz_files
from tests.fuzzers.fuzz_layouts import (
    PLANTED_IN_LAYOUTS,
    fuzz_layouts,
    planted_in_layouts,
    planted_in_pickles,
)
from tests.fuzzers.fuzz_pickles import fuzz_pickles
from tests.fuzzers.running import measured_growth

N_FULL = {
    "files": 20_000, "pickles": 20_000, "layouts": 1_000, "outputs": 20_000, "records": 20_000,
    "tokenizers": 20_000, "numbers": 20_000,
}  # fmt: skip


MAX_GROWTH_BYTES = 64 << 20


def _sweep_outputs(n_mutants: int, seed: int, report: Callable[..., None]) -> None:
    began = time.monotonic()
    tally = fuzz_outputs.fuzz_outputs(n_mutants, seed=seed)
    report("damaged outputs", tally, began, passed=set(tally) <= fuzz_outputs.RIGHT)
    began = time.monotonic()
    tally = fuzz_outputs.fuzz_outputs(min(n_mutants, 2_000), seed=seed, compare_values=False)
    report("the same, values not compared", tally, began, passed=tally["missed"] > 0)


def _sweep_records(n_mutants: int, seed: int, report: Callable[..., None]) -> None:
    began = time.monotonic()
    fuzz_records.fuzz_records(20)  # to warm up
    tally, growth = measured_growth(lambda: fuzz_records.fuzz_records(n_mutants, seed=seed))
    passed = set(tally) <= fuzz_records.RIGHT and growth <= MAX_GROWTH_BYTES
    report(f"forged journals, peak +{growth / 1e6:.1f} MB", tally, began, passed=passed)
    began = time.monotonic()
    found = fuzz_records.planted_in_records()
    report("the same, believed", found, began, passed=found["crash"] > 0)


def _sweep_entrances(
    n_tokenizers: int, n_numbers: int, seed: int, report: Callable[..., None]
) -> None:
    for what, n_cases, fuzz, right in (
        ("tokenizers", n_tokenizers, fuzz_tokenizers.fuzz_tokenizers, fuzz_tokenizers.RIGHT),
        ("numbers", n_numbers, fuzz_numbers.fuzz_numbers, fuzz_numbers.RIGHT),
    ):
        if not n_cases:
            continue
        began = time.monotonic()
        tally, peak, seconds = fuzz(n_cases, seed=seed)
        cost = f"a case at most {peak / 1e6:.0f} MB and {seconds:.1f} s"
        report(f"{what}, {cost}", tally, began, passed=set(tally) <= right)
        began = time.monotonic()
        planted, _, _ = fuzz(min(n_cases, 300), seed=seed, plant=what)
        report("the same, a check left out", planted, began, passed=planted["crash"] > 0)


def main() -> int:
    """Run what the command line asks for; 0 if all of it ended right."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzers.fuzz", description=__doc__)
    parser.add_argument("--full", action="store_true")
    for name in N_FULL:
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    counts = N_FULL if asked.full else {name: getattr(asked, name) for name in N_FULL}
    n_files, n_pickles, n_layouts, n_outputs, n_records, *n_others = counts.values()
    right = True

    def report(what: str, tally: Counter[str], began: float, *, passed: bool) -> None:
        nonlocal right
        right = right and passed
        ended = ", ".join(f"{count} {how}" for how, count in tally.most_common())
        verdict = "pass" if passed else "FAIL"
        sys.stdout.write(f"{verdict}  {what}: {ended} ({time.monotonic() - began:.0f} s)\n")
        sys.stdout.flush()

    if n_files:
        began = time.monotonic()
        tally = fuzz_files(n_files, seed=asked.seed)
        report("damaged files", tally, began, passed=set(tally) <= {"exact", "refused"})
        began = time.monotonic()
        tally = fuzz_files(n_files, seed=asked.seed, check_crc=False)
        report("the same, CRC-32 check off", tally, began, passed=tally["wrong"] > 0)
    if n_pickles:
        began = time.monotonic()
        fuzz_pickles(0)  # the good ones, to warm up
        tally, growth = measured_growth(lambda: fuzz_pickles(n_pickles, seed=asked.seed))
        passed = set(tally) <= {"converted", "refused"} and growth <= MAX_GROWTH_BYTES
        report(f"forged pickles, peak +{growth / 1e6:.1f} MB", tally, began, passed=passed)
        began = time.monotonic()
        found = planted_in_pickles()
        report("the same, a check left out", found, began, passed=found["crash"] > 0)
    if n_layouts:
        began = time.monotonic()
        fuzz_layouts(n_layouts)
        report("random layouts", Counter(exact=n_layouts), began, passed=True)
        for name, plant in PLANTED_IN_LAYOUTS.items():
            began = time.monotonic()
            found = planted_in_layouts(plant)
            report(f"the same, {name}", found, began, passed=found["wrong"] > 0)
    if n_outputs:
        _sweep_outputs(n_outputs, asked.seed, report)
    if n_records:
        _sweep_records(n_records, asked.seed, report)
    if any(n_others):
        _sweep_entrances(*n_others, asked.seed, report)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
