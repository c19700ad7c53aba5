"""Own the command that writes Meta's ranks."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codellama_convert.cli.machine import check_memory
from codellama_convert.cli.named_folders import FoldersCommand
from codellama_convert.cli.options import (
    CONTEXT,
    DASK,
    FOLDER,
    JSON,
    NEW_FOLDER,
    QUIET,
    RANK_OPTIONS,
    RUN_OPTIONS,
    SPEED_OPTIONS,
)
from codellama_convert.cli.printing import print_note, print_notes, print_plan, print_report
from codellama_convert.cli.problems import usage_errors
from codellama_convert.cli.progress import progress_bar

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from codellama_convert.plan.ranks.job import ReverseJob
    from codellama_convert.plan.run_options import RunOptions


@click.command(
    cls=FoldersCommand,
    needed="input_dir",
    context_settings=CONTEXT,
    short_help="Write Meta's layout: from a Hugging Face folder, or with another number of ranks.",
)
@click.option(
    "--input_dir",
    type=FOLDER,
    help="A Hugging Face folder (IN), or one of Meta's, to split its weights over another number of ranks.",
)
@click.option(
    "--output_dir",
    type=NEW_FOLDER,
    help="The new folder (OUT); by default beside the input, with -meta at the end of its name in place "
    "of -hf.",
)
@RANK_OPTIONS
@SPEED_OPTIONS
@RUN_OPTIONS
@DASK
@click.option(
    "--plan", "only_plan", is_flag=True, help="Show what would be written, and write nothing."
)
@QUIET
@JSON
# Over 40 lines: every option is a parameter, and each has a line of its own.
def reverse(
    input_dir: Path,
    output_dir: Path | None,
    *,
    overwrite: bool,
    restart: bool,
    verify_too: bool,
    sha256: bool,
    dask: str | None,
    only_plan: bool,
    quiet: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Write Meta's layout: consolidated.NN.pth (the ranks), params.json and tokenizer.model.

    IN is a Hugging Face folder, whoever wrote it, or one of Meta's, to split its weights over
    another number of ranks. After a stop or a crash the same command resumes.

    \b
    Example:
      codellama-convert reverse CodeLlama-7b-hf
      codellama-convert reverse CodeLlama-13b --ranks 1
    """  # noqa: D301
    check_memory()
    from dataclasses import replace

    from codellama_convert.cli.describe import describe_ranks
    from codellama_convert.cli.steps import state_of, verify_staged
    from codellama_convert.cli.words import ranks_plan_lines
    from codellama_convert.convert.dask import dask_executor
    from codellama_convert.meta.places import default_output_dir
    from codellama_convert.plan.ranks.job import plan_reverse
    from codellama_convert.plan.ranks.options import ReverseOptions
    from codellama_convert.plan.run_options import RunOptions

    dtype, rope_freqs = choices.pop("dtype"), not choices.pop("no_rope_freqs")
    max_ram_bytes = choices.pop("max_ram")
    with usage_errors():
        options = ReverseOptions(
            dtype=None if dtype == "auto" else dtype,
            rope_freqs=rope_freqs,
            max_ram_bytes=max_ram_bytes,
            **choices,
        )
    job = plan_reverse(input_dir, options)
    print_notes(job.notes)
    output_dir = output_dir or default_output_dir(job.input_dir, "-meta")
    run_options = RunOptions(overwrite=overwrite, restart=restart, sha256=sha256)
    if only_plan:
        output, is_finished = state_of(output_dir, job, run_options)
        planned = job if dask is None else job.each_rank_alone()
        described = describe_ranks(planned, output, is_finished=is_finished)
        print_plan(described, ranks_plan_lines(described), as_json=as_json)
        return
    with dask_executor(dask, print_note) as executor:
        verify = partial(verify_staged, hidden=quiet, executor=executor) if verify_too else None
        chosen = replace(run_options, check_staged=verify)
        _run(job, output_dir, chosen, executor, quiet=quiet, as_json=as_json)


def _run(
    job: ReverseJob,
    output_dir: Path,
    run_options: RunOptions,
    executor: Executor | None,
    *,
    quiet: bool,
    as_json: bool,
) -> None:
    from codellama_convert.cli.describe import describe_report, ranks_load_line
    from codellama_convert.convert.run import run
    from codellama_convert.model.generations import LLAMA_3
    from codellama_convert.storage.signals import stop_on_signals
    from codellama_convert.storage.watch import Watch

    started = time.monotonic()
    with (
        stop_on_signals() as stop,
        progress_bar("writing ranks", job.tensor_bytes, hidden=quiet) as progress,
    ):
        report = run(job, output_dir, run_options, watch=Watch(progress, stop), executor=executor)
    print_notes(report.notes[len(job.notes) :])
    described = describe_report(report, time.monotonic() - started)
    described["load"] = ranks_load_line(
        str(output_dir),
        len(job.weight_files),
        has_tokenizer=job.tokenizer is not None,
        is_llama_3=job.weights.config.generation == LLAMA_3,
    )
    print_report(described, as_json=as_json, quiet=quiet)
