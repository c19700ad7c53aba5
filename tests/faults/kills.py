"""Own the kills: the process dies at every step of the output protocol, and dies again going on."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from codellama_convert.convert.run import RunOptions
from tests.faults.directions import FORWARD, Direction
from tests.faults.dying import die_at
from tests.faults.resumes import Kept, damage_some
from tests.outputs import LOCK, STAGING, content, journal_of, loads
from tests.witness.checkpoints import Storage

# A mistake that is planted in the children that are killed; none by default.
Spoil = Callable[[], None]


def spoil_nothing() -> None:
    """Leave the program as it is."""


def spoil_the_order() -> None:
    """Move what loaders begin with into place among the other files."""
    from codellama_convert.staging import publish

    publish.entrances = lambda *_: []


def spoil_the_check() -> None:
    """Publish what an earlier run has left, as it lies there."""
    from codellama_convert.convert import jobs
    from codellama_convert.staging import folder as output
    from codellama_convert.staging import staged

    output.is_whole = staged.is_whole = jobs.is_whole = lambda *_, **__: True


def _flip(path: Path) -> None:
    bytes_ = bytearray(path.read_bytes())
    bytes_[-5] ^= 4
    path.write_bytes(bytes_)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _model(target: Path) -> dict[str, bytes]:
    return {name: bytes_ for name, bytes_ in content(target).items() if name != LOCK}


_DAMAGES: tuple[Callable[[Path], None], ...] = (_flip, _truncate, Path.unlink)
_NEVER = 1 << 30  # more steps than a run has


def fork_and_convert(
    source: Path,
    target: Path,
    options: RunOptions,
    kill_at: int,
    spoil: Spoil = spoil_nothing,
    direction: Direction = FORWARD,
) -> int:
    """Convert in a forked child, which saves the imports; give how it ended, -9 for a kill."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            spoil()
            die_at(kill_at)
            direction.run(source, target, options)
            status = 0
        finally:
            os._exit(status)
    _, how = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(how)


class KillBench:
    """A checkpoint, what becomes of it, and perhaps another model in its place before."""

    def __init__(
        self,
        folder: Path,
        direction: Direction = FORWARD,
        *,
        older: bool = False,
        storage: Storage = "own",
        damage: bool = False,
        spoil: Spoil = spoil_nothing,
    ) -> None:
        """Make them.

        Args:
            folder: A new one, for everything.
            direction: Which way the model goes.
            older: Whether the output folder holds another model, which is overwritten.
            storage: How the tensors lie in the ranks.
            damage: Whether some of the staged files are damaged after each kill.
            spoil: A mistake that is planted in what is killed.
        """
        self.folder, self._spoil, self._damage = folder, spoil, damage
        self._direction = direction
        self._options = RunOptions(overwrite=older)
        self.ends: Counter[str] = Counter()
        direction.save(folder / "in", 3, storage=storage)
        direction.run(folder / "in", folder / "whole")
        self.expected = content(folder / "whole")
        assert set(direction.weights) < self.expected.keys()
        self._before: dict[str, bytes] | None = None
        if older:
            direction.save(folder / "in-old", 99, n_ranks=1)
            direction.run(folder / "in-old", folder / "old")
            self._before = content(folder / "old")
            assert self._before.keys() == self.expected.keys()
        self.n_steps = self._count_steps()

    def _count_steps(self) -> int:
        """Find the first number at which a run is not killed; that run is the control."""
        low, high = 1, 400
        while low < high:
            middle = (low + high) // 2
            target = self._prepare(f"count{middle}")
            how = self._convert(target, middle, spoil_nothing)
            assert how in (0, -signal.SIGKILL)
            assert how != 0 or content(target) == self.expected
            shutil.rmtree(target)
            low, high = (middle + 1, high) if how == -signal.SIGKILL else (low, middle)
        return low - 1

    def _prepare(self, name: str) -> Path:
        target = self.folder / name
        if self._before is not None:
            shutil.copytree(self.folder / "old", target)
        return target

    def _convert(self, target: Path, kill_at: int, spoil: Spoil) -> int:
        return fork_and_convert(
            self.folder / "in", target, self._options, kill_at, spoil, self._direction
        )

    def problems(self, kill_at: int) -> list[str]:
        """Kill at a step, kill again while it resumes, finish; list what is not as promised."""
        target = self._prepare(f"killed{kill_at}")
        try:
            found = list(self._problems(target, kill_at))
        finally:
            shutil.rmtree(target, ignore_errors=True)
        return [f"killed at step {kill_at}: {problem}" for problem in found]

    def _problems(self, target: Path, kill_at: int) -> Iterator[str]:
        if self._convert(target, kill_at, self._spoil) != -signal.SIGKILL:
            yield "was not killed"
        yield from self._torn(target)
        rng = random.Random(kill_at)
        # Early while it resumes, and anywhere.
        for second in (1 + kill_at % 7, 1 + kill_at * 31 % self.n_steps):
            if self._damage:
                damage_some(target, rng)
            self._convert(target, second, self._spoil)
            yield from self._torn(target)
        if self._damage:
            damage_some(target, rng)
        kept = Kept(target, self._direction.n_together)
        is_done = loads(target) and not (target / STAGING).exists()
        if not is_done or self._options.overwrite:
            self._direction.run(self.folder / "in", target, self._options)
        (target / LOCK).unlink(missing_ok=True)  # of a kill after the end; it does no harm
        if content(target) != self.expected:
            yield "finished with other bytes"
        yield from kept.problems()
        if (target / STAGING).exists():
            yield "finished with leftovers"

    def problems_of_damage(self, kill_at: int, number: int | None = None) -> list[str]:
        """Kill at a step, damage a file that goes out; list what is not as promised.

        Args:
            kill_at: The step.
            number: Of the file, in a circle; None is each of them in turn.

        Returns:
            One text a problem; none where nothing was going out yet.
        """
        found = []
        for victim in range(len(self.expected)) if number is None else (number,):
            target = self._prepare(f"damaged{kill_at}-{victim}")
            try:
                found += self._problems_of_damage(target, kill_at, victim)
            finally:
                shutil.rmtree(target, ignore_errors=True)
        return [f"killed at step {kill_at}, {problem}" for problem in found]

    def _problems_of_damage(self, target: Path, kill_at: int, number: int) -> Iterator[str]:
        self._convert(target, kill_at, spoil_nothing)
        journal = journal_of(target)
        if journal is None or not journal.publishing:
            return
        places = [folder / name for name in self.expected for folder in (target / STAGING, target)]
        victims = [path for path in places if path.exists() and self._is_new(path)]
        victim = victims[number % len(victims)]
        _DAMAGES[(kill_at + number) % len(_DAMAGES)](victim)
        is_moved = victim.parent == target
        self.ends["moved file damaged" if is_moved else "staged file damaged"] += 1
        if is_moved and victim.exists() and not self._options.overwrite:
            before = _model(target)
            if self._convert(target, _NEVER, self._spoil) == 0:
                yield f"{victim.name} damaged: was not refused"
            if _model(target) != before:
                yield f"{victim.name} damaged: was refused, and something changed"
            victim.unlink(missing_ok=True)
        if self._convert(target, _NEVER, self._spoil) != 0:
            yield f"{victim.name} damaged: cannot be finished"
        elif content(target) != self.expected:
            yield f"{victim.name} damaged: finished with other bytes"

    def _is_new(self, path: Path) -> bool:
        return path.read_bytes() == self.expected[path.name]

    def _torn(self, target: Path) -> Iterator[str]:
        """Whether the folder holds something that loads and is neither model."""
        if not loads(target):
            self.ends["nothing"] += 1
            return
        found = _model(target)
        if found == self.expected:
            self.ends["new"] += 1
        elif found == self._before:
            self.ends["old"] += 1
        else:
            self.ends["torn"] += 1
            yield f"torn: {sorted(found)}"
