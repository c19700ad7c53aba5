"""What a conversion asks of the system, and what it says when the system refuses."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from codellama_convert.storage.input_file import InputFile
from tests.faults.syscalls.bench import Bench, sweep
from tests.faults.syscalls.planted import PLANTED, a_share, find_planted
from tests.faults.syscalls.scenes import SCENES, WRITES, Scene
from tests.faults.syscalls.strace import Call, Traced, parse, trace, why_not
from tests.outputs import ROOT, STAGING, command, content, convert_whole, error_line, finish, loads

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and what an uninterrupted run makes of it."""
    return convert_whole(tmp_path_factory.mktemp("syscalls"))


def fail_one_read(
    arguments: list[str], target: Path, log: Path, error: str, choose: Callable[[list[Call]], Call]
) -> Traced:
    """Convert twice, the second time with an error of the read of a rank that is chosen."""
    plain = trace(arguments, ["preadv", "preadv2"], log=log)
    chosen = choose([call for call in plain.calls if "consolidated" in call.paths[0]])
    for path in target.iterdir():
        path.unlink()
    rule = f"{chosen.name}:error={error}:when={chosen.ordinal}"
    return trace(arguments, [chosen.name], inject=[rule], log=log)


@pytest.mark.parametrize("error", ["EOPNOTSUPP", "ENOSYS"])
def test_where_space_cannot_be_reserved_no_byte_is_written_twice(
    converted: Path, tmp_path: Path, error: str
) -> None:
    """glibc's posix_fallocate then writes into every block of the file: 13 GB, twice."""
    target = tmp_path / "out"
    arguments = command(converted / "in", target, "--workers", "1")
    done = trace(
        arguments, ["fallocate", "ftruncate", "pwrite64"], inject=[f"fallocate:error={error}"],
        log=tmp_path / "log",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    assert content(target) == content(converted / "out")
    assert any(call.injected for call in done.calls)
    written = sum(
        int(call.result) for call in done.calls
        if call.name == "pwrite64" and str(target / STAGING) in call.paths[0]
    )  # fmt: skip
    assert written == sum(len(bytes_) for bytes_ in content(target).values())


@pytest.mark.parametrize("error", ["ENOLCK", "EOPNOTSUPP"])
def test_some_network_mounts_have_no_locks(converted: Path, tmp_path: Path, error: str) -> None:
    target = tmp_path / "out"
    arguments = command(converted / "in", target)
    done = trace(arguments, ["flock"], inject=[f"flock:error={error}"], log=tmp_path / "log")
    assert done.status == 0, done.stderr
    assert any(call.injected for call in done.calls)
    assert content(target) == content(converted / "out")


def test_a_file_system_may_take_the_flag_and_refuse_direct_reads(
    converted: Path, tmp_path: Path
) -> None:
    """It is asked with one block first; ours is the checkout's, the suite may run in memory."""
    with tempfile.TemporaryDirectory(dir=ROOT, prefix=".test-") as folder:
        source, target = Path(folder) / "in", Path(folder) / "out"
        shutil.copytree(converted / "in", source)
        with InputFile(source / "consolidated.00.pth", io_mode="auto") as file:
            if not file.direct:
                pytest.skip("the file system of the checkout has no direct I/O")
        done = fail_one_read(
            command(source, target, "--workers", "1"), target, tmp_path / "log", "EINVAL",
            lambda reads: next(c for c in reads if "iov_len=4096}], 1, 0" in c.arguments),
        )  # fmt: skip
        assert done.status == 0, done.stderr
        refused = [call.paths[0] for call in done.calls if call.injected]
        assert refused == [str(source / "consolidated.00.pth")]
        assert content(target) == content(converted / "out")


def test_a_lock_that_fails_is_no_lock(converted: Path, tmp_path: Path) -> None:
    """The neighbour of the tests above: an error is not taken for a file system without locks."""
    target = tmp_path / "out"
    arguments = command(converted / "in", target)
    done = trace(arguments, ["flock"], inject=["flock:error=EIO"], log=tmp_path / "log")
    assert done.status == 1
    assert "Input/output error" in done.stderr.splitlines()[-1]
    assert not loads(target)


def test_the_log_is_read_as_strace_writes_it() -> None:
    """Two threads, a call that is resumed, one that strace made fail, one that nobody saw end."""
    calls = parse(
        r"""
10 openat(AT_FDCWD</w>, "/o/a \"b\"", O_WRONLY|O_CREAT, 0666) = 3</o/a "b">
11 fsync(4</o/c> <unfinished ...>
10 pwrite64(3</o/a>, "1 = 2) = 3</x>, ", 16, 0) = 16
11 <... fsync resumed>) = -1 EIO (Input/output error) (INJECTED)
10 pwrite64(3</o/a>(deleted), "x"..., 1, 16) = 1
10 rename("/o/a", "/o/b") = 0
10 renameat(4</o>, "a", 5</o/p>, "b") = 0
10 newfstatat(4</o>, "", {st_mode=S_IFDIR|0755}, AT_EMPTY_PATH) = 0
10 unlinkat(4</o>, "/p/a", 0) = 0
11 fsync(4</o/c> <unfinished ...>) = ?
11 +++ killed by SIGKILL +++
""".strip().splitlines()
    )
    assert [(c.thread, c.name, c.ordinal, c.paths, c.result) for c in calls] == [
        (10, "openat", 1, ('/o/a \\"b\\"',), '3</o/a "b">'),
        (11, "fsync", 1, ("/o/c",), "-1 EIO (Input/output error) (INJECTED)"),
        (10, "pwrite64", 1, ("/o/a",), "16"),
        (10, "pwrite64", 2, ("/o/a",), "1"),
        (10, "rename", 1, ("/o/a", "/o/b"), "0"),
        (10, "renameat", 1, ("/o/a", "/o/p/b"), "0"),
        (10, "newfstatat", 1, ("/o",), "0"),
        (10, "unlinkat", 1, ("/p/a",), "0"),
        (11, "fsync", 2, ("/o/c",), ""),
    ]
    assert [call.ordinal for call in calls if call.injected] == [1]
    assert [call.paths for call in calls if call.failed] == [("/o/c",)]


# --- every call fails once ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scene", "number"), [(SCENES[0], 0), (SCENES[1], 1), (SCENES[5], 1), (SCENES[6], 0)],
    ids=lambda value: getattr(value, "name", ""),
)  # fmt: skip
def test_whatever_call_fails_nothing_is_torn_and_the_rerun_finishes(
    tmp_path: Path, scene: Scene, number: int
) -> None:
    """A share: `python -m tests.faults.sweep` makes each call fail."""
    bench = Bench(tmp_path / "bench", scene)
    faults = list(bench.faults())
    share = a_share(faults, number)
    counts, problems = sweep(bench, share)
    assert problems == []
    assert {fault.call.name for fault in faults if fault.call.name in WRITES} == set(counts)
    assert len(counts) >= 10


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_found(tmp_path: Path, name: str) -> None:
    planted = PLANTED[name]
    problems = find_planted(tmp_path / "bench", planted, SCENES[0])
    assert any(planted.problem in problem for problem in problems), problems


def test_a_source_that_cannot_be_read_costs_no_whole_file(converted: Path, tmp_path: Path) -> None:
    """On a network mount an hour of work was dropped for one I/O error."""
    target = tmp_path / "out"
    arguments = command(converted / "in", target, "--workers", "1", "--io", "buffered")
    done = fail_one_read(
        arguments, target, tmp_path / "log", "EIO", lambda reads: reads[len(reads) * 2 // 3]
    )
    assert done.status == 1
    assert "consolidated.0" in done.stderr.splitlines()[-1]
    assert "Input/output error" in done.stderr.splitlines()[-1]
    kept = {path.name: path.stat().st_ino for path in (target / STAGING).glob("*.safetensors")}
    assert kept
    assert not list((target / STAGING).glob("*.part"))
    assert finish(arguments).returncode == 0
    assert content(target) == content(converted / "out")
    assert {name: (target / name).stat().st_ino for name in kept} == kept


def test_a_source_that_is_damaged_leaves_nothing_staged(converted: Path, tmp_path: Path) -> None:
    """The neighbour of the test above: what was made of wrong bytes is not worth keeping."""
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name, bytes_ in content(converted / "in").items():
        (source / name).write_bytes(bytes_)
    rank = source / "consolidated.01.pth"
    damaged = bytearray(rank.read_bytes())
    damaged[len(damaged) * 2 // 3] ^= 1
    rank.write_bytes(damaged)
    line = error_line(finish(command(source, target, "--workers", "1")))
    assert "CRC-32 mismatch" in line
    assert not target.exists()
