"""Own the commands: parse, call, report; and the exit codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from codellama_convert import __version__
from codellama_convert.cli.batch import batch
from codellama_convert.cli.group import ConvertGroup
from codellama_convert.cli.machine import check_memory
from codellama_convert.cli.named_folders import FoldersCommand
from codellama_convert.cli.options import (
    CARD,
    CONTEXT,
    DASK,
    INPUT,
    JSON,
    MODEL_OPTIONS,
    NEW_FOLDER,
    PART,
    QUIET,
    RUN_OPTIONS,
    SPEED_OPTIONS,
)
from codellama_convert.cli.printing import print_note, print_plan, print_report
from codellama_convert.cli.reverse import reverse
from codellama_convert.cli.verify import verify
from codellama_convert.cli.words import plan_lines


@click.group(
    cls=ConvertGroup,
    context_settings=CONTEXT,
    subcommand_metavar="IN [OUT] | COMMAND [ARGS]...",
)
@click.version_option(__version__, prog_name="codellama-convert")
def main() -> None:
    """Convert Meta's Code Llama and Llama checkpoints to Hugging Face folders.

    Without a command name, it converts the folder IN.

    \b
    Example:
      codellama-convert CodeLlama-7b
    """  # noqa: D301 - \b is click's mark for "do not wrap"


@main.command(
    cls=FoldersCommand,
    needed="input_dir",
    context_settings=CONTEXT,
    short_help="Convert a checkpoint, or resume a conversion that was stopped.",
)
@INPUT
@click.option(
    "--output_dir",
    type=NEW_FOLDER,
    help="The new folder (OUT); by default the checkpoint's name with -hf added, beside it.",
)
@MODEL_OPTIONS
@SPEED_OPTIONS
@RUN_OPTIONS
@DASK
@PART
@CARD
@QUIET
@JSON
# Over 40 lines: every option is a parameter, and each has a line of its own.
def convert(
    input_dir: Path,
    output_dir: Path | None,
    *,
    overwrite: bool,
    restart: bool,
    verify_too: bool,
    sha256: bool,
    dask: str | None,
    part: tuple[int, int] | None,
    model_card: bool,
    quiet: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Convert a checkpoint; after a stop or a crash the same command resumes.

    \b
    Example:
      codellama-convert convert CodeLlama-7b CodeLlama-7b-hf
      codellama-convert --input_dir CodeLlama-7b --model_size 7B
    """  # noqa: D301
    check_memory()
    from codellama_convert.cli.steps import (
        convert_job,
        convert_part,
        read_job,
        refuse_with_part,
        to_options,
    )
    from codellama_convert.convert.dask import dask_executor
    from codellama_convert.meta.places import default_output_dir
    from codellama_convert.plan.run_options import RunOptions
    from codellama_convert.storage.signals import stop_on_signals

    if part is not None:
        refuse_with_part()
    run_options = RunOptions(
        overwrite=overwrite, restart=restart, sha256=sha256, model_card=model_card
    )
    job = read_job(input_dir, to_options(choices, run_options))
    output_dir = output_dir or default_output_dir(job.files.folder)
    if part is not None:
        convert_part(job, output_dir, part, overwrite=overwrite, quiet=quiet, as_json=as_json)
        return
    with dask_executor(dask, print_note) as executor, stop_on_signals() as stop:
        described = convert_job(
            job, output_dir, run_options,
            verify_too=verify_too, quiet=quiet, stop=stop, executor=executor,
        )  # fmt: skip
    print_report(described, as_json=as_json, quiet=quiet)


@main.command(cls=FoldersCommand, needed="input_dir", context_settings=CONTEXT)
@INPUT
@click.option(
    "--output_dir",
    type=NEW_FOLDER,
    help="The folder that would be written (OUT); by default the folder that convert would choose.",
)
@MODEL_OPTIONS
@SPEED_OPTIONS
@JSON
def plan(input_dir: Path, output_dir: Path | None, *, as_json: bool, **choices: Any) -> None:
    """Show what convert would write: files, bytes, memory, disk. Writes nothing.

    What lies in the output folder is looked at too; exit 1 if convert would refuse it, or the disk
    is too small.

    \b
    Example:
      codellama-convert plan CodeLlama-70b
    """  # noqa: D301
    from codellama_convert.cli.steps import look_ahead, plan_and_check, to_options

    job = plan_and_check(input_dir, to_options(choices), hidden=as_json)
    described = look_ahead(job, output_dir)
    print_plan(described, plan_lines(described), as_json=as_json)


main.add_command(batch)
main.add_command(reverse)
main.add_command(verify)
