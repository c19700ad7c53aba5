"""Own strace: what a command asked the system for, and how single calls of it are made to fail.

It does not matter what the command is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.outputs import ROOT, environment

_LINE = re.compile(r"(?P<pid>\d+) +(?P<name>\w+)\((?P<rest>.*)")
_RESUMED = re.compile(r"(?P<pid>\d+) +<\.\.\. (?P<name>\w+) resumed>(?P<rest>.*)")
_UNFINISHED = re.compile(r" <unfinished \.\.\.>\)?(?: += \?)?$")
# The last of these: an argument may hold one too.
_RESULT = re.compile(r"(?P<arguments>.*)\) += (?P<result>.*)")
_STRING = r'"(?P<text>(?:[^"\\]|\\.)*)"'
_PLACE = re.compile(rf"\b\d+<(?P<path>[^>]*)>|{_STRING}")
# Calls whose first strings are paths and not bytes.
_PATHS_IN_STRINGS = {
    "access": 1, "faccessat": 1, "faccessat2": 1, "lstat": 1, "mkdir": 1, "mkdirat": 1,
    "newfstatat": 1, "open": 1, "openat": 1, "rename": 2, "renameat": 2, "renameat2": 2,
    "rmdir": 1, "stat": 1, "statx": 1, "unlink": 1, "unlinkat": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Call:
    """A call to the system.

    Attributes:
        name: As in "pwrite64".
        ordinal: Its place among its thread's calls of this name, from 1: what `when=` counts.
        arguments: As strace writes them.
        result: As strace writes it; empty where the process did not see the end of it.
        paths: The files that it is about.
        thread: Which thread asked.
    """

    name: str
    ordinal: int
    arguments: str
    result: str
    paths: tuple[str, ...]
    thread: int

    @property
    def injected(self) -> bool:
        """Whether strace made it fail."""
        return "(INJECTED)" in self.result

    @property
    def failed(self) -> bool:
        """Whether it failed, injected or not."""
        return self.result.startswith("-1 ")


@dataclass(frozen=True, slots=True)
class Traced:
    """A command that came to its end, and what it had asked for."""

    status: int
    stdout: str
    stderr: str
    calls: tuple[Call, ...]


def trace(
    arguments: Sequence[str], calls: Iterable[str], *, inject: Sequence[str] = (), log: Path
) -> Traced:
    """Run a command under strace.

    Args:
        arguments: The command.
        calls: The names of the calls to write down.
        inject: What is to go wrong, such as "fsync:error=EIO:when=3".
        log: Where strace writes; overwritten, and left there.

    Returns:
        How it ended, -9 for a kill; and its calls, in order.
    """
    names = ",".join(f"?{name}" for name in calls)  # ?: not every machine has every call
    faults = [option for rule in inject for option in ("-e", f"inject={rule}")]
    # A signal is lost where the kernel's filter stops a process; an error is not.
    is_fast = _can_filter() and not any(":signal=" in rule for rule in inject)
    done = subprocess.run(
        ["strace", "-f", *["--seccomp-bpf"] * is_fast, "-y", "-s", "160", "-o", str(log),
         "-e", f"trace={names}", *faults, *arguments],
        check=False, capture_output=True, text=True, errors="replace", cwd=ROOT, timeout=120,
        # A module that is compiled now and not the next time would shift the ordinals.
        env=environment(PYTHONDONTWRITEBYTECODE="1"),
    )  # fmt: skip
    calls_made = tuple(parse(log.read_text(errors="replace").splitlines()))
    return Traced(done.returncode, done.stdout, done.stderr, calls_made)


def parse(lines: Iterable[str]) -> list[Call]:
    """Read a log of `strace -f -y`, in the order in which the calls began."""
    counts: Counter[tuple[int, str]] = Counter()
    calls: list[Call] = []
    waiting: dict[int, tuple[int, str]] = {}  # by thread: which call, and what was written of it
    for line in lines:
        resumed = _RESUMED.match(line)
        if resumed is not None:
            place, begun = waiting.pop(int(resumed["pid"]))
            made = calls[place]
            calls[place] = _call(made.name, made.ordinal, begun + resumed["rest"], made.thread)
            continue
        match = _LINE.match(line)
        if match is None:  # "+++ exited with 0 +++" and the like
            continue
        thread, name, rest = int(match["pid"]), match["name"], match["rest"]
        counts[thread, name] += 1
        begun, n_unfinished = _UNFINISHED.subn("", rest)
        if n_unfinished:
            waiting[thread] = (len(calls), begun)
        calls.append(_call(name, counts[thread, name], begun if n_unfinished else rest, thread))
    return calls


def _call(name: str, ordinal: int, rest: str, thread: int) -> Call:
    match = _RESULT.fullmatch(rest)
    arguments, result = (match["arguments"], match["result"]) if match else (rest, "")
    return Call(name, ordinal, arguments, result, tuple(_paths(name, arguments)), thread)


def _paths(name: str, arguments: str) -> Iterator[str]:
    """List the files that a call is about; a name behind an open folder is one in it."""
    n_strings = _PATHS_IN_STRINGS.get(name, 0)
    folder = None
    for found in _PLACE.finditer(arguments):
        path, text = found["path"], found["text"]
        if path is not None:
            if folder is not None:
                yield folder
            folder = path
        elif n_strings:
            n_strings -= 1
            is_below = folder is not None and not text.startswith("/")
            yield f"{folder}/{text}".rstrip("/") if is_below else text
            folder = None
    if folder is not None:
        yield folder


def is_kind(call: Call, name: str) -> bool:
    """Tell whether a call is of a kind, by a path or by a name in an open folder."""
    return call.name in (name, f"{name}at", f"{name}at2")


@cache
def _can_filter() -> bool:
    """Whether only the named calls stop the process, by a filter in the kernel; else all of them do."""
    command = ["strace", "-f", "--seccomp-bpf", "-o", os.devnull, "-e", "trace=mkdir", "true"]
    done = subprocess.run(command, check=False, capture_output=True)
    return (done.returncode, done.stderr) == (0, b"")


@cache
def why_not() -> str | None:
    """Tell why strace cannot be used here; None where it can."""
    if sys.platform != "linux" or shutil.which("strace") is None:
        return "strace is not installed"
    with tempfile.TemporaryDirectory() as folder:
        code = f"import os; os.mkdir({folder + '/new'!r})"
        arguments = [sys.executable, "-S", "-c", code]
        log = Path(folder, "log")
        try:
            traced = trace(arguments, ["mkdir"], inject=["mkdir:error=EXDEV:when=1"], log=log)
        except OSError as problem:
            return f"strace does not start ({problem})"
    if "Invalid cross-device link" not in traced.stderr:
        return f"strace may not trace here ({traced.stderr.strip()[-100:]})"
    return None
