"""Own the commands: parse, call, report; and the exit codes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codellama_convert import __version__
from codellama_convert.cli.machine import check_memory, lack_in_words
from codellama_convert.cli.options import (
    ASKED_OPTIONS,
    CONTEXT,
    FOLDER,
    INPUT,
    JSON,
    MODEL_OPTIONS,
    NEW_FOLDER,
    OF_THE_SOURCE,
    READING_OPTIONS,
    SOURCE_OPTIONS,
    SPEED_OPTIONS,
)
from codellama_convert.cli.progress import progress_bar
from codellama_convert.cli.words import (
    describe_job,
    describe_report,
    describe_verification,
    plan_lines,
    summary_line,
    value_notes,
    verify_lines,
)
from codellama_convert.errors import ConfigError, ConvertError, Interrupted, one_line

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from codellama_convert.plan.job import Job
    from codellama_convert.plan.options import Options
    from codellama_convert.storage.watch import Watch


@contextmanager
def _one_line_problems() -> Iterator[None]:
    """Escape what click quotes of the arguments: they may be names that a script has found."""
    try:
        yield
    except click.UsageError as problem:
        if problem.ctx is not None and problem.message == problem.ctx.get_help():
            raise  # without arguments the help is shown, which has many lines
        raise click.UsageError(one_line(problem.format_message()), problem.ctx) from problem


class ConvertGroup(click.Group):
    """A group whose bare form converts, and whose problems end in one line."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run; what the machine lacks (memory, room behind `>`) is one line and no traceback."""
        try:
            return super().main(*args, **kwargs)
        except (ImportError, MemoryError, OSError, RuntimeError) as problem:
            lack = lack_in_words(problem)
            if lack is None:
                raise
            with suppress(OSError):  # stderr may be what is full
                _say(f"Error: {lack}", err=True)
            raise SystemExit(1) from problem

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Read the arguments; what is wrong with them is quoted in one line."""
        with _one_line_problems():
            return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read `codellama-convert --input_dir X` as `codellama-convert convert --input_dir X`."""
        own = ("--help", "-h", "--version")
        if args and args[0] not in self.commands and args[0].startswith("-") and args[0] not in own:
            args = ["convert", *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; tell who gives the bare name of a folder how folders are named."""
        name = args[0]
        if name not in self.commands and (Path(name).exists() or any(c in name for c in "/\\-.")):
            ctx.fail(f"no such command: {name!r}; to name a folder, write --input_dir {name}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer the options of `convert` too: they are those of the bare form."""
        found = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("-"):
            convert = self.commands["convert"]
            bare = click.Context(convert, parent=ctx, info_name="convert")
            listed = {item.value for item in found}
            found += [
                item
                for item in convert.shell_complete(bare, incomplete)
                if item.value not in listed
            ]
        return found

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the options of `convert` too: they are those of the bare form."""
        super().format_options(ctx, formatter)
        convert_command = self.commands["convert"]
        sub_context = click.Context(convert_command, info_name="convert", parent=ctx)
        records = [p.get_help_record(sub_context) for p in convert_command.params]
        with formatter.section("Options of convert, which is the default command"):
            formatter.write_dl([record for record in records if record is not None])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; turn what a user can act on into one line and an exit status."""
        try:
            with _one_line_problems():
                return super().invoke(ctx)
        except Interrupted as problem:
            _say(str(problem), err=True)
            raise SystemExit(128 + problem.signal_number) from problem
        except ConvertError as problem:
            raise click.ClickException(str(problem)) from problem


@click.group(cls=ConvertGroup, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="codellama-convert")
def main() -> None:
    """Convert Meta's Code Llama and Llama checkpoints to Hugging Face folders.

    Without a command name, it converts.

    \b
    Example:
      codellama-convert --input_dir CodeLlama-7b --model_size 7B
    """  # noqa: D301 - \b is click's mark for "do not wrap"


@main.command(
    context_settings=CONTEXT,
    short_help="Convert a checkpoint, or resume a conversion that was stopped.",
)
@INPUT
@click.option(
    "--output_dir",
    type=NEW_FOLDER,
    help="The new folder; by default the checkpoint's name with -hf added, beside it.",
)
@MODEL_OPTIONS
@SPEED_OPTIONS
@click.option("--overwrite", is_flag=True, help="Replace the model that the output folder holds.")
@click.option("--restart", is_flag=True, help="Discard the unfinished work of an earlier run.")
@click.option(
    "--verify", "verify_too", is_flag=True, help="Verify bit for bit before anything is published."
)
@click.option("--sha256", is_flag=True, help="Add the files' SHA-256 to conversion.json.")
@click.option("--model_card", is_flag=True, help="Also write a README.md about the model.")
@click.option(
    "--quiet", is_flag=True, help="Show notes and errors only: no progress bar and no summary."
)
@JSON
def convert(
    input_dir: Path,
    output_dir: Path | None,
    *,
    overwrite: bool,
    restart: bool,
    verify_too: bool,
    sha256: bool,
    model_card: bool,
    quiet: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Convert a checkpoint; after a stop or a crash the same command resumes.

    \b
    Example:
      codellama-convert convert --input_dir CodeLlama-7b --output_dir CodeLlama-7b-hf
    """  # noqa: D301
    check_memory()
    from codellama_convert.cli.finished import describe_finished, finished_record
    from codellama_convert.convert.run import run
    from codellama_convert.meta.places import default_output_dir
    from codellama_convert.plan.run_options import RunOptions, refuse_unused
    from codellama_convert.storage.watch import Watch, stop_on_signals

    told: list[str] = []
    run_options = RunOptions(
        overwrite=overwrite,
        restart=restart,
        sha256=sha256,
        model_card=model_card,
        check_source=partial(_check_source, told, hidden=quiet),
        check_staged=partial(_verify_staged, hidden=quiet) if verify_too else None,
    )
    options = _to_options(choices)
    with _usage_errors():
        refuse_unused(options, run_options)
    job = _plan(input_dir, options)
    output_dir = output_dir or default_output_dir(job.files.folder)
    started = time.monotonic()
    if not (overwrite or restart):
        done = finished_record(output_dir, job, with_sha256=sha256, with_card=model_card)
        if done is not None:
            described = describe_finished(
                output_dir, job, done, with_card=model_card, seconds=time.monotonic() - started
            )
            _print_finished(described, as_json=as_json, quiet=quiet)
            return
    with (
        stop_on_signals() as stop,
        progress_bar("converting", _weight_bytes(job), hidden=quiet) as progress,
    ):
        report = run(job, output_dir, run_options, watch=Watch(progress, stop))
    _print_notes(report.notes[len(job.notes) + len(told) :])
    described = describe_report(report, time.monotonic() - started)
    _print_report(described, as_json=as_json, quiet=quiet)


def _print_finished(described: Mapping[str, Any], *, as_json: bool, quiet: bool) -> None:
    if as_json:
        _say_json(described)
    elif not quiet:
        where = described["output_dir"]
        _say(f"{where}: already converted, nothing to do; --overwrite converts it again")


def _check_source(told: list[str], job: Job, watch: Watch, *, hidden: bool) -> tuple[str, ...]:
    """Compare the ranks with Meta's list; say at once what differs, and add it to what was told."""
    with _md5_bar(job.options, hidden=hidden) as bar:
        notes = job.check_ranks(replace(watch, progress=bar).advance)
    _print_notes(notes)
    told += notes
    return notes


def _verify_staged(job: Job, staged: Path, watch: Watch, *, hidden: bool) -> None:
    from codellama_convert.errors import VerifyError
    from codellama_convert.verify.run import verify_output

    with progress_bar("verifying", _weight_bytes(job), hidden=hidden) as bar:
        report = verify_output(staged, job, progress=replace(watch, progress=bar).advance)
    if report.problems:
        raise VerifyError(report.problems[0], path=staged, hint="nothing was published")


@main.command(
    context_settings=CONTEXT,
    short_help="Compare a converted folder with its source, bit for bit.",
)
@click.option(
    "--input_dir",
    type=FOLDER,
    help="The checkpoint; without it the output is compared with its own conversion.json.",
)
@click.option("--output_dir", type=FOLDER, required=True, help="The converted folder.")
@ASKED_OPTIONS
@SOURCE_OPTIONS
@READING_OPTIONS
@click.option("--quiet", is_flag=True, help="Show the report only: no progress bar.")
@JSON
def verify(
    input_dir: Path | None, output_dir: Path, *, quiet: bool, as_json: bool, **choices: Any
) -> None:
    """Compare a converted folder with its source, bit for bit; exit 1 if anything differs.

    Options that say how it was converted need not be repeated: conversion.json in the folder has
    them. One that says otherwise is a difference. Without --input_dir, --model_size,
    --tokenizer_model, --checksums and --max_ram are refused.

    \b
    Example:
      codellama-convert verify --input_dir CodeLlama-7b \\
        --output_dir CodeLlama-7b-hf
    """  # noqa: D301
    check_memory()
    from codellama_convert.verify.job import asked_of, options_for
    from codellama_convert.verify.run import verify_output

    options = _to_options(choices)
    asked = replace(asked_of(options), max_shard_size=choices["max_shard_size"])
    if input_dir is None:
        _refuse_source_options()
        job = None
    else:
        job = _plan_and_check(input_dir, options_for(output_dir, options, asked), hidden=quiet)
    started = time.monotonic()
    with progress_bar("verifying", _weight_bytes(job), hidden=quiet) as progress:
        report = verify_output(
            output_dir, job, asked=asked, io_mode=options.io_mode, workers=options.workers,
            progress=progress,
        )  # fmt: skip
    seconds = time.monotonic() - started
    if as_json:
        notes = () if job is None else job.notes
        _say_json(describe_verification(report, seconds, notes))
    else:
        for line in verify_lines(report, seconds):
            _say(line)
    if report.problems:
        raise SystemExit(1)


@main.command(context_settings=CONTEXT)
@INPUT
@click.option(
    "--output_dir",
    type=NEW_FOLDER,
    help="The folder that would be written; by default as convert takes it.",
)
@MODEL_OPTIONS
@SPEED_OPTIONS
@JSON
def plan(input_dir: Path, output_dir: Path | None, *, as_json: bool, **choices: Any) -> None:
    """Show what convert would write: files, bytes, memory, disk. Writes nothing.

    What lies in the output folder is looked at too; exit 1 if the disk is too small.

    \b
    Example:
      codellama-convert plan --input_dir CodeLlama-70b
    """  # noqa: D301
    from codellama_convert.convert.record import file_sizes
    from codellama_convert.meta.places import default_output_dir
    from codellama_convert.staging.output_state import look_at_output

    job = _plan_and_check(input_dir, _to_options(choices), hidden=as_json)
    sizes = file_sizes(job, job.small_files())
    output_dir = output_dir or default_output_dir(job.files.folder)
    output = look_at_output(output_dir, job.fingerprint(), sizes)
    description = describe_job(job, output)
    if as_json:
        _say_json(description)
    else:
        for line in plan_lines(description):
            _say(line)
    if output.space.missing:
        raise SystemExit(1)


def _plan(input_dir: Path, options: Options) -> Job:
    """Read and check the input; print what the user should know."""
    from codellama_convert.plan.job import plan_conversion

    job = plan_conversion(input_dir, options)
    _print_notes(job.notes)
    return job


def _plan_and_check(input_dir: Path, options: Options, *, hidden: bool) -> Job:
    """Do the same, and compare the ranks with Meta's list where that was asked for."""
    job = _plan(input_dir, options)
    with _md5_bar(options, hidden=hidden) as progress:
        notes = job.check_ranks(progress)
    _print_notes(notes)
    return replace(job, notes=job.notes + notes)


def _md5_bar(
    options: Options, *, hidden: bool
) -> AbstractContextManager[Callable[[int], None] | None]:
    return progress_bar("checking MD5", None, hidden=hidden or options.checksums == "off")


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Refuse options as a wrong use of the command: they are wrong whatever the input is."""
    try:
        yield
    except ConfigError as problem:
        raise click.UsageError(str(problem)) from problem


def _refuse_source_options() -> None:
    """Refuse what only says how a checkpoint is found and read, where there is none."""
    given = click.get_current_context().get_parameter_source
    for name in OF_THE_SOURCE:
        if given(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name} is of no use without --input_dir")


def _to_options(choices: Mapping[str, Any]) -> Options:
    from codellama_convert.plan.options import DEFAULT_MAX_SHARD_BYTES, Options

    shard_size = choices["max_shard_size"]
    with _usage_errors():
        return Options(
            model_size=choices["model_size"],
            flavor=choices["variant"],
            dtype=None if choices["dtype"] == "auto" else choices["dtype"],
            max_shard_bytes=DEFAULT_MAX_SHARD_BYTES if shard_size is None else shard_size,
            max_position_embeddings=choices["max_position_embeddings"],
            tokenizer_model=choices["tokenizer_model"],
            skip_tokenizer=choices["skip_tokenizer"],
            tokenizer_class=choices["tokenizer_class"],
            checksums=choices["checksums"],
            io_mode=choices["io_mode"],
            workers=choices["workers"],
            max_ram_bytes=choices["max_ram"],
        )


def _print_notes(notes: Iterable[str]) -> None:
    for note in notes:
        _say(f"note: {note}", err=True)


def _weight_bytes(job: Job | None) -> int | None:
    return None if job is None or job.plan is None else job.plan.tensor_bytes


def _print_report(described: Mapping[str, Any], *, as_json: bool, quiet: bool) -> None:
    _print_notes(value_notes(described))
    if as_json:
        _say_json(described)
    elif not quiet:
        _say(summary_line(described))


def _say(line: str, *, err: bool = False) -> None:
    click.echo(one_line(line), err=err)


def _say_json(described: Mapping[str, Any]) -> None:
    """Print JSON in ASCII; it escapes every other character that does not print but one."""
    click.echo(json.dumps(described, indent=2).replace("\x7f", "\\u007f"))
