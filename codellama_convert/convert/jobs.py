"""Own one file as a job: a request of plain values in, a report out, in any process of any machine.

Whoever works on a request plans the conversion again: that is quicker than to send a plan, and
shows whether both see the same checkpoint in the same version. A job writes parts and nothing else;
it names, records and publishes nothing, so two of one file do no harm.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from codellama_convert.convert.write_pass import FileReport, Pass, open_writer
from codellama_convert.errors import OutputError, WorkerError
from codellama_convert.plan.job import Job, plan_conversion
from codellama_convert.plan.options import Options
from codellama_convert.plan.ranks.job import ReverseJob, plan_reverse
from codellama_convert.plan.ranks.options import ReverseOptions
from codellama_convert.staging.part_files import PartFiles
from codellama_convert.staging.record_values import FileSum
from codellama_convert.staging.records import as_journaled, differences, fingerprint_sha256
from codellama_convert.staging.run_token import is_running
from codellama_convert.staging.staged import hold_staging, is_whole
from codellama_convert.storage.blocks import first_line
from codellama_convert.storage.buffers import aligned_buffer
from codellama_convert.storage.held_folder import HeldFolder
from codellama_convert.storage.watch import Watch

_LOOK_SECONDS = 0.5  # from one look whether the run still goes to the next
_LOOKS_IN_VAIN = 3  # one after another, until the work is left to another worker
_PLANS_KEPT = 4
_PIECE_BYTES = 1 << 20
_PLANNING = threading.Lock()
_SAME_FILES = "all workers need the same file system under the same path"


@dataclass(frozen=True, slots=True)
class FileRequest:
    """A job: the files of one pass that somebody is to write.

    Attributes:
        input_dir: The folder that was named, from the root of the file system.
        output_dir: The output folder, likewise.
        options: What was asked for.
        fingerprint: Of the conversion, as whoever asks sees it.
        names: The files.
        token: Of the run, from `put_token`.
    """

    input_dir: str
    output_dir: str
    options: Options | ReverseOptions
    fingerprint: Mapping[str, Any]
    names: tuple[str, ...]
    token: str


def write_file(request: FileRequest) -> FileReport:
    """Write the files of a request into parts of the staging folder.

    Args:
        request: What is to be written; any number of workers may be given the same one.

    Returns:
        What was written, for the coordinator to name and to record.

    Raises:
        WorkerError: If the run is over, or this worker does not see what it was planned with.
        ConvertError: If reading, casting or writing fails; nothing is left behind.
        OSError: If this worker cannot tell whether the run still goes; another one may.
    """
    with ExitStack() as stack:
        staging = _open_staging(Path(request.output_dir), stack)
        clock = _RunClock(staging, request.token)
        clock.check()
        with _PLANNING:
            job = _planned(request.input_dir, request.options, request.token)
        _refuse_another(job, request)
        files = _pass_of(job, request.names)
        parts = PartFiles(staging, job.side)
        try:
            with open_writer(job, [files], parts, Watch(clock.look)) as writer:
                report = writer.write(files)
            clock.check()  # whoever ends a run takes its token away first, and then what is not whole
        except BaseException:
            parts.drop_own()
            raise
        return report


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A job: a file that an earlier run has left, for somebody to read.

    Attributes:
        output_dir: The output folder, from the root of the file system.
        name: The file.
        sum: What it must be.
        header: What it must begin with.
        token: Of the run, from `put_token`.
    """

    output_dir: str
    name: str
    sum: FileSum
    header: bytes
    token: str


def is_staged_whole(request: StagedFile) -> bool | None:
    """Look whether a staged file is what its record says.

    Args:
        request: Which.

    Returns:
        Whether it is; None where this worker cannot read it, which says nothing of the file.

    Raises:
        WorkerError: If the run is over, or this worker does not see the output folder.
    """
    with ExitStack() as stack, suppress(OSError, OutputError):
        staging = _open_staging(Path(request.output_dir), stack)
        clock = _RunClock(staging, request.token)
        return is_whole(
            staging, request.name, request.sum, header=request.header,
            buffer=aligned_buffer(_PIECE_BYTES), check=partial(clock.look, 0),
        )  # fmt: skip
    return None


class _RunClock:
    """Looks now and then whether a run still goes; threads may share it."""

    def __init__(self, staging: HeldFolder, token: str) -> None:
        self._staging, self._token = staging, token
        self._next = 0.0
        self._in_vain = 0

    def look(self, n_bytes: int) -> None:
        """Raise WorkerError where it does not; called with each piece of the work.

        Raises:
            OSError: If that cannot be told, look after look.
        """
        del n_bytes
        if time.monotonic() < self._next:
            return
        try:
            self.check()
        except OSError:
            self._in_vain += 1
            if self._in_vain >= _LOOKS_IN_VAIN:
                raise

    def check(self) -> None:
        """Raise WorkerError where it does not, whenever the last look was.

        Raises:
            OSError: If that cannot be told.
        """
        self._next = time.monotonic() + _LOOK_SECONDS
        if not is_running(self._staging, self._token):
            raise _over(self._staging.path)
        self._in_vain = 0


def _over(path: Path) -> WorkerError:
    return WorkerError(
        "the run that this work was for is over, or this worker sees another file system here",
        path=path,
        hint=_SAME_FILES,
    )


def _open_staging(output_dir: Path, to_close: ExitStack) -> HeldFolder:
    try:
        folder = to_close.enter_context(HeldFolder(output_dir))
    except FileNotFoundError:
        raise WorkerError(
            "this worker does not see the output folder",
            path=output_dir,
            hint=_SAME_FILES,
        ) from None
    except OSError as problem:
        raise OutputError(f"cannot open: {first_line(problem)}", path=output_dir) from problem
    staging = hold_staging(folder)
    if staging is None:
        raise _over(output_dir)
    return to_close.enter_context(staging)


@lru_cache(maxsize=_PLANS_KEPT)
def _planned(input_dir: str, options: Options | ReverseOptions, token: str) -> Job | ReverseJob:
    """Plan once for each run: the files may be others in the next one."""
    del token
    if isinstance(options, ReverseOptions):
        return plan_reverse(input_dir, options).each_rank_alone()
    return plan_conversion(input_dir, options)


def _refuse_another(job: Job | ReverseJob, request: FileRequest) -> None:
    """Refuse to write for a run that sees other files, or is of another version."""
    own = as_journaled(job.fingerprint())
    if fingerprint_sha256(own) != fingerprint_sha256(request.fingerprint):
        named = "; ".join(differences(request.fingerprint, own))
        raise WorkerError(
            f"this worker does not see what the run was planned with: {named}",
            path=request.input_dir,
            hint="all workers need the same version of this program and the same input",
        )


def _pass_of(job: Job | ReverseJob, names: Sequence[str]) -> Pass:
    passes = () if job.weights is None else job.weights.plan.passes
    for files in passes:
        if [file.name for file in files] == [*names]:
            return files
    raise WorkerError(
        f"{', '.join(names)} is not written in one pass",
        path=job.input_dir,
        hint="all workers need the same version of this program",
    )
