"""Own the faults of the system: every call on the output folder fails once, or is the last one.

strace makes it so (tests/faults/strace.py). Whatever fails, the run ends in one line, the folder holds
nothing that loads or a whole model, and the same command brings it to the end.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from codellama_convert.cli.commands import main
from tests.faults.directions import ACROSS, BACK, FORWARD, Direction
from tests.faults.dying import module_that_dies
from tests.faults.strace import Call, Traced, is_kind, trace
from tests.outputs import LOCK, STAGING, content, finish, loads

WRITES = (
    "openat", "mkdir", "mkdirat", "write", "pwrite64", "fallocate", "ftruncate", "fsync", "fdatasync",
    "rename", "renameat", "renameat2", "close", "unlink", "unlinkat", "rmdir", "flock",
)  # fmt: skip
READS = (
    "getdents64", "newfstatat", "statx", "stat", "lstat", "access", "read", "preadv", "preadv2",
)  # fmt: skip
# What changes an entry of the open folder that it begins with.
_IN_A_FOLDER = ("mkdirat", "renameat", "renameat2", "unlinkat")
ERRORS = ("ENOSPC", "EIO")
KILL = "SIGKILL"
_WEIGHTS = ("model-", "consolidated.")
_PART = re.compile(r"(\.[0-9a-f]{8})?\.part$")
_PROGRAM = (sys.executable, "-m", "codellama_convert")
# The C library opens a file of its own when threads wait for each other; then calls count differently.
_MOST_TRIES = 3


@dataclass(frozen=True, slots=True)
class Scene:
    """A command, and what its output folder holds before.

    Attributes:
        name: For reports.
        options: Of the command, besides the usual.
        holds: "nothing", "older" for another model, "staged" for half of this one, or "published"
            for all of it and the journal that says so.
        direction: Which way the model goes.
    """

    name: str
    options: tuple[str, ...]
    holds: str
    direction: Direction = FORWARD


# At which steps a run dies that leaves what a scene holds.
_DIES_AT = {
    ("staged", FORWARD): 23, ("published", FORWARD): 40,
    ("staged", BACK): 27, ("published", BACK): 37,
}  # fmt: skip
# Staged files that are whole in a scene: all of those that are kept together.
_STAGED = {
    FORWARD: {"model-00001-of-00002.safetensors"},
    BACK: set(BACK.weights),
}
SCENES = (
    Scene("direct", ("--io", "auto"), "nothing"),
    Scene("over an older result", ("--io", "buffered", "--overwrite"), "older"),
    Scene("one file", ("--io", "buffered", "--max_shard_size", "5GB"), "nothing"),
    Scene("going on", ("--io", "buffered"), "staged"),
    Scene("publishing again", ("--io", "buffered"), "published"),
    Scene("way back, direct", ("--io", "auto"), "nothing", BACK),
    Scene("way back, over an older result", ("--io", "buffered", "--overwrite"), "older", BACK),
    Scene("way back, going on", ("--io", "buffered"), "staged", BACK),
    Scene("way back, publishing again", ("--io", "buffered"), "published", BACK),
    Scene("other ranks", ("--io", "buffered"), "nothing", ACROSS),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """A call that goes wrong.

    Attributes:
        call: As the plain run made it.
        error: Its error, or SIGKILL: the process dies at it.
        is_early: Whether the plain run had not taken the lock before it.
        is_late: Whether the plain run had published everything before it.
        is_of_reading: Whether it opens or closes what is only read, or reads.
    """

    call: Call
    error: str
    is_early: bool
    is_late: bool
    is_of_reading: bool

    @property
    def rule(self) -> str:
        """The fault in strace's words."""
        how = "signal=KILL" if self.error == KILL else f"error={self.error}"
        return f"{self.call.name}:{how}:when={self.call.ordinal}"

    def __str__(self) -> str:
        where = "/".join(self.call.paths[-1].split("/")[-2:])
        return f"{self.error} at {self.call.name} {self.call.ordinal} of {where}"


class Bench:
    """A checkpoint, what becomes of it, and what its folder may hold before."""

    def __init__(self, folder: Path, scene: Scene, program: Sequence[str] = _PROGRAM) -> None:
        """Make them.

        Args:
            folder: A new one, for everything.
            scene: What is to be done.
            program: What starts the command line; a test puts a faulty one there.
        """
        self.folder, self.scene, self.program = folder, scene, program
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
        at = _DIES_AT[self.scene.holds, self._direction]
        done = finish([*module_that_dies(at), *self.arguments(self.before)])
        assert done.returncode == -9
        (self.before / LOCK).unlink()
        if self.scene.holds == "staged":
            staged = {path.name for path in (self.before / STAGING).iterdir()}
            whole = _STAGED[self._direction]
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
                call.name not in _IN_A_FOLDER and "O_RDONLY" in opened.get(descriptor, "")
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
            if not may_be_passed_over(fault):
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
    if is_of_the_lock or (fault.is_of_reading and path.name.startswith(_WEIGHTS)):
        return True  # a file that was kept is written again then
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
    paths = [_PART.sub("", path).replace(str(folder), "O") for path in call.paths]
    return call.name, call.ordinal, tuple(path for path in paths if path.startswith("O"))


def _file_name(call: Call, folder: Path) -> str:
    """The final name of the file that a call writes; empty where it is about a folder."""
    path = Path(call.paths[-1])
    if path.name in (STAGING, LOCK) or path == folder or call.name not in WRITES:
        return ""
    return _PART.sub("", path.name)


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


# --- the controls ---------------------------------------------------------------------------------

_START = "from codellama_convert.__main__ import main\nmain()\n"


@dataclass(frozen=True, slots=True)
class Planted:
    """A mistake that the program could have, and what shows it.

    Attributes:
        code: Starts the command line with the mistake in it.
        call: The name of the calls at one of which it shows.
        path: What their last path ends with.
        error: What happens to them.
        problem: What is then found.
    """

    code: str
    call: str
    path: str
    error: str
    problem: str


PLANTED = {
    "errors of fsync are swallowed": Planted(
        "import os\n"
        "real = os.fsync\n"
        "def fsync(fd):\n"
        "    try:\n"
        "        real(fd)\n"
        "    except OSError:\n"
        "        pass\n"
        "os.fsync = fsync\n",
        "fsync", ".part", "EIO", "exit status 0",
    ),
    "errors of closing are swallowed": Planted(
        "from codellama_convert.storage.output_file import OutputFile\n"
        "OutputFile.__exit__ = lambda self, *_: self.abandon()\n",
        "close", "config.json.part", "EIO", "exit status 0",
    ),
    "the index is not the last": Planted(
        "from codellama_convert.staging import publish\n"
        "publish.entrances = lambda *_: []\n",
        "rename", "plain/tokenizer_config.json", KILL, "torn",
    ),
    "an error is not translated": Planted(
        "from codellama_convert.staging import part_files\n"
        "def rename(source, name, target, new_name):\n"
        "    try:\n"
        "        source.rename(name, target, new_name)\n"
        "    except OSError as problem:\n"
        "        raise RuntimeError from problem\n"
        "part_files.rename = rename\n",
        "rename", "/config.json", "ENOSPC", "not one line",
    ),
    "a failed run cannot go on": Planted(
        "import os\n"
        "from codellama_convert.storage import output_file\n"
        "real = os.fsync\n"
        "def fsync(fd):\n"
        "    try:\n"
        "        real(fd)\n"
        "    except OSError:\n"
        "        name = os.readlink(f'/proc/self/fd/{fd}')\n"
        "        journal = os.path.join(os.path.dirname(name), 'journal.jsonl')\n"
        "        os.unlink(journal)\n"
        "        os.mkdir(journal)\n"
        "        raise\n"
        "output_file.os.fsync = fsync\n"
        "from codellama_convert.staging import folder as output\n"
        "output.drop_staging = output.drop_parts = lambda *_: None\n",
        "fsync", "model-00002-of-00002.safetensors.part", "EIO", "the second run ends with 1",
    ),
}  # fmt: skip


def find_planted(folder: Path, planted: Planted, scene: Scene) -> list[str]:
    """Run a program with a mistake in it; give the problems found at the call that shows it.

    Args:
        folder: A new one.
        planted: The mistake.
        scene: What is done.

    Returns:
        As `Bench.problems` does.
    """
    bench = Bench(folder, scene, (sys.executable, "-c", planted.code + _START))
    fault = next(
        fault for fault in bench.faults()
        if is_kind(fault.call, planted.call) and fault.error == planted.error
        and _PART.sub(".part", fault.call.paths[-1]).endswith(planted.path)
        and not fault.is_of_reading
    )  # fmt: skip
    return bench.problems(fault)


def a_share(faults: Sequence[Fault], number: int) -> list[Fault]:
    """Choose one fault of each call by its name, the errors in turn.

    Args:
        faults: All.
        number: 0 or 1, for another share.

    Returns:
        About a dozen.
    """
    by_name: dict[str, list[Fault]] = {}
    for fault in faults:
        if fault.call.name in WRITES:
            by_name.setdefault(fault.call.name, []).append(fault)
    share = []
    for turn, some in enumerate(by_name.values()):
        at = len(some) * (2 * number + 1) // 4
        error = (*ERRORS, KILL)[(turn + number) % 3]
        share.append(next(fault for fault in some[at - at % 3 :] if fault.error == error))
    return share
