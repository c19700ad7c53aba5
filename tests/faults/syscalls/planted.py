"""Own mistakes of the program that a system call which fails must show."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.syscalls.bench import Bench
from tests.faults.syscalls.scenes import ERRORS, KILL, PART, WRITES, Fault, Scene
from tests.faults.syscalls.strace import is_kind

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
        and PART.sub(".part", fault.call.paths[-1]).endswith(planted.path)
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
