"""Say how long a benchmark still takes; part of benchmark.py."""

from __future__ import annotations

from collections.abc import Sequence

import click
from benchmark_cases import Bench, build_cases

# Until a case was measured: reading and writing together, and the start of a process.
DISK_BYTES_PER_SECOND = 1.1e9
MEMORY_BYTES_PER_SECOND = 2e9
START_SECONDS = 1.0
IMPORT_SECONDS = 5.0  # of torch, which makes the checkpoints
MAKING = "making the checkpoint"


class Clock:
    """What is still to do, and how long each of it should take."""

    def __init__(self, benches: Sequence[Bench]) -> None:
        """Guess from the bytes; what was measured once counts after that.

        Args:
            benches: What will be measured.
        """
        self._expected: dict[tuple[str, str], float] = {}
        self._left: dict[tuple[str, str], int] = {}
        for bench in benches:
            series = bench.series
            rate = MEMORY_BYTES_PER_SECOND if series.in_memory else DISK_BYTES_PER_SECOND
            cases = build_cases(bench, threads=1, direct=True)
            moved = {MAKING: 0.0 if series.sparse else 1.0}
            # Where both are done, reading goes on while the bytes before are written.
            moved |= {name: max(cases[name].reads, 2 * cases[name].writes) for name in bench.rounds}
            for name, times in moved.items():
                start = IMPORT_SECONDS if name == MAKING else START_SECONDS
                seconds = start + times * bench.size.n_bytes / rate
                self._expected[series.name, name] = seconds
                self._left[series.name, name] = bench.rounds.get(name, 1)

    def minutes_left(self) -> float:
        """Say how long the rest should take."""
        return sum(n * self._expected[key] for key, n in self._left.items()) / 60

    def show(self, series: str, name: str, seconds: float) -> None:
        """Show what was measured, and count it as done.

        Args:
            series: Of the case.
            name: The case's.
            seconds: What it took.
        """
        key = (series, name)
        guess, self._expected[key] = self._expected[key], seconds
        self._left[key] -= 1
        click.echo(
            f"{series} {name}: {seconds:.2f} s, {guess:.1f} s were expected; "
            f"about {self.minutes_left():.1f} minutes left",
            err=True,
        )
