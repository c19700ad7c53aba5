"""Own the course of jobs in an executor: who is asked for what, again where a worker was lost, and the end."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import replace
from pathlib import Path

from codellama_convert.convert.jobs import FileRequest, write_file
from codellama_convert.convert.write_pass import FileReport
from codellama_convert.errors import ConvertError, WorkerError, one_line, shown
from codellama_convert.plan.job import Job
from codellama_convert.plan.options import Options
from codellama_convert.plan.ranks.job import ReverseJob
from codellama_convert.plan.ranks.options import ReverseOptions
from codellama_convert.plan.target import TargetFile
from codellama_convert.staging.folder import OutputFolder
from codellama_convert.storage.watch import Watch

_TRIES = 3  # of a job whose worker is lost
_LOOK_SECONDS = 0.2  # from one look whether to stop to the next
_STOP_SECONDS = 10.0  # that workers get to stop between two tiles
_LOG = logging.getLogger(__name__)

Pass = Sequence[TargetFile]


class RemoteWriter:
    """Has passes written by the workers of an executor."""

    def __init__(
        self, executor: Executor, job: Job | ReverseJob, folder: OutputFolder, watch: Watch
    ) -> None:
        """Take whom to ask, and for what; nothing is asked before `write`."""
        self._executor, self._job, self._folder, self._watch = executor, job, folder, watch

    def write(self, passes: Sequence[Pass]) -> Iterator[tuple[Pass, FileReport]]:
        """Have passes written, the largest first.

        Args:
            passes: The files of each.

        Yields:
            Each pass with what was written of it, as it is done. When the next one is asked for,
            what other workers have left of it is removed.

        Raises:
            WorkerError: If the executor breaks, or workers are lost again and again.
            Interrupted: If the watch asked to stop.
            ConvertError: What a worker raised.
        """
        jobs: dict[Future[FileReport], tuple[Pass, int]] = {}
        token = self._folder.begin_run()
        try:
            for files in sorted(passes, key=_n_bytes, reverse=True):
                jobs[self._ask(files, token)] = files, 1
            while jobs:
                done, _ = wait(jobs, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED)
                whole = {future for future in done if _is_whole(future)}
                for future in whole:  # first, whatever else happened: their work is not lost
                    files, _ = jobs.pop(future)
                    yield files, future.result()
                    self._clear_up(files)
                self._watch.check()  # then: a signal may have killed the workers too
                for future in done - whole:
                    files, tries = jobs.pop(future)
                    self._refuse_in_vain(future, files, tries)
                    jobs[self._ask(files, token)] = files, tries + 1
        finally:
            self._folder.end_run()
            wait([future for future in jobs if not future.cancel()], timeout=_STOP_SECONDS)

    def _ask(self, files: Pass, token: str) -> Future[FileReport]:
        request = FileRequest(
            input_dir=str(self._job.given_dir.absolute()),
            output_dir=str(self._folder.path.absolute()),
            options=_anywhere(self._job.options),
            fingerprint=self._folder.fingerprint,
            names=tuple(file.name for file in files),
            token=token,
        )
        try:
            return self._executor.submit(write_file, request)
        except RuntimeError as problem:  # it broke meanwhile, or was shut down
            raise self._broken(problem) from problem

    def _clear_up(self, files: Pass) -> None:
        """Remove what workers that were lost have left of files that are named now."""
        for file in files:
            self._folder.parts.drop_of(file.name)
        self._watch.advance(sum(tensor.spec.n_bytes for tensor in files[0].tensors))

    def _refuse_in_vain(self, future: Future[FileReport], files: Pass, tries: int) -> None:
        """Raise what asking another worker would not change."""
        problem = None if future.cancelled() else future.exception()
        if isinstance(problem, ConvertError):
            raise problem
        if isinstance(problem, BrokenExecutor):
            raise self._broken(problem) from problem
        if tries == _TRIES:
            raise WorkerError(
                f"{tries} workers were lost over {files[0].name}: {shown(problem)}",
                path=self._folder.path,
                hint=self._watch.hint,
            ) from problem
        _LOG.info("%s is asked for again: %r", files[0].name, problem)

    def _broken(self, problem: BaseException) -> WorkerError:
        return WorkerError(
            f"a worker died: {one_line(str(problem))}",
            path=self._folder.path,
            hint=self._watch.hint,
        )


def _is_whole(future: Future[FileReport]) -> bool:
    return not future.cancelled() and future.exception() is None


def _n_bytes(files: Pass) -> int:
    return sum(file.n_bytes for file in files)


def _anywhere(options: Options | ReverseOptions) -> Options | ReverseOptions:
    """Spell paths so that they do not depend on where a worker was started."""
    if options.tokenizer_model is None:
        return options
    return replace(options, tokenizer_model=Path(options.tokenizer_model).absolute())
