"""Own the steps that several commands take, each with its bar: reading the input, and both checks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codellama_convert.choices import DEFAULT_MAX_SHARD_BYTES
from codellama_convert.cli.describe import describe_job, describe_report
from codellama_convert.cli.printing import print_notes, say, say_json
from codellama_convert.cli.problems import usage_errors
from codellama_convert.cli.progress import progress_bar
from codellama_convert.cli.words import count
from codellama_convert.errors import VerifyError
from codellama_convert.meta.places import default_output_dir
from codellama_convert.plan.job import Job, plan_conversion
from codellama_convert.plan.options import Options
from codellama_convert.plan.run_options import RunOptions, refuse_unused
from codellama_convert.storage.signals import StopRequest, stop_on_signals
from codellama_convert.storage.sizes import format_size
from codellama_convert.storage.watch import Watch

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from codellama_convert.plan.ranks.job import ReverseJob
    from codellama_convert.staging.output_state import OutputState


def check_source(
    told: list[str], job: Job, watch: Watch, *, hidden: bool, executor: Executor | None = None
) -> tuple[str, ...]:
    """Compare the ranks with Meta's list; say at once what differs, and add it to what was told."""
    is_hidden = hidden or job.options.checksums == "off"
    with progress_bar("checking MD5", None, hidden=is_hidden) as bar:
        notes = job.check_ranks(replace(watch, progress=bar).advance, executor)
    print_notes(notes)
    told += notes
    return notes


def verify_staged(
    job: Job | ReverseJob,
    staged: Path,
    watch: Watch,
    *,
    hidden: bool,
    executor: Executor | None = None,
) -> None:
    """Compare what is staged, or was published before, with its source; refuse what differs."""
    from codellama_convert.staging.staged import STAGING_NAME
    from codellama_convert.verify.run import verify_output

    with progress_bar("verifying", weight_bytes(job), hidden=hidden) as bar:
        progress = replace(watch, progress=bar).advance
        report = verify_output(staged, job, progress=progress, executor=executor)
    if report.problems:
        is_staged = staged.name == STAGING_NAME
        hint = "nothing was published" if is_staged else "convert it again with --overwrite"
        raise VerifyError(report.problems[0], path=staged, hint=hint)


def to_options(choices: Mapping[str, Any], run_options: RunOptions | None = None) -> Options:
    """Take the options of a conversion into a Hugging Face folder from those that were given."""
    shard_size = choices["max_shard_size"]
    with usage_errors():
        options = Options(
            model_size=choices["model_size"],
            flavor=choices["variant"],
            dtype=None if choices["dtype"] == "auto" else choices["dtype"],
            max_shard_bytes=DEFAULT_MAX_SHARD_BYTES if shard_size is None else shard_size,
            max_position_embeddings=choices["max_position_embeddings"],
            rope_scaling_factor=choices["rope_scaling_factor"],
            tokenizer_model=choices["tokenizer_model"],
            skip_tokenizer=choices["skip_tokenizer"],
            tokenizer_class=choices["tokenizer_class"],
            checksums=choices["checksums"],
            io_mode=choices["io_mode"],
            workers=choices["workers"],
            max_ram_bytes=choices["max_ram"],
        )
        refuse_unused(options, run_options or RunOptions())
    return options


def convert_job(
    job: Job,
    output_dir: Path,
    run_options: RunOptions,
    *,
    verify_too: bool,
    quiet: bool,
    stop: StopRequest,
    executor: Executor | None,
) -> dict[str, Any]:
    """Convert a checkpoint that was read; print what the user should know on the way.

    Args:
        job: From `read_job`.
        output_dir: The new folder.
        run_options: How to treat the new folder.
        verify_too: Whether to verify before anything is published.
        quiet: Whether to show no progress.
        stop: What ends it.
        executor: Whose workers read and write the files; None for threads of this process.

    Returns:
        What was done, from `describe_report`.
    """
    from codellama_convert.convert.run import run

    told: list[str] = []
    verify = partial(verify_staged, hidden=quiet, executor=executor)
    chosen = replace(
        run_options,
        check_source=partial(check_source, told, hidden=quiet, executor=executor),
        check_staged=verify if verify_too else None,
    )
    started = time.monotonic()
    with progress_bar("converting", weight_bytes(job), hidden=quiet) as progress:
        report = run(job, output_dir, chosen, watch=Watch(progress, stop), executor=executor)
    print_notes(report.notes[len(job.notes) + len(told) :])
    return describe_report(report, time.monotonic() - started)


def convert_part(
    job: Job,
    output_dir: Path,
    part: tuple[int, int],
    *,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write the files of one part, and print what was done.

    Args:
        job: From `read_job`.
        output_dir: The new folder.
        part: Which part of how many.
        overwrite: Whether a model that the folder holds may be replaced in the end.
        quiet: Whether only notes are printed, if no machine reads it.
        as_json: Whether a machine reads it.
    """
    from codellama_convert.convert.array import Task, run_task

    task, started = Task(*part), time.monotonic()
    hint = "run the same command again to resume"
    with stop_on_signals() as stop, progress_bar(f"part {task}", None, hidden=quiet) as progress:
        watch = Watch(progress, stop, hint)
        report = run_task(job, output_dir, task, overwrite=overwrite, watch=watch)
    seconds = time.monotonic() - started
    described = {
        **asdict(report), "output_dir": str(output_dir), "part": str(task),
        "seconds": round(seconds, 3),
    }  # fmt: skip
    if as_json:
        say_json(described)
    elif report.already_converted and not quiet:
        say(f"{output_dir}: already converted, nothing to do")
    elif not report.written and not quiet:
        say(
            f"part {task} of {output_dir}: nothing to do, {count(len(report.kept), 'file')} kept; "
            "after all parts the same command without --part finishes it"
        )
    elif not quiet:
        n_new = report.tensor_bytes - report.kept_bytes
        say(
            f"wrote part {task} of {output_dir}: {count(len(report.written), 'file')}, "
            f"{format_size(n_new)} in {seconds:.1f} s, {count(len(report.kept), 'file')} kept; "
            "after all parts the same command without --part finishes it"
        )


def refuse_with_part() -> None:
    """Refuse options that would discard what other parts have written, or have others write it."""
    reasons = {
        "restart": "it would discard what other parts have written",
        "dask": "each part is a run",
    }
    context = click.get_current_context()
    for option in context.command.params:
        if option.name in reasons and context.params[option.name]:
            raise click.UsageError(
                f"{option.opts[0]} is refused with --part, as {reasons[option.name]}: "
                "give it to the command without --part"
            )


def read_job(input_dir: Path, options: Options) -> Job:
    """Read and check the input; print what the user should know."""
    job = plan_conversion(input_dir, options)
    print_notes(job.notes)
    return job


def plan_and_check(input_dir: Path, options: Options, *, hidden: bool) -> Job:
    """Do the same, and compare the ranks with Meta's list where that was asked for."""
    job = read_job(input_dir, options)
    return replace(job, notes=job.notes + check_source([], job, Watch(), hidden=hidden))


def look_ahead(job: Job, output_dir: Path | None) -> dict[str, Any]:
    """Describe what a conversion would do, and what stands where its output would go."""
    folder = output_dir or default_output_dir(job.files.folder)
    output, is_finished = state_of(folder, job, RunOptions())
    return describe_job(job, output, is_finished=is_finished)


def state_of(
    output_dir: Path, job: Job | ReverseJob, chosen: RunOptions
) -> tuple[OutputState, bool]:
    """Look at what stands where the output of a job would go, and whether it is its result."""
    from codellama_convert.plan.sizes import file_sizes
    from codellama_convert.staging.output_state import look_at_output
    from codellama_convert.staging.resume import Wanted

    wanted = Wanted(
        job.fingerprint(),
        file_sizes(job, job.small_files()),
        overwrite=chosen.overwrite,
        restart=chosen.restart,
        side=job.side,
        watch=Watch(),
    )
    is_finished = output_dir.is_dir() and _is_finished(output_dir, job, chosen)
    return look_at_output(output_dir, wanted), is_finished


def _is_finished(output_dir: Path, job: Job | ReverseJob, chosen: RunOptions) -> bool:
    # Reading ranks needs numpy, which planning alone does without.
    from codellama_convert.convert.finished import find_finished

    return find_finished(output_dir, job, chosen) is not None


def weight_bytes(job: Job | ReverseJob | None) -> int | None:
    """Return what a bar has to reach; None where that is not known."""
    return None if job is None or job.weights is None else job.tensor_bytes
