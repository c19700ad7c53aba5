"""Own the commands whose system calls fail, and which calls those are."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.directions import ACROSS, BACK, FORWARD, Direction
from tests.faults.syscalls.strace import Call
from tests.outputs import TOKEN

WRITES = (
    "openat", "mkdir", "mkdirat", "write", "pwrite64", "fallocate", "ftruncate", "fsync", "fdatasync",
    "rename", "renameat", "renameat2", "close", "unlink", "unlinkat", "rmdir", "flock",
)  # fmt: skip
READS = (
    "getdents64", "newfstatat", "statx", "stat", "lstat", "access", "read", "preadv", "preadv2",
)  # fmt: skip
# What changes an entry of the open folder that it begins with.
IN_A_FOLDER = ("mkdirat", "renameat", "renameat2", "unlinkat")
ERRORS = ("ENOSPC", "EIO")
KILL = "SIGKILL"
WEIGHTS = ("model-", "consolidated.")
PART = re.compile(r"(\.[0-9a-f]{8})?\.part$")
PROGRAM = (sys.executable, "-m", "codellama_convert")
WITH_WORKERS = (sys.executable, "-m", "tests.faults.at_once")


@dataclass(frozen=True, slots=True)
class Scene:
    """A command, and what its output folder holds before.

    Attributes:
        name: For reports.
        options: Of the command, besides the usual.
        holds: "nothing", "older" for another model, "staged" for half of this one, or "published"
            for all of it and the journal that says so.
        direction: Which way the model goes.
        program: What starts the command line.
    """

    name: str
    options: tuple[str, ...]
    holds: str
    direction: Direction = FORWARD
    program: tuple[str, ...] = PROGRAM


# At which steps a run dies that leaves what a scene holds.
DIES_AT = {
    ("staged", FORWARD): 23, ("published", FORWARD): 40,
    ("staged", BACK): 27, ("published", BACK): 37,
}  # fmt: skip
# Staged files that are whole in a scene: all of those that are kept together.
STAGED = {
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
BY_WORKERS = (
    Scene("by workers", ("--io", "buffered"), "nothing", program=WITH_WORKERS),
    Scene("by workers, going on", ("--io", "buffered"), "staged", program=WITH_WORKERS),
    Scene("way back by workers", ("--io", "buffered"), "nothing", BACK, WITH_WORKERS),
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


def of_workers(faults: Sequence[Fault]) -> list[Fault]:
    """Choose what goes wrong while there are workers: one fault of each call, the errors in turn."""
    of_token = [n for n, one in enumerate(faults) if Path(one.call.paths[-1]).name == TOKEN]
    during = faults[of_token[0] : of_token[-1] + 1]
    calls = list(dict.fromkeys(fault.call for fault in during))
    by_call = {call: [fault for fault in during if fault.call == call] for call in calls}
    return [some[turn % len(some)] for turn, some in enumerate(by_call.values())]
