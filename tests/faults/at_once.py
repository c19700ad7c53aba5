"""Own workers that do each job where it is asked for, so that steps and calls have one order.

`python -m tests.faults.at_once convert --input_dir ...` is the command line that has its files written
by them. It starts as fast as the program: no torch comes with it.
"""

from __future__ import annotations

from concurrent.futures import Executor, Future
from contextlib import nullcontext
from typing import Any

from codellama_convert.__main__ import main
from codellama_convert.convert import dask


class AtOnce(Executor):
    """Does each job in the thread that asks for it."""

    def submit(self, fn: Any, /, *args: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **named))
        except TimeoutError:  # of a test that hangs, and not of the job
            raise
        except Exception as problem:  # noqa: BLE001 - as of every executor
            done.set_exception(problem)
        return done


def give_workers() -> None:
    """Let the command line of this process have its files written by such workers."""
    dask.dask_executor = lambda *_: nullcontext(AtOnce())


if __name__ == "__main__":
    give_workers()
    main()
