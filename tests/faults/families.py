"""Every family of faults, each to its end: `python -m tests.faults.sweep` runs them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.convert.true_sizes import RANK_OVER_4_GB, RECORDS_OVER_4_GB, differing_ranks
from tests.faults.differential.plants import PLANTS as TROUBLE
from tests.faults.directions import ACROSS, BACK, DIRECTIONS, FORWARD, Direction
from tests.faults.durability import complaints
from tests.faults.kills import KillBench, spoil_the_check, spoil_the_order
from tests.faults.neighbours import (
    OF_A_NEIGHBOUR,
    OF_ANYBODY,
    NeighbourBench,
    Place,
    planted_belief,
)
from tests.faults.neighbours import why_not as why_no_neighbour
from tests.faults.resumes import spoil_the_records
from tests.faults.syscalls.bench import Bench, sweep
from tests.faults.syscalls.planted import PLANTED, find_planted
from tests.faults.syscalls.scenes import KILL, SCENES
from tests.outputs import ROOT, content, environment
from tests.witness.checkpoints import STORAGES

_N_TROUBLED = 1000
# How many fsyncs of a run say only what the disk had already: that an older model is gone, of which
# there was none (2) or whose index is gone (1); that the output folder is in its parent (1), and
# the staging folder in it (1), where an earlier run made them; that the journal is in its folder,
# where no weights are written on it (1).
_NOT_MISSED = {
    "direct": 2, "over an older result": 1 + 1, "one file": 2, "going on": 2 + 1 + 1,
    "publishing again": 2 + 1 + 1 + 1,
    "way back, direct": 2, "way back, over an older result": 1 + 1,
    "way back, going on": 2 + 1 + 1 + 1, "way back, publishing again": 2 + 1 + 1 + 1,
    "other ranks": 2,
}  # fmt: skip


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
        what = f"{direction.name}, {'over an older result' if older else 'in a new folder'}"
        with scratch() as folder:
            bench = KillBench(folder, direction, older=older)
            steps = range(1, bench.n_steps + 1)
            problems = [problem for step in steps for problem in bench.problems(step)]
            ends = dict(bench.ends)
            all_seen = set(ends) == ({"nothing", "new", "old"} if older else {"nothing", "new"})
        ended = f"{len(steps)} steps, 3 kills each; then found: {_counts(ends)}"
        yield Verdict(f"kills {what}", ended, not problems and all_seen, problems)
        with scratch() as folder:
            spoiled = KillBench(folder, direction, older=older, spoil=spoil_the_order)
            found = [step for step in steps if any("torn" in p for p in spoiled.problems(step))]
        ended = f"seen at {len(found)} of {len(steps)} steps"
        yield Verdict(f"kills {what}, entrance not the last", ended, bool(found))
        yield from _damage_while_publishing(what, direction, older=older)
    for direction in DIRECTIONS:
        yield from _kills_and_damage(direction)
    with scratch() as folder:
        spoiled = KillBench(folder, storage="flat", damage=True, spoil=spoil_the_records)
        steps = range(1, spoiled.n_steps + 1)
        found = [step for step in steps if any("again" in p for p in spoiled.problems(step))]
    ended = f"seen at {len(found)} of {len(steps)} steps"
    yield Verdict("kills and damage, records of all that was read", ended, bool(found))


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
    yield Verdict(f"kills {what}, then damage", f"{_counts(ends)}", passed, problems)
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


def syscalls(workers: int) -> Iterator[Verdict]:
    """Let every call on the output folder fail."""
    for scene in SCENES:
        with scratch(on_disk=scene.name == "direct") as folder:
            bench = Bench(folder / "bench", scene)
            faults = list(bench.faults())
            how = _io_mode(bench)
            counts, problems = sweep(bench, faults, workers)
        n_kills = sum(fault.error == KILL for fault in faults)
        n_calls = len({(fault.call.name, fault.call.ordinal) for fault in faults})
        ended = (
            f"{n_calls} calls, {len(faults) - n_kills} errors and {n_kills} kills: "
            f"{_counts(counts)}; {how}"
        )
        yield Verdict(f"syscalls, {scene.name}", ended, not problems, problems)
    missed = []
    for name, planted in PLANTED.items():
        with scratch() as folder:
            problems = find_planted(folder / "bench", planted, SCENES[0])
        if not any(planted.problem in problem for problem in problems):
            missed.append(f"not found: {name}")
    ended = f"{len(PLANTED) - len(missed)} of {len(PLANTED)} found"
    yield Verdict("syscalls, planted mistakes", ended, not missed, missed)


def _io_mode(bench: Bench) -> str:
    opened = [call.arguments for call in bench.plain_run("opened") if call.name == "openat"]
    # O_DIRECTORY begins with the same letters.
    is_direct = any("O_DIRECT" in one.replace("O_DIRECTORY", "") for one in opened)
    return "past the page cache" if is_direct else "through the page cache"


def order(workers: int) -> Iterator[Verdict]:
    """Check the order of a run's calls, and that the check misses each fsync that is left out."""
    del workers
    for scene in SCENES:
        with scratch() as folder:
            problems, n_fsyncs, n_missed = _order_of(Bench(folder / "bench", scene))
        ended = f"{n_fsyncs} fsyncs, {n_missed} of them missed when left out"
        passed = not problems and n_fsyncs - n_missed == _NOT_MISSED[scene.name]
        yield Verdict(f"order, {scene.name}", ended, passed, problems)


def _order_of(bench: Bench) -> tuple[list[str], int, int]:
    target = bench.prepare("out")
    done = bench.trace(target)
    assert done.status == 0, done.stderr
    assert content(target) == bench.expected
    held = bench.held
    calls = [c for c in done.calls if any(str(bench.folder) in path for path in c.paths)]
    places = [number for number, call in enumerate(calls) if call.name == "fsync"]
    missed = [
        number for number in places
        if complaints([*calls[:number], *calls[number + 1 :]], target, held=held)
    ]  # fmt: skip
    return complaints(calls, target, held=held), len(places), len(missed)


def neighbours(workers: int) -> Iterator[Verdict]:
    """Let a neighbour strike at every step, in every way."""
    del workers
    attacks = (
        {} if why_no_neighbour() else {name: (how, True) for name, how in OF_A_NEIGHBOUR.items()}
    )
    attacks |= {f"{name}, by our own hand": (how, False) for name, how in OF_ANYBODY.items()}
    for direction in DIRECTIONS:
        yield from _attacks(attacks, direction)


def _attacks(
    attacks: Mapping[str, tuple[Callable[[Place], None], bool]], direction: Direction
) -> Iterator[Verdict]:
    """Let a neighbour strike in one direction."""
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
    "neighbours": neighbours, "sizes": sizes,
}  # fmt: skip


@contextmanager
def scratch(*, on_disk: bool = False) -> Iterator[Path]:
    """Make a folder in memory where there is one, or on a disk, which has direct I/O."""
    place = Path("/var/tmp" if on_disk else "/dev/shm")
    with tempfile.TemporaryDirectory(
        dir=place if place.is_dir() else None, prefix="codellama-convert-sweep-"
    ) as name:
        yield Path(name)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in Counter(counts).most_common())
