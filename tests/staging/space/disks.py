"""Own the small disks of tests: file systems in memory that fill up, and what a job takes on one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from codellama_convert.convert.run import run
from codellama_convert.errors import OutputError
from codellama_convert.plan.job import Job
from codellama_convert.plan.ranks.job import ReverseJob
from codellama_convert.plan.sizes import file_sizes
from codellama_convert.staging import crash_points


class Disk:
    """A file system in memory, of a size that can be changed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mount(self, *options: str) -> str:
        """Mount it, or mount it again; give what went wrong."""
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(self.path)],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        return done.stderr

    def change(self, *options: str) -> None:
        """Change its size, or whether it may be written."""
        assert self.mount("remount", *options) == ""


def bytes_of(job: Job | ReverseJob) -> int:
    """Tell what it takes in blocks of 4096 bytes: each file, two folders and the journal."""
    sizes = file_sizes(job, job.small_files()).values()
    return sum(-(-n_bytes // 4096) * 4096 for n_bytes in sizes) + 3 * 4096


def steps_until_refused(job: Job | ReverseJob, target: Path, fact: str) -> set[str]:
    """Run where there is too little space; give the steps that were passed before it was said."""
    steps: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crash_points, "hook", steps.append)
        with pytest.raises(OutputError, match=fact):
            run(job, target)
    return set(steps)


def fill(disk: Disk, n_free: int) -> None:
    """Put something on it that leaves so many bytes free, or a little more than a block less."""
    ballast = disk.path / "ballast"
    ballast.unlink(missing_ok=True)
    usage = os.statvfs(disk.path)
    with ballast.open("wb") as file:
        file.write(bytes((usage.f_bavail - n_free // usage.f_bsize) * usage.f_bsize))
