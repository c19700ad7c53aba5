"""A disk that is full, or that may not be written: one line, nothing published, and the next run resumes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from codellama_convert.convert.run import RunOptions, run
from codellama_convert.errors import Interrupted, OutputError
from codellama_convert.plan.job import Options, plan_conversion
from codellama_convert.plan.sizes import file_sizes
from codellama_convert.staging import crash_points as faults
from codellama_convert.storage.watch import Watch
from tests.faults.syscalls import strace
from tests.outputs import (
    SHARD_BYTES,
    STAGING,
    StopAfter,
    command,
    content,
    convert_whole,
    error_line,
    finish,
)
from tests.staging.space.disks import Disk, bytes_of, fill, steps_until_refused

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts as Linux has them")


OPTIONS = Options(max_shard_bytes=SHARD_BYTES, workers=1)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and what an uninterrupted run makes of it: 269 KB in six files, and 25 KB."""
    return convert_whole(tmp_path_factory.mktemp("small_disk"))


@pytest.mark.parametrize("below", ["", "out"])
def test_a_disk_that_is_too_small_is_refused_before_the_data(
    converted: Path, disk: Disk, below: str
) -> None:
    target = disk.path / below
    arguments = command(converted / "in", target)
    line = error_line(finish(arguments))
    assert re.match(rf"Error: {target}: needs 3..\.. kB \(3..,... bytes\) and has ", line), line
    assert re.search(r"has [0-9.]+ kB \([0-9]+,... bytes\) free; free some space, or name", line)
    assert list(disk.path.iterdir()) == []
    disk.change("size=400k")
    assert finish(arguments).returncode == 0
    assert content(target) == content(converted / "out")


def test_a_disk_that_is_too_small_by_one_block_is_refused_and_nothing_reserved(
    converted: Path, disk: Disk
) -> None:
    """Files were reserved one by one until ENOSPC: a shared disk was full for some seconds."""
    disk.change("size=600k")
    target = disk.path / "out"
    job = plan_conversion(converted / "in", OPTIONS)
    needed = bytes_of(job)
    fill(disk, needed - 1)
    fact = rf"needs .* \({needed:,} bytes\) and has "
    assert steps_until_refused(job, target, fact) <= {"locked"}
    assert [path.name for path in disk.path.iterdir()] == ["ballast"]
    fill(disk, needed + 60_000)  # blocks are larger than bytes
    run(job, target)
    assert content(target) == content(converted / "out")


def test_a_disk_that_has_the_bytes_and_not_the_blocks_is_refused_at_once(
    converted: Path, disk: Disk
) -> None:
    """Bytes were summed: a disk that was some kB too small filled up before it was found out."""
    disk.change("size=600k")
    job = plan_conversion(converted / "in", OPTIONS)
    fill(disk, sum(file_sizes(job, job.small_files()).values()) + 4096)
    fact = r"needs .* and has .* free"
    assert steps_until_refused(job, disk.path / "out", fact) <= {"locked"}
    fill(disk, bytes_of(job))
    run(job, disk.path / "out")
    assert content(disk.path / "out") == content(converted / "out")


def test_the_space_of_the_older_model_does_not_count(converted: Path, disk: Disk) -> None:
    """It goes when the new one is whole, and not before."""
    disk.change("size=900k")
    target = disk.path / "out"
    job = plan_conversion(converted / "in", OPTIONS)
    run(job, target)
    fill(disk, bytes_of(job) - 1)
    with pytest.raises(OutputError, match="needs "):
        run(job, target, RunOptions(overwrite=True))
    assert content(target) == content(converted / "out")
    fill(disk, bytes_of(job) + 60_000)
    run(job, target, RunOptions(overwrite=True))
    assert content(target) == content(converted / "out")


def test_staged_work_that_is_dropped_makes_space_and_is_kept_where_that_is_too_little(
    converted: Path, disk: Disk
) -> None:
    disk.change("size=900k")
    target = disk.path / "out"
    job = plan_conversion(converted / "in", OPTIONS)
    with pytest.raises(Interrupted):
        run(job, target, watch=Watch(stop=StopAfter(12)))
    staged = content(target / STAGING)
    taken = sum(path.lstat().st_blocks * 512 for path in (target / STAGING).iterdir())
    assert taken > 40_000
    fill(disk, bytes_of(job) - taken - 4096)
    with pytest.raises(OutputError, match="needs "):
        run(job, target, RunOptions(restart=True))
    assert content(target / STAGING) == staged
    fill(disk, bytes_of(job) - taken + 60_000)
    run(job, target, RunOptions(restart=True))
    assert content(target) == content(converted / "out")


def test_a_disk_that_somebody_else_fills_is_found_before_the_data(
    converted: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was free a moment ago is not any more: now the space is taken file by file."""
    disk.change("size=600k")
    target = disk.path / "out"
    job = plan_conversion(converted / "in", OPTIONS)
    monkeypatch.setattr(
        faults, "hook", lambda name: fill(disk, 100_000) if name == "journal begun" else None
    )
    done: list[int] = []
    with pytest.raises(OutputError, match=r"cannot reserve .*: No space left on device"):
        run(job, target, watch=Watch(done.append))
    assert done == []
    assert [path.name for path in disk.path.iterdir()] == ["ballast"]


def test_a_disk_that_fills_up_between_two_runs_costs_no_whole_file(
    converted: Path, disk: Disk
) -> None:
    disk.change("size=400k")
    target = disk.path / "out"
    job = plan_conversion(converted / "in", OPTIONS)
    with pytest.raises(Interrupted):
        run(job, target, watch=Watch(stop=StopAfter(12)))
    kept = {path.name: path.stat().st_ino for path in (target / STAGING).glob("*.safetensors")}
    assert 0 < len(kept) < 6
    fill(disk, 40_000)
    arguments = command(converted / "in", target)
    assert "needs " in error_line(finish(arguments))
    found = {path.name: path.stat().st_ino for path in (target / STAGING).iterdir()}
    assert {name: found.get(name) for name in kept} == kept
    assert not [name for name in found if name.endswith(".part")]
    (disk.path / "ballast").unlink()
    assert finish(arguments).returncode == 0
    assert content(target) == content(converted / "out")
    assert {name: (target / name).stat().st_ino for name in kept} == kept


# Somebody else takes 200 kB of the disk after it was found large enough.
FILLS_UP = """
from pathlib import Path
from codellama_convert.__main__ import main
from codellama_convert.staging import crash_points
def hook(name):
    if name == "journal begun":
        Path({!r}).write_bytes(bytes(200_000))
crash_points.hook = hook
main()
"""


def test_a_full_disk_is_found_before_the_data_where_space_cannot_be_reserved(
    converted: Path, disk: Disk, tmp_path: Path
) -> None:
    if strace.why_not():
        pytest.skip(str(strace.why_not()))
    disk.change("size=400k")
    target = disk.path / "out"
    arguments = command(converted / "in", target)
    fills_up = [sys.executable, "-c", FILLS_UP.format(str(disk.path / "ballast")), *arguments[3:]]
    rules = ["fallocate:error=EOPNOTSUPP"]
    done = strace.trace(fills_up, ["fallocate", "pwrite64"], inject=rules, log=tmp_path / "log")
    assert done.status == 1
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert line.startswith(f"Error: {target}: cannot reserve ")
    assert "No space left on device" in line
    assert not [c for c in done.calls if c.name == "pwrite64" and "/model-0" in c.paths[0]]
    assert list(disk.path.iterdir()) == [disk.path / "ballast"]
    (disk.path / "ballast").unlink()
    done = strace.trace(arguments, ["fallocate"], inject=rules, log=tmp_path / "log")
    assert (done.status, content(target)) == (0, content(converted / "out"))


def test_a_file_too_large_for_the_file_system_is_told_the_option(
    converted: Path, tmp_path: Path
) -> None:
    """FAT32 ends at 4 GB a file; freeing some space, as it said, is no way out."""
    limited = ["bash", "-c", 'ulimit -f 20; exec "$@"', "bash"]  # 20 KiB
    arguments = command(converted / "in", tmp_path / "out")
    line = error_line(finish([*limited, *arguments]))
    assert "File too large" in line
    assert "--max_shard_size" in line
    assert "free some space" not in line


def test_a_disk_mounted_read_only_is_one_line(converted: Path, disk: Disk) -> None:
    disk.change("size=400k", "ro")
    arguments = command(converted / "in", disk.path / "out")
    assert "Read-only file system" in error_line(finish(arguments))
    disk.change("rw")
    job = plan_conversion(converted / "in", OPTIONS)
    with pytest.raises(Interrupted):
        run(job, disk.path / "out", watch=Watch(stop=StopAfter(12)))
    disk.change("ro")  # as the kernel does when a disk fails
    before = content(disk.path / "out" / STAGING)
    assert "Read-only file system" in error_line(finish(arguments))
    assert content(disk.path / "out" / STAGING) == before
    disk.change("rw")
    assert finish(arguments).returncode == 0
    assert content(disk.path / "out") == content(converted / "out")


def test_a_plan_says_that_a_disk_is_too_small_and_ends_with_1(converted: Path, disk: Disk) -> None:
    """It ended with 0: a script went on, and the conversion filled the disk."""
    target = disk.path / "out"
    done = _with_output("plan", converted, target)
    assert done.returncode == 1
    assert re.search(r"^disk +[0-9.]+ kB needed, 204.8 kB free: [0-9.]+ kB too little$",
                     done.stdout, re.MULTILINE), done.stdout  # fmt: skip
    assert "Error" not in done.stderr
    assert list(disk.path.iterdir()) == []
    disk.change("size=600k")
    done = _with_output("plan", converted, target)
    assert (done.returncode, "too little" in done.stdout) == (0, False)
    disk.change("size=600k", "ro")
    done = _with_output("plan", converted, target)
    assert f"refused     {disk.path}: may not be written\n" in done.stdout


@pytest.mark.parametrize("what", ["plan", "convert"])
def test_a_name_that_is_too_long_is_one_line(converted: Path, tmp_path: Path, what: str) -> None:
    line = error_line(_with_output(what, converted, tmp_path / ("x" * 300)))
    assert "File name too long" in line
    assert _with_output(what, converted, tmp_path / ("x" * 200)).returncode == 0


def _with_output(what: str, converted: Path, target: Path) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "codellama_convert", what, "--input_dir"]
    return finish([*arguments, str(converted / "in"), "--output_dir", str(target)])
