"""The whole sweep: every family of faults, each to its end, in one command.

    python -m tests.faults.sweep

It prints one line for each family, with counts and verdict, and exits with 1 if one failed:

fuzz      damaged files, the same without the CRC-32 check, forged pickles, random layouts, outputs
          (tests/fuzzers/fuzz.py, in a process of its own: `python -m tests.fuzzers.fuzz --full`)
kills     the process dies at every step, and again while it resumes; the same over an older result,
          and with staged files damaged in between, for each way tensors may lie in storages;
          while it publishes, each file that goes out is damaged after the kill
runs      random checkpoints and options, killed and damaged at random, against a reference
          (tests/faults/differential, in a process of its own: `python -m tests.faults.differential`)
syscalls  every call on the output folder fails with ENOSPC, with EIO, and is the last one
order     what is on the disk before what, and whether each fsync is missed
neighbours  somebody else swaps the staging folder or what is in it, at each step
workers   kills, damage, neighbours, calls and their order once more, while the workers of an executor
          write the files
sizes     a rank of more than 4 GB, and one with records of more than 4 GB, are written for real and
          compared with torch's; takes 18 GB of disk

Kills, syscalls, order and neighbours run in each direction: ranks to Hugging Face, the way back, and
ranks to another number of them.

Each family has a control that must succeed, without which it does not begin, and planted mistakes
that must be found. Names of families run some of them. A share of each runs in the suite.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence

from tests.faults.families import FAMILIES, NEED_STRACE
from tests.faults.syscalls import strace
from tests.faults.verdict import Family

_MOST_PROBLEMS = 20


def run(families: Mapping[str, Family], workers: int) -> int:
    """Run families and print a line for each verdict; 0 if none failed."""
    failed = 0
    for name, family in families.items():
        reason = strace.why_not() if family in NEED_STRACE else None
        if reason is not None:
            sys.stdout.write(f"skip  {name}: {reason}\n")
            continue
        began = time.monotonic()
        for verdict in family(workers):
            seconds = time.monotonic() - began
            word = "pass" if verdict.passed else "FAIL"
            failed += not verdict.passed
            sys.stdout.write(f"{word}  {verdict.family}: {verdict.ended} ({seconds:.0f} s)\n")
            for problem in verdict.problems[:_MOST_PROBLEMS]:
                sys.stdout.write(f"      {problem}\n")
            sys.stdout.flush()
            began = time.monotonic()
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; 0 if all of it ended right."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.sweep", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("families", nargs="*", choices=[[], *FAMILIES], metavar="FAMILY")
    parser.add_argument("--workers", type=int, default=2, help="processes for the system calls")
    asked = parser.parse_args(arguments)
    chosen = {name: FAMILIES[name] for name in asked.families or FAMILIES}
    return run(chosen, asked.workers)


if __name__ == "__main__":
    sys.exit(main())
