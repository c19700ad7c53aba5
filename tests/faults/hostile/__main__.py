"""Write the whole corpus out to look at: `python -m tests.faults.hostile FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.faults.hostile import CASES


def write_corpus(folder: Path) -> None:
    """Write every case into a folder of its own, with what is expected of it."""
    for case in CASES.values():
        place = folder / case.name / "input"
        case.write(place)
        expectation = {"accepted": case.accepted, "names": case.names, "facts": case.facts}
        (place.parent / "expected.json").write_text(json.dumps(expectation) + "\n")


if __name__ == "__main__":
    write_corpus(Path(sys.argv[1]))
