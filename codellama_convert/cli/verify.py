"""Own the command that compares an output with what it was made of."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codellama_convert.cli.machine import check_memory
from codellama_convert.cli.named_folders import FoldersCommand
from codellama_convert.cli.options import (
    ASKED_OF_RANKS,
    ASKED_OPTIONS,
    CONTEXT,
    FOLDER,
    JSON,
    NOT_OF_RANKS,
    NOT_OF_WEIGHTS,
    OF_THE_SOURCE,
    ONLY_OF_RANKS,
    READING_OPTIONS,
    SOURCE_OPTIONS,
)
from codellama_convert.cli.printing import print_notes, say, say_json
from codellama_convert.cli.problems import usage_errors
from codellama_convert.cli.progress import progress_bar
from codellama_convert.cli.words import verify_lines

if TYPE_CHECKING:
    from codellama_convert.model.asked import Asked, AskedRanks
    from codellama_convert.plan.job import Job
    from codellama_convert.plan.ranks.job import ReverseJob


@click.command(
    cls=FoldersCommand,
    needed="output_dir",
    context_settings=CONTEXT,
    short_help="Compare a converted folder with its source, bit for bit.",
)
@click.option(
    "--input_dir",
    type=FOLDER,
    help="What was converted (IN); without it the output is compared with its own conversion.json.",
)
@click.option("--output_dir", type=FOLDER, help="The converted folder (OUT).")
@ASKED_OPTIONS
@ASKED_OF_RANKS
@SOURCE_OPTIONS
@READING_OPTIONS
@click.option(
    "--weights_only",
    is_flag=True,
    help="Compare the weights of any Hugging Face folder of the model, whoever wrote it, and nothing else.",
)
@click.option("--quiet", is_flag=True, help="Show the report only: no progress bar.")
@JSON
def verify(
    input_dir: Path | None,
    output_dir: Path,
    *,
    weights_only: bool,
    quiet: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Compare a converted folder with its source, bit for bit; exit 1 if anything differs.

    OUT may be a Hugging Face folder, or one of ranks that reverse wrote.
    Options that say how it was converted need not be repeated: conversion.json in the folder has
    them. One that says otherwise is a difference. Without IN, the output is compared with
    conversion.json, and --model_size, --tokenizer_model, --checksums and --max_ram are refused.
    With --weights_only, OUT is any Hugging Face folder of the model, whoever wrote it.

    \b
    Example:
      codellama-convert verify CodeLlama-7b CodeLlama-7b-hf
    """  # noqa: D301
    check_memory()
    from codellama_convert.cli.describe import describe_verification
    from codellama_convert.cli.steps import weight_bytes
    from codellama_convert.verify.ranks.folder import holds_ranks
    from codellama_convert.verify.run import verify_output

    if input_dir is None:
        _refuse_given((*OF_THE_SOURCE, "weights_only"), "without the source: verify IN OUT")
    job: Job | ReverseJob | None
    asked: Asked | AskedRanks
    is_of_ranks = holds_ranks(output_dir)
    if is_of_ranks:
        _refuse_given(NOT_OF_RANKS, "where OUT holds ranks")
        job, asked = _job_of_ranks(input_dir, output_dir, choices)
    else:
        _refuse_given(ONLY_OF_RANKS, "where OUT holds no ranks")
        job, asked = _job_of_model(
            input_dir, output_dir, choices, weights_only=weights_only, hidden=quiet
        )
    started = time.monotonic()
    with progress_bar("verifying", weight_bytes(job), hidden=quiet) as progress:
        report = verify_output(
            output_dir, job, asked=asked, io_mode=choices["io_mode"], workers=choices["workers"],
            progress=progress, weights_only=weights_only,
        )  # fmt: skip
    print_notes(report.notes)
    seconds = time.monotonic() - started
    if as_json:
        notes = () if job is None else job.source_notes
        say_json(describe_verification(report, seconds, notes))
    else:
        source = "its source" if is_of_ranks else "the checkpoint"
        for line in verify_lines(report, seconds, source=source):
            say(line)
    if report.problems:
        raise SystemExit(1)


def _job_of_model(
    input_dir: Path | None,
    output_dir: Path,
    choices: dict[str, Any],
    *,
    weights_only: bool,
    hidden: bool,
) -> tuple[Job | None, Asked]:
    """Open the source of a Hugging Face folder as it was asked for."""
    from dataclasses import replace

    from codellama_convert.cli.steps import plan_and_check, to_options
    from codellama_convert.verify.job import asked_of, options_for

    if weights_only:
        _refuse_given(NOT_OF_WEIGHTS, "with --weights_only")
        choices["skip_tokenizer"] = True
    options = to_options(choices)
    asked = replace(asked_of(options), max_shard_size=choices["max_shard_size"])
    if input_dir is None:
        return None, asked
    if not weights_only:
        options = options_for(output_dir, options, asked)
    return plan_and_check(input_dir, options, hidden=hidden), asked


def _job_of_ranks(
    input_dir: Path | None, output_dir: Path, choices: dict[str, Any]
) -> tuple[ReverseJob | None, AskedRanks]:
    """Open the source of a folder of ranks as it was asked for."""
    from codellama_convert.plan.ranks.job import plan_reverse
    from codellama_convert.plan.ranks.options import ReverseOptions
    from codellama_convert.verify.ranks.asked import asked_of_ranks, reverse_options_for

    with usage_errors():
        options = ReverseOptions(
            n_ranks=choices["ranks"],
            dtype=choices["dtype"],
            torch_layout=choices["torch_layout"],
            rope_freqs=not choices["no_rope_freqs"],
            vocab_rows=choices["vocab_rows"],
            tokenizer_model=choices["tokenizer_model"],
            skip_tokenizer=choices["skip_tokenizer"],
            io_mode=choices["io_mode"],
            workers=choices["workers"],
            max_ram_bytes=choices["max_ram"],
        )
    asked = asked_of_ranks(options)
    if input_dir is None:
        return None, asked
    job = plan_reverse(input_dir, reverse_options_for(output_dir, options, asked))
    print_notes(job.source_notes)
    return job, asked


def _refuse_given(names: Iterable[str], why: str) -> None:
    """Refuse options that would say nothing."""
    given = click.get_current_context().get_parameter_source
    for name in names:
        if given(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name} is of no use {why}")
