"""Own the faults of the system: every call on the output folder fails once, or is the last one.

strace makes it so (tests/faults/syscalls/strace.py). Whatever fails, the run ends in one line, the folder holds
nothing that loads or a whole model, and the same command brings it to the end.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from click.testing import CliRunner

from codellama_convert.cli.commands import main
from tests.faults.dying import module_that_dies
from tests.faults.syscalls.scenes import (
    DIES_AT,
    ERRORS,
    IN_A_FOLDER,
    KILL,
    PART,
    READS,
    STAGED,
    WEIGHTS,
    WITH_WORKERS,
    WRITES,
    Fault,
    Scene,
)
from tests.faults.syscalls.strace import Call, Traced, trace
from tests.outputs import LOCK, STAGING, TOKEN, content, finish, loads

# The C library opens a file of its own when threads wait for each other; then calls count differently.
_MOST_TRIES = 3


class Bench:
    """A checkpoint, what becomes of it, and what its folder may hold before."""

    def __init__(self, folder: Path, scene: Scene, program: Sequence[str] | None = None) -> None:
        """Make them.

        Args:
            folder: A new one, for everything.
            scene: What is to be done.
            program: What starts the command line instead; a test puts a faulty one there.
        """
        self.folder, self.scene, self.program = folder, scene, program or scene.program
        self.source, self.before = folder / "in", folder / "before"
        self._direction = scene.direction
        shards = () if scene.direction.n_ranks else ("--max_shard_size", "150KB")
        self._options = (*shards, "--workers", "1", *scene.options)
        self._direction.save(self.source, 3)
        assert self.finish(folder / "whole") == (0, "")
        self.expected = content(folder / "whole")
        self.older: dict[str, bytes] = {}
        self.held: frozenset[str] = frozenset()
        if scene.holds == "older":
            self._direction.save(folder / "in-old", 4, n_ranks=1)
            older = self._direction.command(folder / "in-old", self.before, *self._options)
            done = finish(older)
            assert done.returncode == 0, done.stderr
            self.older = content(self.before)
            assert self.older.keys() == self.expected.keys()
            self.held = frozenset(self.older)
        elif scene.holds != "nothing":
            self._die()

    def _die(self) -> None:
        """Leave what the scene has."""
        at = DIES_AT[self.scene.holds, self._direction]
        done = finish([*module_that_dies(at), *self.arguments(self.before)])
        assert done.returncode == -9
        (self.before / LOCK).unlink()
        if self.scene.holds == "staged":
            staged = {path.name for path in (self.before / STAGING).iterdir()}
            whole = STAGED[self._direction]
            assert whole <= staged
            assert any(name.endswith(".part") for name in staged)
            return
        assert content(self.before) == self.expected
        assert (self.before / STAGING / "journal.jsonl").exists()
        self.held = frozenset(self.expected)

    def command(self, target: Path) -> list[str]:
        """Spell the command."""
        return [*self.program, *self.arguments(target)]

    def arguments(self, target: Path) -> list[str]:
        """Spell what follows the program's name."""
        return self._direction.command(self.source, target, *self._options)[3:]

    def finish(self, target: Path) -> tuple[int, str]:
        """Run it here, undisturbed; give its status, and its errors without the notes."""
        result = CliRunner().invoke(main, self.arguments(target))
        lines = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
        return result.exit_code, "\n".join(lines)

    def prepare(self, name: str) -> Path:
        """Make an output folder as the scene has it."""
        target = self.folder / name
        if self.before.exists():
            shutil.copytree(self.before, target)
        return target

    def trace(self, target: Path, fault: Fault | None = None) -> Traced:
        """Run the command under strace."""
        names = {*WRITES, *READS} if fault is None else {fault.call.name}
        return trace(
            self.command(target), sorted(names), inject=[fault.rule] if fault else [],
            log=target.with_suffix(".log"),
        )  # fmt: skip

    def plain_run(self, name: str = "plain") -> list[Call]:
        """The control: run it whole; give its calls on the output folder."""
        target = self.prepare(name)
        done = self.trace(target)
        assert done.status == 0, done.stderr
        assert content(target) == self.expected
        assert not (target / STAGING).exists()
        assert len({call.thread for call in done.calls}) == 1, "ordinals count one thread's calls"
        return [call for call in done.calls if _is_below(call, target)]

    def faults(self) -> Iterator[Fault]:
        """List what may go wrong: writes by either error and by a kill, reads by EIO."""
        calls = self.plain_run()
        target = self.folder / "plain"
        is_last = [c.name == "fsync" and c.paths == (str(target),) for c in calls]
        published = len(calls) - is_last[::-1].index(True)
        locked = [call.name for call in calls].index("flock")
        opened: dict[str, str] = {}  # by descriptor: how
        for number, call in enumerate(calls):
            descriptor, _, _ = (call.result if call.name == "openat" else call.arguments).partition(
                "<"
            )
            if call.name == "openat":
                opened[descriptor] = call.arguments
            is_of_reading = call.name in READS or (
                call.name not in IN_A_FOLDER and "O_RDONLY" in opened.get(descriptor, "")
            )
            for error in (*ERRORS, KILL) if call.name in WRITES else ("EIO",):
                yield Fault(call, error, number < locked, number > published, is_of_reading)

    def problems(self, fault: Fault, name: str = "faulty") -> list[str]:
        """Let a call fail, and the same command run again; list what is not as promised."""
        for n_left in reversed(range(_MOST_TRIES)):
            target = self.prepare(name)
            done = self.trace(target, fault)
            if not n_left or not any(self._of_the_hit(fault, done, target)):
                break
            shutil.rmtree(target, ignore_errors=True)  # it may never have been made
        try:
            found = [*self._of_the_hit(fault, done, target), *self._of_the_end(fault, done, target)]
            found += self._of_the_state(done, target)
            found += self._of_the_rerun(done, target)
        finally:
            shutil.rmtree(target, ignore_errors=True)
        return [f"{self.scene.name}: {fault}: {problem}" for problem in found]

    def _of_the_hit(self, fault: Fault, done: Traced, target: Path) -> Iterator[str]:
        """Whether it was this call that failed; the ordinals of two runs may differ."""
        plain = self.folder / "plain"
        if fault.error == KILL:
            hit = [call for call in done.calls if call.ordinal == fault.call.ordinal]
        else:
            hit = [call for call in done.calls if call.injected]
        if [_shape(call, target) for call in hit] != [_shape(fault.call, plain)]:
            yield f"another call was hit: {hit}"

    def _of_the_end(self, fault: Fault, done: Traced, target: Path) -> Iterator[str]:
        if fault.error == KILL:
            if done.status != -9:
                yield f"exit status {done.status} of a killed process"
            return
        lines = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
        if done.status == 0:
            if not (may_be_passed_over(fault) or self._is_asked_again(fault)):
                yield "exit status 0"
            if lines:
                yield f"exit status 0, and it says {lines}"
            if {**content(target), LOCK: b""} != {**self.expected, LOCK: b""}:
                yield "exit status 0, and not the whole model"
            return
        if done.status != 1:
            yield f"exit status {done.status}"
        if len(lines) != 1 or not lines[0].startswith("Error: "):
            yield f"not one line: {lines}"
        elif (
            str(target) not in lines[0]
            or _file_name(fault.call, self.folder / "plain") not in lines[0]
        ):
            yield f"does not name the file: {lines[0]}"

    def _is_asked_again(self, fault: Fault) -> bool:
        """Whether a worker met what may pass in what it opens and writes: it makes a new part then."""
        name = Path(fault.call.paths[-1]).name
        is_of_a_part = name.startswith(WEIGHTS) and name.endswith(".part")
        opens_a_folder = fault.call.name == "openat" and name in (STAGING, "plain")
        is_a_workers = is_of_a_part or opens_a_folder
        return self.scene.program == WITH_WORKERS and fault.error == "EIO" and is_a_workers

    def _of_the_state(self, done: Traced, target: Path) -> Iterator[str]:
        found = self._model(target)
        if loads(target) and found not in (self.expected, self.older):
            yield f"torn: {sorted(found)}"
        is_whole = loads(target) and found == self.expected
        # With the model whole only the last fsync can fail: the journal must know how to resume.
        if is_whole and done.status == 1 and not (target / STAGING / "journal.jsonl").exists():
            yield "exit status 1, though all is done"

    def _of_the_rerun(self, done: Traced, target: Path) -> Iterator[str]:
        is_done = self._model(target) == self.expected
        has_journal = (target / STAGING / "journal.jsonl").exists()
        status, line = self.finish(target)
        if status != 0:
            yield f"the second run ends with {status}: {line}"
            return
        if is_done and not has_journal:
            (target / LOCK).unlink(missing_ok=True)  # of a kill after the end; it does no harm
        if content(target) != self.expected:
            yield f"the second run leaves other bytes: {sorted(content(target))}"
        if (target / STAGING).exists():
            yield "the second run leaves the staging folder"

    def _model(self, target: Path) -> dict[str, bytes]:
        if not target.exists():
            return {}
        return {name: bytes_ for name, bytes_ in content(target).items() if name != LOCK}


def may_be_passed_over(fault: Fault) -> bool:
    """Tell whether a call may fail and the run succeed: no byte of the model depends on it."""
    call, path = fault.call, Path(fault.call.paths[-1])
    if fault.is_late:
        return True  # everything is in its place and on the disk: what is left is clearing up
    is_of_the_lock = path.name.startswith(LOCK) and call.name in ("unlink", "close")
    # A worker that cannot read it is asked again, and it goes with the folder that it is in.
    is_of_the_token = path.name == TOKEN and call.name in ("openat", "read", "unlinkat")
    is_of_a_kept_file = fault.is_of_reading and path.name.startswith(WEIGHTS)  # written again then
    if is_of_the_lock or is_of_the_token or is_of_a_kept_file:
        return True
    is_of_a_folder = path.name in (STAGING, "plain")  # its descriptor may be a duplicate
    if is_of_a_folder and fault.is_early and call.name in ("openat", "getdents64"):
        return True  # whether all of it was done before: if that cannot be seen, it is done now
    if call.name == "close":
        # Nothing is lost; but a close may be what reports a write that was.
        return fault.is_of_reading or is_of_a_folder
    if call.name == "mkdir":
        return path.name == "plain"  # it may be there: whether it is, is looked up then
    # Looking whether something is there, and removing an empty staging folder that is not.
    return call.name in ("newfstatat", "statx", "stat", "lstat", "access", "rmdir")


def _is_below(call: Call, folder: Path) -> bool:
    return any(path == str(folder) or path.startswith(f"{folder}/") for path in call.paths)


def _shape(call: Call, folder: Path) -> tuple[str, int, tuple[str, ...]]:
    """What a call is about, the same in two runs: parts have random names."""
    paths = [PART.sub("", path).replace(str(folder), "O") for path in call.paths]
    return call.name, call.ordinal, tuple(path for path in paths if path.startswith("O"))


def _file_name(call: Call, folder: Path) -> str:
    """The final name of the file that a call writes; empty where it is about a folder."""
    path = Path(call.paths[-1])
    if path.name in (STAGING, LOCK) or path == folder or call.name not in WRITES:
        return ""
    return PART.sub("", path.name)


def sweep(
    bench: Bench, faults: Sequence[Fault], workers: int = 1
) -> tuple[Counter[str], list[str]]:
    """Try faults.

    Args:
        bench: What they happen to.
        faults: Some of its `faults()`.
        workers: Processes.

    Returns:
        How many of each call, and every problem found.
    """
    counts = Counter(fault.call.name for fault in faults)
    names = [f"faulty{number}" for number in range(len(faults))]
    if workers == 1:
        found = list(map(bench.problems, faults, names))
    else:
        with ProcessPoolExecutor(workers) as pool:
            found = list(pool.map(bench.problems, faults, names, chunksize=4))
    return counts, [problem for problems in found for problem in problems]
