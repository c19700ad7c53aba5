"""The families of system calls: each of them fails, and their order is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.faults.syscalls.bench import Bench, sweep
from tests.faults.syscalls.durability import complaints
from tests.faults.syscalls.planted import PLANTED, find_planted
from tests.faults.syscalls.scenes import KILL, SCENES, Fault, Scene
from tests.faults.verdict import Verdict, in_words, scratch
from tests.outputs import content

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
    "by workers": 2, "by workers, going on": 2 + 1 + 1, "way back by workers": 2,
}  # fmt: skip


def syscalls(workers: int) -> Iterator[Verdict]:
    """Let every call on the output folder fail."""
    for scene in SCENES:
        yield failing_calls(scene, workers)
    missed = []
    for name, planted in PLANTED.items():
        with scratch() as folder:
            problems = find_planted(folder / "bench", planted, SCENES[0])
        if not any(planted.problem in problem for problem in problems):
            missed.append(f"not found: {name}")
    ended = f"{len(PLANTED) - len(missed)} of {len(PLANTED)} found"
    yield Verdict("syscalls, planted mistakes", ended, not missed, missed)


def failing_calls(
    scene: Scene, workers: int, choose: Callable[[list[Fault]], list[Fault]] = list
) -> Verdict:
    """Let the calls of a scene fail that are chosen of all."""
    with scratch(on_disk=scene.name == "direct") as folder:
        bench = Bench(folder / "bench", scene)
        faults = choose(list(bench.faults()))
        how = _io_mode(bench)
        counts, problems = sweep(bench, faults, workers)
    n_kills = sum(fault.error == KILL for fault in faults)
    n_calls = len({(fault.call.name, fault.call.ordinal) for fault in faults})
    ended = (
        f"{n_calls} calls, {len(faults) - n_kills} errors and {n_kills} kills: "
        f"{in_words(counts)}; {how}"
    )
    return Verdict(f"syscalls, {scene.name}", ended, not problems, problems)


def _io_mode(bench: Bench) -> str:
    opened = [call.arguments for call in bench.plain_run("opened") if call.name == "openat"]
    # O_DIRECTORY begins with the same letters.
    is_direct = any("O_DIRECT" in one.replace("O_DIRECTORY", "") for one in opened)
    return "past the page cache" if is_direct else "through the page cache"


def order(workers: int) -> Iterator[Verdict]:
    """Check the order of a run's calls, and that the check misses each fsync that is left out."""
    del workers
    yield from map(order_of, SCENES)


def order_of(scene: Scene) -> Verdict:
    """Check the order of the calls of a scene."""
    with scratch() as folder:
        problems, n_fsyncs, n_missed = _calls_in_order(Bench(folder / "bench", scene))
    ended = f"{n_fsyncs} fsyncs, {n_missed} of them missed when left out"
    passed = not problems and n_fsyncs - n_missed == _NOT_MISSED[scene.name]
    return Verdict(f"order, {scene.name}", ended, passed, problems)


def _calls_in_order(bench: Bench) -> tuple[list[str], int, int]:
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
