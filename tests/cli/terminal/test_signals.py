"""A signal stops the program where it can resume later, whatever it is busy with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from codellama_convert.convert.run import run
from codellama_convert.errors import Interrupted
from codellama_convert.plan.job import Options, plan_conversion
from codellama_convert.storage.signals import _ONE_WISH_SECONDS as ONE_WISH_SECONDS
from codellama_convert.storage.watch import Watch
from tests.outputs import (
    LOCK,
    SHARD_BYTES,
    STAGING,
    StopAfter,
    command,
    content,
    convert_whole,
    environment,
    finish,
    loads,
)

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")

# Runs the command line; the first call of the named function first sends the named signal.
HOOKED = """
import importlib, os, signal, sys, time
from codellama_convert.storage import signals
module, owner, name, number, times, pause, wish = sys.argv[1:8]
del sys.argv[1:8]
assert hasattr(signals, "_ONE_WISH_SECONDS")
signals._ONE_WISH_SECONDS = float(wish)
holder = importlib.import_module("codellama_convert." + module)
holder = getattr(holder, owner) if owner else holder
real = getattr(holder, name)
left = int(times)
def hooked(*arguments, **named):
    global left
    while left:
        left -= 1
        os.kill(os.getpid(), int(number))
        time.sleep(float(pause))
    return real(*arguments, **named)
setattr(holder, name, hooked)
from codellama_convert.__main__ import main
main()
"""


def hooked(
    place: str, number: int, arguments: list[str], **how: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command that gets a signal when it first comes to a place: module:owner:function."""
    return finish([sys.executable, *hook(place, number, **how), *arguments[3:]])


def hook(
    place: str, number: int, *, times: int = 1, pause: float = 0.0, wish: float = ONE_WISH_SECONDS
) -> list[str]:
    """Spell what Python is given before a command's own arguments, to send it those signals."""
    numbers = (int(number), times, pause, wish)
    return ["-c", HOOKED, *place.split(":"), *map(str, numbers)]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and what an uninterrupted run makes of it."""
    return convert_whole(tmp_path_factory.mktemp("stopping"))


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT"])
@pytest.mark.parametrize("before", ["SIG_IGN", "SIG_DFL"])
def test_a_signal_that_the_caller_has_ignored_stays_ignored(
    converted: Path, tmp_path: Path, name: str, before: str
) -> None:
    """Under nohup a closed terminal must not end a conversion; it did."""
    number, ignored = getattr(signal, name), before == "SIG_IGN"
    starter = (
        "import os, signal, sys\n"
        f"signal.signal({int(number)}, signal.{before})\n"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
    )
    arguments = command(converted / "in", tmp_path / "out")[3:]
    hooks = hook("staging.part_files:PartFiles:seal", number)
    done = finish([sys.executable, "-c", starter, *hooks, *arguments])
    assert done.returncode == (0 if ignored else 128 + number), done.stderr
    assert loads(tmp_path / "out") == ignored
    if ignored:
        assert content(tmp_path / "out") == content(converted / "out")
    else:
        assert (tmp_path / "out" / STAGING).is_dir()


# Where the program may be when a signal comes, the signal, and the options that bring it there.
WHILE_AT_WORK = {
    "the space is reserved": ("staging.part_files:PartFiles:reserve", "SIGHUP", ()),
    "a tile is written": ("convert.transfer:TileSource:fill", "SIGTERM", ()),
    "a file is sealed": ("staging.part_files:PartFiles:seal", "SIGINT", ()),
    "the last bytes of a rank are read": (
        "formats.tensor_reader:TensorReader:finish",
        "SIGINT",
        (),
    ),
    "the sum of a rank is made": ("formats.tensor_reader:TensorReader:file_crc", "SIGTERM", ()),
    "SHA-256 is taken": ("storage.digests::file_digest", "SIGHUP", ("--sha256",)),
    "it is verified": ("verify.tensor:TensorComparer:compare", "SIGINT", ("--verify",)),
}
STATUS = {"SIGHUP": 129, "SIGINT": 130, "SIGTERM": 143}


@pytest.mark.parametrize("place", WHILE_AT_WORK)
def test_a_signal_during_the_work_keeps_it_and_tells_how_to_go_on(
    converted: Path, tmp_path: Path, place: str
) -> None:
    where, name, more = WHILE_AT_WORK[place]
    target = tmp_path / "out"
    arguments = command(converted / "in", target, "--workers", "1", *more)
    done = hooked(where, getattr(signal, name), arguments)
    assert done.returncode == STATUS[name], done.stderr
    last = done.stderr.splitlines()[-1]
    assert "run the same command again to resume" in last
    assert str(target / STAGING) in last
    assert "Traceback" not in done.stderr
    assert {path.name for path in target.iterdir()} == {STAGING}
    assert not list((target / STAGING).glob("*.part"))
    assert finish(arguments).returncode == 0
    if "--sha256" not in more:  # which are in the record
        assert content(target) == content(converted / "out")
    assert not (target / STAGING).exists()


def test_a_signal_while_whole_files_are_read_again_does_not_wait_for_their_end(
    converted: Path, tmp_path: Path
) -> None:
    """Of 70B there are 138 GB to read again: minutes in which Ctrl-C did nothing."""
    target = tmp_path / "out"
    options = Options(max_shard_bytes=SHARD_BYTES, workers=1, tile_bytes=8192)
    job = plan_conversion(converted / "in", options)
    with pytest.raises(Interrupted):
        run(job, target, watch=Watch(stop=StopAfter(30)))
    kept = sorted(path.name for path in (target / STAGING).glob("*.safetensors"))
    assert len(kept) > 1
    done: list[int] = []
    with pytest.raises(Interrupted):
        run(job, target, watch=Watch(done.append, StopAfter(3)))
    assert done == []  # the first whole file has more than three pieces
    with pytest.raises(Interrupted):
        run(job, target, watch=Watch(done.append, StopAfter(20)))
    assert done  # and after some more looks it is read
    assert sorted(path.name for path in (target / STAGING).glob("*.safetensors")) == kept
    run(job, target)
    assert content(target) == content(converted / "out")


def test_a_signal_while_it_is_published_comes_too_late(converted: Path, tmp_path: Path) -> None:
    """Stopping there would leave nothing that loads, for the few milliseconds that it takes."""
    target = tmp_path / "out"
    arguments = command(converted / "in", target)
    done = hooked("staging.folder:OutputFolder:publish", signal.SIGTERM, arguments)
    assert done.returncode == 0, done.stderr
    assert content(target) == content(converted / "out")


@pytest.mark.parametrize(
    "place", ["convert.transfer:TileSource:fill", "staging.folder:OutputFolder:publish"]
)
def test_a_second_signal_stops_at_once_and_the_work_can_still_go_on(
    converted: Path, tmp_path: Path, place: str
) -> None:
    target = tmp_path / "out"
    arguments = command(converted / "in", target, "--workers", "1")
    done = hooked(place, signal.SIGINT, arguments, times=2, pause=0.3)
    assert done.returncode == 130
    assert [line for line in done.stderr.splitlines() if not line.startswith("note: ")] == []
    assert not loads(target)
    assert (target / LOCK).exists()  # nothing was cleaned up
    assert finish(arguments).returncode == 0
    assert content(target) == content(converted / "out")


def test_two_signals_at_once_are_one_wish(converted: Path, tmp_path: Path) -> None:
    """`timeout` signals its child, and then the child's group: the lock and parts were left."""
    assert 0.1 < ONE_WISH_SECONDS < 0.3
    target = tmp_path / "out"
    arguments = command(converted / "in", target, "--workers", "1")
    # However long a busy machine takes from one signal to the next, it is within the time allowed.
    done = hooked("convert.transfer:TileSource:fill", signal.SIGTERM, arguments, times=2, wish=60)
    assert done.returncode == 143
    assert "Interrupted" in done.stderr.splitlines()[-1]
    assert not (target / LOCK).exists()
    assert finish(arguments).returncode == 0
    assert content(target) == content(converted / "out")


@pytest.mark.parametrize(
    ("place", "more"),
    [
        ("meta.checklist:ListedSums:_compare", ("--checksums", "warn")),
        ("plan.job::open_checkpoint", ()),
    ],
)
def test_a_signal_before_the_first_output_byte_leaves_at_once(
    converted: Path, tmp_path: Path, place: str, more: tuple[str, ...]
) -> None:
    arguments = command(converted / "in", tmp_path / "out", *more)
    done = hooked(place, signal.SIGINT, arguments)
    assert done.returncode == 130, done.stderr
    assert done.stderr == ""
    assert not (tmp_path / "out").exists()


def test_a_signal_ends_verify_without_a_traceback(converted: Path) -> None:
    arguments = [
        sys.executable, "-m", "codellama_convert", "verify", "--output_dir", str(converted / "out"),
    ]  # fmt: skip
    done = hooked("verify.against_record::compare_file", signal.SIGINT, arguments)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    assert finish(arguments).returncode == 0


# Runs the command line; the first call of the named function waits for ever, after a line that says so.
WAITING = """
import importlib, os, sys
from codellama_convert.storage import signals as interrupt
interrupt._PATIENCE_SECONDS = 0.2
module, owner, name, what, path = sys.argv[1:6]
del sys.argv[1:6]
holder = getattr(importlib.import_module("codellama_convert." + module), owner)
def wait(*arguments, **named):
    os.write(1, b"waiting\\n")
    if what == "fifo":
        os.open(path, os.O_WRONLY)
    else:
        import fcntl
        fcntl.flock(os.open(path, os.O_RDWR), fcntl.LOCK_EX)
setattr(holder, name, wait)
from codellama_convert.__main__ import main
main()
"""


@pytest.mark.parametrize("what", ["fifo", "lock"])
@pytest.mark.parametrize(
    ("place", "workers"),
    [("staging.part_files:PartFiles:seal", 1), ("convert.transfer:TileSource:fill", 2)],
)
def test_one_signal_ends_a_run_that_waits_for_the_system(
    converted: Path, tmp_path: Path, what: str, place: str, workers: int
) -> None:
    """Python repeats a call that a signal broke off: only SIGKILL ended such a run."""
    import fcntl

    path, target = tmp_path / what, tmp_path / "out"
    if what == "fifo":
        os.mkfifo(path)
    else:
        path.touch()
    arguments = command(converted / "in", target, "--workers", str(workers))
    with path.open("r+b") if what == "lock" else nullcontext() as held:
        if held is not None:
            fcntl.flock(held, fcntl.LOCK_EX)
        child = subprocess.Popen(
            [sys.executable, "-c", WAITING, *place.split(":"), what, str(path), *arguments[3:]],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip
        with child:
            assert child.stdout is not None
            assert child.stdout.readline() == "waiting\n"
            child.send_signal(signal.SIGTERM)
            _, problem = child.communicate(timeout=60)
    assert child.returncode == 143
    assert "Interrupted" in problem.splitlines()[-1]
    assert "run the same command again" in problem.splitlines()[-1]
    assert not loads(target)
    assert finish(arguments).returncode == 0
    assert content(target) == content(converted / "out")
