"""The command line in a forked child: stopped at a chosen instant, or spoiled.

The imports are done once, in the parent; a fork costs milliseconds. Nothing else here imports the
program.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal

import codellama_convert.__main__
import codellama_convert.cli.commands  # what the command imports late is shared by all children
import codellama_convert.convert.run
import codellama_convert.verify.run
from codellama_convert.staging import crash_points as faults
from tests.faults.at_once import give_workers
from tests.faults.differential.plants import PLANTS

_LIMIT_SECONDS = 60
# Between two calls that change something the disk is the same: these are all instants of a kill.
_CHANGES = (
    "open", "write", "pwrite", "pwritev", "fsync", "ftruncate", "mkdir", "rename", "replace",
    "unlink", "remove", "rmdir", "close",
)  # fmt: skip
# A request to stop is looked at between pieces of work, reading included.
_OTHER_CALLS = ("preadv", "pread", "read", "stat", "lstat", "listdir", "scandir")

Event = Literal["step", "change", "call"]
EVENTS: tuple[Event, ...] = ("step", "change", "call")


@dataclass(frozen=True)
class Stop:
    """Where a run ends early.

    Attributes:
        signal: What is sent.
        before: Before what: a call of the system that changes something, or any; after a step of
            the output protocol.
        number: Before the how manieth.
    """

    signal: signal.Signals
    before: Event
    number: int

    def __str__(self) -> str:
        return f"{self.signal.name} at {self.before} {self.number}"


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        status: Its exit status; negative for a signal.
        out: What it printed.
        err: What it said on stderr.
        counts: How many events there were; empty where it was killed.
    """

    status: int
    out: str
    err: str
    counts: Mapping[Event, int] = field(default_factory=dict)


def run(
    arguments: Sequence[str],
    scratch: Path,
    stop: Stop | None,
    plant: str | None,
    *,
    by_workers: bool = False,
) -> Ended:
    """Run the command line in a child.

    Args:
        arguments: Behind the program's name.
        scratch: Where its output is caught.
        stop: Where it ends early.
        plant: A mistake that is planted in it.
        by_workers: Whether the files are written by the workers of an executor.
    """
    out, err, counts = (scratch / name for name in ("stdout", "stderr", "counts"))
    counts.write_text("{}")
    pid = os.fork()
    if pid == 0:
        _catch(out, err)
        if by_workers:
            give_workers()
        _be_the_program(arguments, counts, stop, plant)
    _, how = os.waitpid(pid, 0)
    return Ended(
        os.waitstatus_to_exitcode(how),
        out.read_text(),
        err.read_text(),
        json.loads(counts.read_text()),
    )


def _catch(out: Path, err: Path) -> None:
    for number, path in ((1, out), (2, err)):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(fd, number)
        os.close(fd)
    # A test runner may have put other objects into their places.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))


def _be_the_program(
    arguments: Sequence[str], counts: Path, stop: Stop | None, plant: str | None
) -> None:
    """Run the command line and leave; never returns."""
    status = 1
    try:
        signal.alarm(_LIMIT_SECONDS)  # a hang ends in a status that nothing else gives
        if plant is not None:
            PLANTS[plant].spoil()
        counters = _count(stop)
        sys.argv = ["codellama-convert", *arguments]
        status = _status_of(codellama_convert.__main__.main)
        counts.write_text(json.dumps({event: next(counters[event]) for event in EVENTS}))
    except BaseException:  # noqa: BLE001 - a forked child must not run its parent's code
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _status_of(main: Callable[[], None]) -> int:
    try:
        main()
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    return 0


def _count(stop: Stop | None) -> dict[Event, count[int]]:
    """Count events, and send the signal at the right one."""
    counters: dict[Event, count[int]] = {event: count() for event in EVENTS}

    def note(*events: Event) -> None:
        for event in events:
            number = next(counters[event])
            if stop is not None and (event, number) == (stop.before, stop.number):
                os.kill(os.getpid(), stop.signal)

    def counted(call: Callable[..., Any], *events: Event) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            note(*events)
            return call(*args, **kwargs)

        return noted

    for name in _CHANGES:
        setattr(os, name, counted(getattr(os, name), "change", "call"))
    for name in _OTHER_CALLS:
        setattr(os, name, counted(getattr(os, name), "call"))
    faults.hook = lambda name: note("step")
    return counters
