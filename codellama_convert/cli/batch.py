"""Own the command that converts many checkpoints, and the table that it ends with."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codellama_convert.cli.machine import check_memory
from codellama_convert.cli.options import (
    CARD,
    CONTEXT,
    DASK,
    FOLDER,
    JSON,
    MODEL_OPTIONS,
    QUIET,
    RUN_OPTIONS,
    SPEED_OPTIONS,
)
from codellama_convert.cli.printing import print_note, print_notes, say, say_json
from codellama_convert.cli.problems import describe_problem, say_problem, status_of
from codellama_convert.cli.words import value_notes
from codellama_convert.errors import ConvertError, Interrupted, OutputError

if TYPE_CHECKING:
    from codellama_convert.plan.job import Job
    from codellama_convert.plan.options import Options
    from codellama_convert.storage.signals import StopRequest

_RESUME = "run the same command again to resume"


@click.command(
    context_settings=CONTEXT, short_help="Convert every checkpoint in a folder and below it."
)
@click.argument("folder", type=FOLDER)
@MODEL_OPTIONS
@SPEED_OPTIONS
@RUN_OPTIONS
@DASK
@CARD
@QUIET
@JSON
def batch(
    folder: Path,
    *,
    overwrite: bool,
    restart: bool,
    verify_too: bool,
    sha256: bool,
    dask: str | None,
    model_card: bool,
    quiet: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Convert every checkpoint in FOLDER, up to five levels down, each to a folder beside it.

    One that fails does not stop the others. The same command again leaves alone what is finished and
    resumes what was stopped. The exit status is 1 if any failed.

    \b
    Example:
      codellama-convert batch downloads --verify
    """  # noqa: D301
    check_memory()
    from codellama_convert.cli.steps import convert_job, to_options
    from codellama_convert.convert.dask import dask_executor
    from codellama_convert.meta.find import find_folders
    from codellama_convert.plan.run_options import RunOptions
    from codellama_convert.storage.signals import stop_on_signals

    run_options = RunOptions(
        overwrite=overwrite, restart=restart, sha256=sha256, model_card=model_card
    )
    options = to_options(choices, run_options)
    found, unreadable = find_folders(folder)
    print_notes(f"{path} could not be opened, and was not searched" for path in unreadable)
    with dask_executor(dask, print_note) as executor, stop_on_signals() as stop:
        convert = partial(
            convert_job, run_options=run_options, verify_too=verify_too, quiet=quiet, stop=stop,
            executor=executor,
        )  # fmt: skip
        one_by_one = _Batch(options, convert, stop, quiet=quiet)
        rows = [one_by_one.convert(path, n, len(found)) for n, path in enumerate(found, 1)]
    if as_json:
        say_json({"conversions": rows})
    elif not quiet:
        for line in _table(rows, folder):
            say(line)
    _end([row["result"] for row in rows], stop.signal_number)


class _Batch:
    """Conversions one after another; what goes wrong with one is said, and is a row of the table."""

    def __init__(
        self,
        options: Options,
        convert: Callable[[Job, Path], dict[str, Any]],
        stop: StopRequest,
        *,
        quiet: bool,
    ) -> None:
        self._options, self._convert_job = options, convert
        self._stop, self._quiet = stop, quiet
        self._taken: dict[Path, Path] = {}

    def convert(self, folder: Path, number: int, n_all: int) -> dict[str, Any]:
        """Convert one checkpoint, unless the batch was stopped; return its row, for machines."""
        row: dict[str, Any] = {"input_dir": str(folder)}
        if self._stop.is_set():
            return row | {"result": "not begun", "seconds": 0.0}
        if not self._quiet:
            say(f"{number}/{n_all} {folder}", err=True)
        started = time.monotonic()
        try:
            row |= self._convert(folder)
            row["result"] = "already converted" if row["already_converted"] else "converted"
        except ConvertError as problem:
            say_problem(problem)
            row["result"] = "interrupted" if isinstance(problem, Interrupted) else "failed"
            row |= describe_problem(problem, type(problem).__name__, status_of(problem))
        return row | {"seconds": round(time.monotonic() - started, 3)}

    def _convert(self, folder: Path) -> dict[str, Any]:
        from codellama_convert.cli.steps import read_job
        from codellama_convert.meta.places import default_output_dir

        job = read_job(folder, self._options)
        output_dir = default_output_dir(job.files.folder)
        other = self._taken.setdefault(output_dir.absolute(), folder)
        if other != folder:
            raise OutputError(
                f"is the output of {other} already",
                path=output_dir,
                hint=f"convert {folder} by itself, with --output_dir",
            )
        described = self._convert_job(job, output_dir)
        print_notes(value_notes(described))
        return described


def _table(rows: Sequence[dict[str, Any]], top: Path) -> Iterator[str]:
    """Lay the results out for a terminal of 80 columns; the last one is as long as a name is."""
    yield f"{'result':<17}{'seconds':>10}  checkpoint"
    for row in rows:
        name = Path(row["input_dir"]).relative_to(top)
        yield f"{row['result']:<17}{row['seconds']:>10.1f}  {top if name == Path() else name}"


def _end(results: Sequence[str], signal_number: int) -> None:
    """End with the status of a signal that left something undone, or with 1 if any failed."""
    counted = Counter(results)
    n_failed, n_undone = counted["failed"], counted["interrupted"] + counted["not begun"]
    if n_failed:
        say(f"Error: {n_failed} of {len(results)} failed; their messages are above", err=True)
    if n_undone:
        say(f"Interrupted with {n_undone} of {len(results)} left; {_RESUME}", err=True)
        raise SystemExit(128 + signal_number)
    if n_failed:
        raise SystemExit(1)
