"""Own executors whose workers die, double, fail or see something else: each by the real way."""

from __future__ import annotations

import resource
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from codellama_convert import Options
from codellama_convert.convert.jobs import FileRequest, write_file
from codellama_convert.convert.write_pass import FileReport
from tests.faults.dying import die_after

OPTIONS = Options(max_shard_bytes=60_000, workers=1, tile_bytes=8192)
N_FILES = 6
_STAGING = ".codellama-convert.partial"  # not from tests.outputs: torch comes with that

# Takes the number of a job, from 1, and its request.
Job = Callable[[int, FileRequest], FileReport]


def spawned(n_workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(n_workers, mp_context=get_context("spawn"))


class Counting(ThreadPoolExecutor):
    """Counts what it is asked for."""

    def __init__(self) -> None:
        super().__init__(2)
        self.asked: list[tuple[Any, Any]] = []

    def submit(self, fn: Any, /, *args: Any, **named: Any) -> Any:
        self.asked.append((fn, *args))
        return super().submit(fn, *args, **named)


class Through(Executor):
    """Hands each job to a pool as another one."""

    def __init__(self, job: Job, pool: Executor | None = None) -> None:
        self._job, self._pool = job, pool or ThreadPoolExecutor(1)
        self.asked: list[FileRequest] = []

    def submit(self, fn: Any, /, *args: Any, **_: Any) -> Future[Any]:
        assert fn is write_file
        self.asked.append(*args)
        return self._pool.submit(self._job, len(self.asked), *args)

    def shutdown(self, *how: Any, **named: Any) -> None:
        self._pool.shutdown(*how, **named)


def die_in_the_third(number: int, request: FileRequest) -> FileReport:
    """Kill this process when the data of the third file is on the disk, and its header is not."""
    if number == 3:
        die_after("data saved")
    return write_file(request)


def die(request: FileRequest) -> FileReport:
    """Kill this process when a file is whole and has no name."""
    die_after("header saved")
    return write_file(request)


class LostError(Exception):
    """What an engine says of a job whose worker was killed."""


def lose_the_first(n_lost: int) -> Job:
    """Have a worker killed in each of the first jobs, and say it as an engine would."""

    def work(number: int, request: FileRequest) -> FileReport:
        if number > n_lost:
            return write_file(request)
        with spawned(1) as pool:
            try:
                return pool.submit(die, request).result()
            except BrokenProcessPool as problem:
                raise LostError(number) from problem

    return work


def allow_little_in_the_third(number: int, request: FileRequest) -> FileReport:
    """Let no file of this process be as large as one of the model, from the third job on."""
    if number >= 3:
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, most))
    return write_file(request)


def lack_descriptors(number: int, request: FileRequest) -> FileReport:
    """Let this process open nothing, in the first two jobs."""
    return _under(resource.RLIMIT_NOFILE, 0 if number <= 2 else None, request)


def always_lack_descriptors(number: int, request: FileRequest) -> FileReport:
    """Let this process open nothing."""
    del number
    return _under(resource.RLIMIT_NOFILE, 0, request)


def lack_memory(number: int, request: FileRequest) -> FileReport:
    """Let this process have no more memory than it has, in the first two jobs."""
    n_pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = n_pages * resource.getpagesize()
    return _under(resource.RLIMIT_AS, most if number <= 2 else None, request)


def _under(limit: int, most: int | None, request: FileRequest) -> FileReport:
    before = resource.getrlimit(limit)
    if most is not None:
        resource.setrlimit(limit, (most, before[1]))
    try:
        return write_file(request)
    finally:
        resource.setrlimit(limit, before)


def left_over(target: Path) -> list[str]:
    """Name what is staged of a run that has ended."""
    folder = target / _STAGING
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []
