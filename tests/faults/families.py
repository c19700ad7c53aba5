"""Every family of faults, each to its end: `python -m tests.faults.sweep` runs them."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator

from tests.convert.true_sizes import RANK_OVER_4_GB, RECORDS_OVER_4_GB, differing_ranks
from tests.faults.differential.plants import PLANTS as TROUBLE
from tests.faults.directions import (
    ACROSS,
    ACROSS_BY_WORKERS,
    BACK,
    BACK_BY_WORKERS,
    BY_ORDERLY_WORKERS,
    BY_WORKERS,
    DIRECTIONS,
    FORWARD,
    Direction,
)
from tests.faults.kills import KillBench, spoil_the_check, spoil_the_order
from tests.faults.neighbours import (
    OF_A_NEIGHBOUR,
    OF_ANYBODY,
    OF_ANYBODY_BY_WORKERS,
    NeighbourBench,
    planted_belief,
)
from tests.faults.neighbours import why_not as why_no_neighbour
from tests.faults.resumes import spoil_the_records
from tests.faults.syscalls import scenes, strace
from tests.faults.syscalls.families import failing_calls, order, order_of, syscalls
from tests.faults.verdict import Family, Verdict, in_words, scratch
from tests.outputs import ROOT, environment
from tests.witness.checkpoints import STORAGES

_N_TROUBLED = 1000


def fuzz(workers: int) -> Iterator[Verdict]:
    """Run the fuzzers; they print their own lines."""
    del workers
    command = [sys.executable, "-m", "tests.fuzzers.fuzz", "--full"]
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment())
    yield Verdict("fuzzers", f"exit status {done.returncode}", done.returncode == 0)


def kills(workers: int) -> Iterator[Verdict]:
    """Kill at every step."""
    del workers
    for direction, older in (
        (FORWARD, False),
        (FORWARD, True),
        (BACK, False),
        (BACK, True),
        (ACROSS, False),
    ):
        yield from _kills(direction, older=older)
    for direction in DIRECTIONS:
        yield from _kills_and_damage(direction)
    with scratch() as folder:
        spoiled = KillBench(folder, storage="flat", damage=True, spoil=spoil_the_records)
        steps = range(1, spoiled.n_steps + 1)
        found = [step for step in steps if any("again" in p for p in spoiled.problems(step))]
    ended = f"seen at {len(found)} of {len(steps)} steps"
    yield Verdict("kills and damage, records of all that was read", ended, bool(found))


def _kills(direction: Direction, *, older: bool) -> Iterator[Verdict]:
    """Kill at every step in one direction."""
    what = f"{direction.name}, {'over an older result' if older else 'in a new folder'}"
    with scratch() as folder:
        bench = KillBench(folder, direction, older=older)
        steps = range(1, bench.n_steps + 1)
        problems = [problem for step in steps for problem in bench.problems(step)]
        ends = dict(bench.ends)
        all_seen = set(ends) == ({"nothing", "new", "old"} if older else {"nothing", "new"})
    ended = f"{len(steps)} steps, 3 kills each; then found: {in_words(ends)}"
    yield Verdict(f"kills {what}", ended, not problems and all_seen, problems)
    with scratch() as folder:
        spoiled = KillBench(folder, direction, older=older, spoil=spoil_the_order)
        found = [step for step in steps if any("torn" in p for p in spoiled.problems(step))]
    ended = f"seen at {len(found)} of {len(steps)} steps"
    yield Verdict(f"kills {what}, entrance not the last", ended, bool(found))
    yield from _damage_while_publishing(what, direction, older=older)


def _kills_and_damage(direction: Direction) -> Iterator[Verdict]:
    """Kill at every step, and damage staged files after each kill."""
    for storage in STORAGES if not direction.from_hugging_face else STORAGES[:1]:
        with scratch() as folder:
            bench = KillBench(folder, direction, storage=storage, damage=True)
            steps = range(1, bench.n_steps + 1)
            problems = [problem for step in steps for problem in bench.problems(step)]
        what = f"kills and damage, {direction.name}, storage {storage}"
        yield Verdict(what, f"{len(steps)} steps, 3 kills each", not problems, problems)


def _damage_while_publishing(what: str, direction: Direction, *, older: bool) -> Iterator[Verdict]:
    """Damage what a killed run had begun to publish, and then publish it without a check."""
    with scratch() as folder:
        bench = KillBench(folder, direction, older=older)
        steps = range(1, bench.n_steps + 1)
        problems = [problem for step in steps for problem in bench.problems_of_damage(step)]
        ends = dict(bench.ends)
    passed = not problems and set(ends) == {"staged file damaged", "moved file damaged"}
    yield Verdict(f"kills {what}, then damage", f"{in_words(ends)}", passed, problems)
    with scratch() as folder:
        spoiled = KillBench(folder, direction, older=older, spoil=spoil_the_check)
        found = [step for step in steps if spoiled.problems_of_damage(step)]
    ended = f"seen at {len(found)} of {len(steps)} steps"
    yield Verdict(f"kills {what}, then damage, unchecked", ended, bool(found))


def runs(workers: int) -> Iterator[Verdict]:
    """Run random troubled conversions; they print their own lines."""
    del workers
    start = [sys.executable, "-m", "tests.faults.differential"]
    for what, arguments in (
        ("troubled runs", ("--cases", str(_N_TROUBLED))),
        *(
            (f"troubled runs, {name}", ("--cases", str(planted.within), "--plant", name))
            for name, planted in TROUBLE.items()
        ),
    ):
        done = subprocess.run([*start, *arguments], check=False, cwd=ROOT, env=environment())
        yield Verdict(what, f"exit status {done.returncode}", done.returncode == 0)


def neighbours(workers: int) -> Iterator[Verdict]:
    """Let a neighbour strike at every step, in every way."""
    del workers
    for direction in DIRECTIONS:
        yield from _attacks(direction)


def _attacks(direction: Direction) -> Iterator[Verdict]:
    """Let a neighbour strike in one direction."""
    attacks = (
        {} if why_no_neighbour() else {name: (how, True) for name, how in OF_A_NEIGHBOUR.items()}
    )
    by_hand = OF_ANYBODY if direction.workers is None else {**OF_ANYBODY, **OF_ANYBODY_BY_WORKERS}
    attacks |= {f"{name}, by our own hand": (how, False) for name, how in by_hand.items()}
    with scratch() as folder:
        bench = NeighbourBench(folder, direction)
        steps, what = range(len(bench.steps)), f"neighbours, {direction.name}"
        for name, (strike, as_other) in attacks.items():
            problems = [p for at in steps for p in bench.problems(strike, at, as_other=as_other)]
            yield Verdict(f"{what}, {name}", f"{len(steps)} steps", not problems, problems)
        with planted_belief():
            strike = OF_ANYBODY["part for a hard link"]
            found = [at for at in steps if bench.problems(strike, at, as_other=False)]
        ended = f"seen at {len(found)} of {len(steps)} steps"
        yield Verdict(f"{what}, all taken for ours", ended, bool(found))


def by_workers(workers: int) -> Iterator[Verdict]:
    """Kill, damage, strike and let calls fail while the workers of an executor write the files."""
    for direction in (BY_WORKERS, BACK_BY_WORKERS, ACROSS_BY_WORKERS):
        for older in (False, True):
            yield from _kills(direction, older=older)
        yield from _kills_and_damage(direction)
    yield from _attacks(BY_ORDERLY_WORKERS)
    if strace.why_not() is None:
        for scene in scenes.BY_WORKERS:
            yield failing_calls(scene, workers, scenes.of_workers)
            yield order_of(scene)


def sizes(workers: int) -> Iterator[Verdict]:
    """Write ranks beyond what 32 bits count."""
    del workers
    for what, shape in (("a rank", RANK_OVER_4_GB), ("records", RECORDS_OVER_4_GB)):
        with scratch(on_disk=True) as folder:
            different = differing_ranks(folder, shape)
            rank = folder / "out" / "consolidated.00.pth"
            with zipfile.ZipFile(rank) as archive:
                largest = max(entry.file_size for entry in archive.infolist())
            measured = rank.stat().st_size if shape == RANK_OVER_4_GB else largest
        ended = f"{measured:,} bytes"
        yield Verdict(f"{what} over 4 GB", ended, not different and measured > 1 << 32, different)


NEED_STRACE = (syscalls, order)
FAMILIES: dict[str, Family] = {
    "fuzz": fuzz, "kills": kills, "runs": runs, "syscalls": syscalls, "order": order,
    "neighbours": neighbours, "workers": by_workers, "sizes": sizes,
}  # fmt: skip
