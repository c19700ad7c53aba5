"""Own the sharing of work among threads, one buffer each, and how many threads that are."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TypeVar

from codellama_convert.storage.watch import Watch

_MIN_DEFAULT_WORKERS, _MAX_DEFAULT_WORKERS = 2, 8

Item = TypeVar("Item")
Buffer = TypeVar("Buffer")
Result = TypeVar("Result")

# Takes an item, the worker's buffer, and what to call between two pieces of the work.
Work = Callable[[Item, Buffer, Watch], Result]


def default_workers() -> int:
    """Choose how many threads work at once: as many as cores, from 2 to 8.

    On 2 cores, 3 were no faster without a cast; more cores than 2 were not measured.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(_MAX_DEFAULT_WORKERS, max(_MIN_DEFAULT_WORKERS, usable or 1))


def share_out(
    items: Sequence[Item],
    buffers: Sequence[Buffer],
    work: Work[Item, Buffer, Result],
    watch: Watch | None = None,
) -> list[Result]:
    """Work through items in order, on as many threads as there are buffers and items.

    A single one needs no thread. The first problem stops the other workers at their next item, or
    earlier where `work` calls what it is given; it is raised here when all have stopped.

    Args:
        items: What to work on.
        buffers: One for each worker.
        work: Called once for each item; it may raise anything.
        watch: Whom the work is reported to.

    Returns:
        What `work` returned, in the order of the items.
    """
    queue = iter(enumerate(items))
    lock = threading.Lock()
    results: dict[int, Result] = {}
    watch = watch or Watch()
    shared = _SharedWatch(watch.progress, watch.stop, watch.hint)

    def run(buffer: Buffer) -> None:
        try:
            while not shared.failed.is_set():
                with lock:
                    try:
                        place, item = next(queue)
                    except StopIteration:
                        return
                results[place] = work(item, buffer, shared)
        except _AnotherFailed:  # whose problem is raised
            return
        except BaseException:
            shared.failed.set()
            raise

    buffers = buffers[: len(items)]
    if len(buffers) == 1:
        run(buffers[0])
    elif buffers:
        _run_in_threads(run, buffers, shared.failed)
    return [results[place] for place in sorted(results)]


def _run_in_threads(
    run: Callable[[Buffer], None], buffers: Sequence[Buffer], failed: threading.Event
) -> None:
    with ThreadPoolExecutor(len(buffers)) as pool:
        try:
            done, _ = wait(
                [pool.submit(run, buffer) for buffer in buffers], return_when=FIRST_EXCEPTION
            )
            for future in done:
                future.result()
        except BaseException:  # a signal's, too: the workers must not run to the end
            failed.set()
            raise


class _AnotherFailed(Exception):  # noqa: N818 - it ends a worker, and is never seen outside
    """Another worker has failed."""


@dataclass(frozen=True)
class _SharedWatch(Watch):
    """Also stops a worker once another one has failed."""

    failed: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Look whether to continue.

        Raises:
            _AnotherFailed: If another worker has failed.
            Interrupted: If somebody asked to stop.
        """
        if self.failed.is_set():
            raise _AnotherFailed
        super().check()
