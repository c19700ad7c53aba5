"""The command: run cases, tell how they ended, and the story of each that ended wrong."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.faults.differential.cases import Case, lines_of
from tests.faults.differential.plants import PLANTS
from tests.faults.verdict import scratch


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for.

    Returns:
        0 if all cases ended right; with a planted mistake, if one did not.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.faults.differential")
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1, help="of the first case; others follow")
    parser.add_argument("--plant", choices=sorted(PLANTS), help="stop where the mistake is found")
    parser.add_argument("--most_problems", type=int, default=1, help="stop after so many")
    asked = parser.parse_args(arguments)
    began = time.monotonic()
    ends: Counter[str] = Counter()
    wrong = []
    n_cases = 0
    with scratch() as folder:
        for seed in range(asked.seed, asked.seed + asked.cases):
            n_cases += 1
            with tempfile.TemporaryDirectory(dir=folder) as name:
                case = Case(seed, Path(name), asked.plant)
                problem = case.problem()
            ends += case.ends
            if problem is not None:
                wrong.append(seed)
                sys.stdout.write("".join(f"{line}\n" for line in lines_of(case, problem)))
                sys.stdout.flush()
                if len(wrong) == asked.most_problems:
                    break
    ended = ", ".join(f"{count} x {how}" for how, count in ends.most_common())
    passed = bool(wrong) == bool(asked.plant)
    sys.stdout.write(
        f"{'pass' if passed else 'FAIL'}  {n_cases} cases, {len(wrong)} wrong"
        f" ({time.monotonic() - began:.0f} s): {ended}\n"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
