"""Own the sharing of work among threads, one buffer each; know nothing of what the work is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Buffer = TypeVar("Buffer")

# Takes an item, the worker's buffer, and whether to give up because another worker has failed.
Work = Callable[[Item, Buffer, Callable[[], bool]], None]


def share_out(items: Iterable[Item], buffers: Sequence[Buffer], work: Work[Item, Buffer]) -> None:
    """Work through items in order, on as many threads as there are buffers.

    A single buffer needs no thread. The first problem stops the other workers at their next item,
    or earlier where `work` asks; it is raised here when all have stopped.

    Args:
        items: What to work on.
        buffers: One for each worker.
        work: Called once for each item; it may raise anything.
    """
    queue = iter(items)
    lock = threading.Lock()
    failed = threading.Event()

    def run(buffer: Buffer) -> None:
        try:
            while not failed.is_set():
                with lock:
                    try:
                        item = next(queue)
                    except StopIteration:
                        return
                work(item, buffer, failed.is_set)
        except BaseException:
            failed.set()
            raise

    if len(buffers) == 1:
        run(buffers[0])
        return
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
