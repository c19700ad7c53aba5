"""Own what a family of faults says of its end, and the folder that it has for itself."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a family ended.

    Attributes:
        family: Its name, and of what.
        ended: Counts, in words.
        passed: Whether it ended as it must.
        problems: What went wrong.
    """

    family: str
    ended: str
    passed: bool
    problems: Sequence[str] = ()


Family = Callable[[int], Iterator[Verdict]]


@contextmanager
def scratch(*, on_disk: bool = False) -> Iterator[Path]:
    """Make a folder in memory where there is one, or on a disk, which has direct I/O."""
    place = Path("/var/tmp" if on_disk else "/dev/shm")
    with tempfile.TemporaryDirectory(
        dir=place if place.is_dir() else None, prefix="codellama-convert-sweep-"
    ) as name:
        yield Path(name)


def in_words(counts: Mapping[str, int]) -> str:
    """Spell counts, the largest first."""
    return ", ".join(f"{n} {name}" for name, n in Counter(counts).most_common())
