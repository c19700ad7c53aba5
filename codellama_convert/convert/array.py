"""Own one task of a job array: some of the files of a conversion, with no engine and no coordinator.

Tasks run in any order, at once, and more than once; what one has sealed is kept by all. The
conversion without a task finishes it: it reads all files again, writes what is missing, and publishes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from codellama_convert.arguments import as_path, instance_of
from codellama_convert.convert.finished import find_finished
from codellama_convert.convert.write_pass import Pass, file_bytes, open_writer, tensor_bytes
from codellama_convert.errors import ConfigError
from codellama_convert.plan.job import Job
from codellama_convert.plan.run_options import RunOptions
from codellama_convert.plan.sizes import file_sizes
from codellama_convert.staging.resume import Wanted
from codellama_convert.staging.task_folder import TaskFolder
from codellama_convert.storage.folders import refuse_inputs
from codellama_convert.storage.watch import Watch


@dataclass(frozen=True, slots=True)
class Task:
    """One of several tasks that share the files of a conversion.

    Attributes:
        number: Which one, from 1 on.
        n_tasks: How many there are.

    Raises:
        ConfigError: If there is no such task.
    """

    number: int
    n_tasks: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.n_tasks:
            raise ConfigError(f"there is no part {self}", hint="parts are numbered from 1")

    def __str__(self) -> str:
        return f"{self.number}/{self.n_tasks}"


@dataclass(frozen=True, slots=True)
class TaskReport:
    """What a task did.

    Attributes:
        output_dir: Where the conversion goes.
        written: The files that this run has written.
        kept: Those of the task's files that were there.
        tensor_bytes: Bytes of the tensors in both.
        kept_bytes: Bytes of those that were there.
        already_converted: Whether the whole conversion was finished before.
    """

    output_dir: Path
    written: tuple[str, ...]
    kept: tuple[str, ...]
    tensor_bytes: int
    kept_bytes: int
    already_converted: bool


def share_of(passes: Sequence[Pass], task: Task) -> list[Pass]:
    """Choose the files of a task, so that all tasks have about as many bytes to write.

    Args:
        passes: Everything that is to be written.
        task: Which one.

    Returns:
        Its passes: each is in the share of one task.
    """
    loads = [0] * task.n_tasks
    share = []
    for files in sorted(passes, key=file_bytes, reverse=True):
        least = loads.index(min(loads))
        loads[least] += file_bytes(files)
        if least == task.number - 1:
            share.append(files)
    return share


def run_task(
    job: Job,
    output_dir: str | os.PathLike[str],
    task: Task,
    *,
    overwrite: bool = False,
    watch: Watch | None = None,
) -> TaskReport:
    """Write the files of one task into the staging folder, but for those that are there.

    Args:
        job: From `plan_conversion`; the same on every machine.
        output_dir: The new folder; the same on every machine.
        task: Which files.
        overwrite: Whether a model that the folder holds may be replaced in the end.
        watch: Whom each tile that was written is reported to, and what may stop the task.

    Returns:
        What was written. Nothing is published.

    Raises:
        Interrupted: If the watch asked to stop; what is whole is kept.
        ConvertError: If anything is wrong; what other tasks have written stays.
    """
    instance_of(Job).check("job", job)
    output_dir = as_path("output_dir", output_dir)
    refuse_inputs(output_dir, job.input_dir, job.input_files)
    watch = watch or Watch()
    share = [] if job.weights is None else share_of(job.weights.plan.passes, task)
    # Whether the record has SHA-256 sums is up to the command that finishes.
    if find_finished(output_dir, job, RunOptions(overwrite=overwrite), any_sums=True) is not None:
        return _report(output_dir, [], share, already_converted=True)
    wanted = Wanted(
        job.fingerprint(),
        file_sizes(job, job.small_files()),
        overwrite=overwrite,
        restart=False,
        side=job.side,
        watch=watch,
    )
    with TaskFolder(output_dir, wanted) as folder:
        missing = [
            files
            for files in share
            if not folder.is_publishing and not all(folder.is_there(f.name) for f in files)
        ]
        if missing:
            _write(job, missing, folder, watch)
    kept = [files for files in share if files not in missing]
    return _report(output_dir, missing, kept, already_converted=False)


def _write(job: Job, missing: Sequence[Pass], folder: TaskFolder, watch: Watch) -> None:
    with open_writer(job, missing, folder.parts, watch) as writer:
        for files in missing:
            report = writer.write(files)
            for reader, sums in zip(writer.readers, report.sealed[0].source, strict=True):
                reader.note(sums)  # which refuses a storage whose sum differs
            for part, sealed in zip(report.parts, report.sealed, strict=True):
                folder.seal(part, sealed)


def _report(
    output_dir: Path, written: Sequence[Pass], kept: Sequence[Pass], *, already_converted: bool
) -> TaskReport:
    kept_bytes = sum(map(tensor_bytes, kept))
    return TaskReport(
        output_dir=output_dir,
        written=tuple(file.name for files in written for file in files),
        kept=tuple(file.name for files in kept for file in files),
        tensor_bytes=kept_bytes + sum(map(tensor_bytes, written)),
        kept_bytes=kept_bytes,
        already_converted=already_converted,
    )
