"""Own the running of work in an executor: tried again where a worker was lost, and stopped as a whole."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from typing import TypeVar

from codellama_convert.errors import ConvertError, WorkerError, one_line, shown
from codellama_convert.storage.watch import Watch

_LOG = logging.getLogger(__name__)
_TRIES = 3  # of each job: another worker may succeed
_LOOK_SECONDS = 0.2  # between two looks at whether to stop
_STOP_SECONDS = 10.0  # that busy workers have to finish

Request = TypeVar("Request")
Result = TypeVar("Result")


def done_by(
    executor: Executor,
    work: Callable[[Request], Result],
    requests: Mapping[str, Request],
    watch: Watch,
    *,
    before_end: Callable[[], None] | None = None,
) -> Generator[tuple[str, Result], None, None]:
    """Have workers do some work; free workers get the requests in their order.

    Args:
        executor: Whose workers.
        work: A function of a module, that may be called twice for one request.
        requests: What it is called with, by names for messages.
        watch: May stop it.
        before_end: Called at the end, before the workers that are still busy are waited for.

    Yields:
        The name of a request and what was returned, as they are done.

    Raises:
        WorkerError: If the executor breaks or takes no work, or a job fails again and again.
        Interrupted: If the watch asked to stop.
        ConvertError: What a worker raised.
    """
    jobs: dict[Future[Result], tuple[str, int]] = {}

    def ask(name: str, tries: int) -> None:
        try:
            jobs[executor.submit(work, requests[name])] = name, tries
        except BrokenExecutor as problem:  # meanwhile
            raise _broken(problem, watch) from problem
        except RuntimeError as problem:
            raise WorkerError(
                f"the executor takes no work: {one_line(str(problem))}", hint=watch.hint
            ) from problem

    try:
        for name in requests:
            ask(name, 1)
        while jobs:
            done, _ = wait(jobs, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED)
            ended = [future for future in jobs if future in done]  # in the order of the requests
            whole = [future for future in ended if _is_whole(future)]
            for future in whole:  # first, whatever else happened: their work is not lost
                yield jobs.pop(future)[0], future.result()
            watch.check()  # then: a signal may have killed the workers too
            for future in [one for one in ended if one not in whole]:
                name, tries = jobs.pop(future)
                _refuse_in_vain(future, name, tries, watch)
                ask(name, tries + 1)
    finally:
        working = [future for future in jobs if not future.cancel()]
        if before_end is not None:
            before_end()
            wait(working, timeout=_STOP_SECONDS)


def _is_whole(future: Future[Result]) -> bool:
    return not future.cancelled() and future.exception() is None


def _refuse_in_vain(future: Future[Result], name: str, tries: int, watch: Watch) -> None:
    """Raise what asking another worker would not change."""
    problem = None if future.cancelled() else future.exception()
    if isinstance(problem, ConvertError) and not (problem.may_pass and tries < _TRIES):
        raise problem
    if isinstance(problem, BrokenExecutor):
        raise _broken(problem, watch) from problem
    if tries == _TRIES:
        raise WorkerError(
            f"the work on {name} failed {tries} times, at last with {shown(problem)}",
            hint=watch.hint,
        ) from problem
    _LOG.info("%s is asked for again: %r", name, problem)


def _broken(problem: BaseException, watch: Watch) -> WorkerError:
    return WorkerError(f"a worker died: {one_line(str(problem))}", hint=watch.hint)
