"""Count which small changes of the core's code (mutants) its quick tests notice.

Run, after `pip install --group mutation`:

    python -m tests.house.mutation                               # every module that pyproject.toml names
    python -m tests.house.mutation 'codellama_convert.model.rope.*'    # some mutants again

mutmut keeps what it found in mutants/ and resumes there. `mutmut show NAME` prints a mutant.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from mutmut.stats import status_by_exit_code

ROOT = Path(__file__).parents[2]
NOTICED = ("killed", "timeout")  # a mutant that never ends is seen too


def main() -> int:
    """Run the mutants, then print a line for each module and the names of the survivors."""
    command = [sys.executable, "-m", "mutmut", "run", *sys.argv[1:]]
    done = subprocess.run(command, check=False, cwd=ROOT)
    survivors, noticed, total = [], Counter(), Counter()
    for path in sorted(ROOT.glob("mutants/codellama_convert/**/*.meta")):
        module = path.name.removesuffix(".py.meta")
        for name, exit_code in json.loads(path.read_text())["exit_code_by_key"].items():
            status = status_by_exit_code[exit_code]
            if status == "not checked":
                continue
            total[module] += 1
            noticed[module] += status in NOTICED
            if status not in NOTICED:
                survivors.append(f"{status:<10} {name}")
    lines = [
        *survivors,
        *(f"{name:<16} {noticed[name]:>5} of {n:>5} noticed" for name, n in total.items()),
        f"{'in all':<16} {noticed.total():>5} of {total.total():>5} noticed",
    ]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
