"""Own the words: options, tables, the progress bar, exit codes; decide nothing about models."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from codellama_convert import __version__
from codellama_convert.errors import ConvertError, Interrupted
from codellama_convert.sizes import format_size, parse_size
from codellama_convert.tokenizer import TOKENIZER_CLASSES
from codellama_convert.variants import FLAVORS, MODEL_SIZES

if TYPE_CHECKING:
    from codellama_convert.convert import ConversionReport
    from codellama_convert.job import Job, Options
    from codellama_convert.verify_record import VerifyReport

_DTYPES = ("auto", "bfloat16", "float16", "float32", "bf16", "fp16", "fp32", "half", "float")

Command = TypeVar("Command", bound=Callable[..., Any])


class Size(click.ParamType[int]):
    """A size such as 5GB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it; what click asks of a parameter type."""
        try:
            return value if isinstance(value, int) else parse_size(str(value))
        except ValueError as problem:
            self.fail(str(problem), param, ctx)


class ConvertGroup(click.Group):
    """A group whose bare form converts, and whose problems end in one line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read `codellama-convert --input_dir X` as `codellama-convert convert --input_dir X`."""
        own = ("--help", "-h", "--version")
        if args and args[0] not in self.commands and args[0].startswith("-") and args[0] not in own:
            args = ["convert", *args]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the options of `convert` too: they are those of the bare form."""
        super().format_options(ctx, formatter)
        convert_command = self.commands["convert"]
        sub_context = click.Context(convert_command, info_name="convert", parent=ctx)
        records = [p.get_help_record(sub_context) for p in convert_command.params]
        with formatter.section("Options of convert, and of the bare form"):
            formatter.write_dl([record for record in records if record is not None])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; turn what a user can act on into one line and an exit status."""
        try:
            return super().invoke(ctx)
        except Interrupted as problem:
            click.echo(str(problem), err=True)
            raise SystemExit(128 + problem.signal_number) from problem
        except ConvertError as problem:
            raise click.ClickException(str(problem)) from problem


def _with_dashes_too(name: str) -> str:
    return name.replace("-", "_")


_CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": _with_dashes_too,
    "max_content_width": 100,
}


def _options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_INPUT = click.option(
    "--input_dir",
    type=_FOLDER,
    required=True,
    help="Meta's folder: consolidated.NN.pth and params.json, or a folder that holds such folders.",
)
_MODEL_OPTIONS = _options(
    click.option(
        "--model_size",
        type=click.Choice((*MODEL_SIZES, "tokenizer_only")),
        help="What the checkpoint is said to be; checked. tokenizer_only converts the tokenizer.",
    ),
    click.option(
        "--variant",
        type=click.Choice(FLAVORS),
        help="What the model was tuned for, where the folder's name does not tell.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(_DTYPES),
        default="auto",
        show_default=True,
        help="Of the written weights; auto keeps the checkpoint's.",
    ),
    click.option(
        "--max_shard_size",
        type=Size(),
        default="5GB",
        show_default=True,
        help="Largest output file.",
    ),
    click.option(
        "--max_position_embeddings",
        type=click.IntRange(min=1),
        help="Context length, where the checkpoint does not tell.",
    ),
    click.option(
        "--tokenizer_model",
        type=click.Path(path_type=Path),
        help="tokenizer.model, if it is neither in the folder nor beside it.",
    ),
    click.option(
        "--checksums",
        type=click.Choice(("off", "warn", "strict")),
        default="off",
        show_default=True,
        help="Compare the ranks with Meta's checklist.chk (MD5) first; small files always are.",
    ),
    click.option("--skip_tokenizer", is_flag=True, help="Convert the weights alone."),
    click.option(
        "--tokenizer_class",
        type=click.Choice(TOKENIZER_CLASSES),
        help="What tokenizer_config.json names; by default nothing, which is exact everywhere.",
    ),
)
_SPEED_OPTIONS = _options(
    click.option(
        "--io",
        "io_mode",
        type=click.Choice(("auto", "direct", "buffered")),
        default="auto",
        show_default=True,
        help="Past the page cache or through it; auto goes past it where the file system can.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1, max=256),
        help="Tensors in flight; by default chosen by the number of cores.",
    ),
    click.option(
        "--max_ram",
        type=Size(),
        help="Most memory of all buffers together, by default 32MB; tiles and workers are chosen "
        "to fit.",
    ),
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group(cls=ConvertGroup, context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="codellama-convert")
def main() -> None:
    """Convert Meta's Code Llama and Llama checkpoints to Hugging Face folders.

    Without the name of a command it converts.

    \b
    Example:
      codellama-convert --input_dir CodeLlama-7b --model_size 7B
    """  # noqa: D301 - \b is click's mark for "do not wrap"


@main.command(context_settings=_CONTEXT)
@_INPUT
@click.option(
    "--output_dir",
    type=click.Path(path_type=Path),
    help="The new folder; by default the input folder's name with -hf added, beside it.",
)
@_MODEL_OPTIONS
@_SPEED_OPTIONS
@click.option("--overwrite", is_flag=True, help="Replace the model that the output folder holds.")
@click.option("--restart", is_flag=True, help="Drop the staged work of an earlier run.")
@click.option(
    "--verify", "verify_too", is_flag=True, help="Verify bit for bit before anything is published."
)
@click.option("--sha256", is_flag=True, help="Add the files' SHA-256 to conversion.json.")
@click.option(
    "--quiet", is_flag=True, help="No progress bar and no summary; notes and errors stay."
)
@_JSON
def convert(
    input_dir: Path,
    output_dir: Path | None,
    *,
    overwrite: bool,
    restart: bool,
    verify_too: bool,
    sha256: bool,
    quiet: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Convert a checkpoint; the same command goes on where an earlier run stopped.

    \b
    Example:
      codellama-convert convert --input_dir CodeLlama-7b --output_dir CodeLlama-7b-hf
    """  # noqa: D301
    from codellama_convert.convert import RunOptions, run
    from codellama_convert.interrupt import stop_on_signals

    output_dir = output_dir or default_output_dir(input_dir)
    job = _plan(input_dir, choices, hidden=quiet)
    check = _verify_staged if verify_too else None
    run_options = RunOptions(overwrite, restart, sha256, check)
    started = time.monotonic()
    with (
        stop_on_signals() as stop,
        _bar("converting", _weight_bytes(job), hidden=quiet) as progress,
    ):
        report = run(job, output_dir, run_options, progress=progress, stop=stop)
    described = describe_report(report, time.monotonic() - started)
    _print_report(described, as_json=as_json, quiet=quiet)


def _verify_staged(job: Job, staged: Path) -> None:
    from codellama_convert.errors import VerifyError
    from codellama_convert.verify import verify_output

    report = verify_output(staged, job)
    if report.problems:
        raise VerifyError(report.problems[0], path=staged, hint="nothing was published")


@main.command(context_settings=_CONTEXT)
@click.option(
    "--input_dir",
    type=_FOLDER,
    help="The checkpoint; without it the output is held against its own conversion.json.",
)
@click.option("--output_dir", type=_FOLDER, required=True, help="The converted folder.")
@_MODEL_OPTIONS
@_SPEED_OPTIONS
@click.option("--quiet", is_flag=True, help="No progress bar; the report stays.")
@_JSON
def verify(
    input_dir: Path | None, output_dir: Path, *, quiet: bool, as_json: bool, **choices: Any
) -> None:
    """Compare a converted folder with its source, bit for bit; exit 1 if anything differs.

    \b
    Example:
      codellama-convert verify --input_dir CodeLlama-7b --output_dir CodeLlama-7b-hf
    """  # noqa: D301
    from codellama_convert.verify import verify_output

    job = None if input_dir is None else _plan(input_dir, choices, hidden=quiet)
    started = time.monotonic()
    with _bar("verifying", _weight_bytes(job), hidden=quiet) as progress:
        report = verify_output(output_dir, job, progress=progress)
    seconds = time.monotonic() - started
    if as_json:
        described = asdict(report) | {"output_dir": str(output_dir), "seconds": round(seconds, 3)}
        click.echo(json.dumps(described | {"ok": not report.problems}, indent=2))
    else:
        click.echo("\n".join(verify_lines(report, seconds)))
    if report.problems:
        raise SystemExit(1)


def verify_lines(report: VerifyReport, seconds: float) -> Iterator[str]:
    """Say what a verification found.

    Args:
        report: What it found.
        seconds: How long it took.

    Yields:
        One line for each problem, and a last one.
    """
    yield from report.problems
    against = "the checkpoint" if report.against == "source" else "conversion.json"
    verdict = "DIFFERS from" if report.problems else "equals"
    rate = f" ({report.n_bytes / seconds / 1e9:.2f} GB/s)" if seconds else ""
    yield (
        f"{report.output_dir} {verdict} {against}: {_count(report.n_tensors, 'tensor')}, "
        f"{format_size(report.n_bytes)} read in {seconds:.1f} s{rate}"
    )


@main.command(context_settings=_CONTEXT)
@_INPUT
@click.option(
    "--output_dir", type=click.Path(path_type=Path), help="Where the free space is looked up."
)
@_MODEL_OPTIONS
@_SPEED_OPTIONS
@_JSON
def plan(input_dir: Path, output_dir: Path | None, *, as_json: bool, **choices: Any) -> None:
    """Show what convert would write: files, bytes, memory, disk. Writes nothing.

    \b
    Example:
      codellama-convert plan --input_dir CodeLlama-70b
    """  # noqa: D301
    from codellama_convert.output import free_bytes

    job = _plan(input_dir, choices, hidden=as_json)
    description = describe_job(job, free_bytes(output_dir or default_output_dir(input_dir)))
    click.echo(json.dumps(description, indent=2) if as_json else "\n".join(plan_lines(description)))


def _plan(input_dir: Path, choices: Mapping[str, Any], *, hidden: bool) -> Job:
    """Read and check the input; print what the user should know."""
    from codellama_convert.job import plan_conversion

    with _bar("checking MD5", None, hidden=hidden or choices["checksums"] == "off") as progress:
        job = plan_conversion(input_dir, replace(_to_options(choices), progress=progress))
    _print_notes(job.notes)
    return job


def default_output_dir(input_dir: Path) -> Path:
    """Give the input folder's name with -hf added, beside it.

    Args:
        input_dir: As the user gave it; "." is resolved to its name.

    Returns:
        The folder.
    """
    folder = input_dir if input_dir.name not in ("", "..") else input_dir.resolve()
    return folder.with_name(f"{folder.name}-hf")


def _to_options(choices: Mapping[str, Any]) -> Options:
    from codellama_convert.job import Options
    from codellama_convert.tensors import dtype_named

    dtype = choices["dtype"]
    return Options(
        model_size=choices["model_size"],
        flavor=choices["variant"],
        dtype=None if dtype == "auto" else dtype_named(dtype),
        max_shard_bytes=choices["max_shard_size"],
        max_position_embeddings=choices["max_position_embeddings"],
        tokenizer_model=choices["tokenizer_model"],
        skip_tokenizer=choices["skip_tokenizer"],
        tokenizer_class=choices["tokenizer_class"],
        checksums=choices["checksums"],
        io_mode=choices["io_mode"],
        workers=choices["workers"],
        max_ram_bytes=choices["max_ram"],
    )


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        click.echo(f"note: {note}", err=True)


def _weight_bytes(job: Job | None) -> int | None:
    return None if job is None or job.plan is None else job.plan.tensor_bytes


@contextmanager
def _bar(what: str, total: int | None, *, hidden: bool) -> Iterator[Callable[[int], None] | None]:
    """Show bytes, rate and time left on a terminal's stderr; nothing when piped."""
    if hidden or not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="B", unit_scale=True, desc=what, file=sys.stderr) as bar:

        def advance(n_bytes: int) -> None:
            bar.update(n_bytes)

        yield advance


def describe_report(report: ConversionReport, seconds: float) -> dict[str, Any]:
    """Describe what a conversion did, for machines.

    Args:
        report: What it did.
        seconds: How long it took.

    Returns:
        Plain values; sizes in bytes.
    """
    from codellama_convert.usage import peak_rss_bytes

    return {
        "output_dir": str(report.output_dir),
        "files": list(report.files),
        "tensor_bytes": report.tensor_bytes,
        "seconds": round(seconds, 3),
        "bytes_per_second": round(report.tensor_bytes / seconds) if seconds else None,
        "peak_rss_bytes": peak_rss_bytes(),
        "direct_io": report.direct,
        "dropped": list(report.dropped),
        "cast": report.cast,
        "became_zero": {loss.name: loss.n_became_zero for loss in report.losses},
        "notes": list(report.notes),
    }


def summary_line(described: Mapping[str, Any]) -> str:
    """Say in one line what a conversion did.

    Args:
        described: From `describe_report`.

    Returns:
        Such as "wrote CodeLlama-7b-hf: 13.5 GB in 18.2 s (0.74 GB/s), peak memory 61.3 MB".
    """
    parts = [f"wrote {described['output_dir']}: {format_size(described['tensor_bytes'])}"]
    if described["tensor_bytes"] and described["seconds"]:
        rate = described["tensor_bytes"] / described["seconds"] / 1e9
        parts[0] += f" in {described['seconds']:.1f} s ({rate:.2f} GB/s)"
    if described["peak_rss_bytes"]:
        parts.append(f"peak memory {format_size(described['peak_rss_bytes'])}")
    if described["cast"]:
        parts.append(f"cast {described['cast']}")
    if described["dropped"]:
        parts.append(f"dropped {len(described['dropped'])} x rope.freqs")
    if described["notes"]:
        parts.append(_count(len(described["notes"]), "note"))
    return ", ".join(parts)


def _print_report(described: Mapping[str, Any], *, as_json: bool, quiet: bool) -> None:
    lost = described["became_zero"]
    if lost:
        click.echo(
            f"note: {_count(sum(lost.values()), 'value')} of {_count(len(lost), 'tensor')} too "
            f"small for the new dtype became zero (first in {next(iter(lost))})",
            err=True,
        )
    if as_json:
        click.echo(json.dumps(described, indent=2))
    elif not quiet:
        click.echo(summary_line(described))


def describe_job(job: Job, free: int) -> dict[str, Any]:
    """Describe what a job will write, for machines.

    Args:
        job: The job.
        free: Bytes that the output's file system has.

    Returns:
        Plain values; sizes in bytes.
    """
    described: dict[str, Any] = {"input_dir": str(job.files.folder), "notes": list(job.notes)}
    if job.checkpoint is not None and job.plan is not None:
        described |= {
            "variant": job.checkpoint.identity.name,
            "flavor": job.checkpoint.identity.flavor,
            "ranks": len(job.checkpoint.ranks),
            "parameters": job.plan.n_parameters,
            "source_dtype": job.checkpoint.dtype.name,
            "dtype": job.plan.dtype.name,
            "max_position_embeddings": job.checkpoint.identity.max_position_embeddings,
            "rope_theta": job.checkpoint.config.rope_theta,
            "vocab_size": job.checkpoint.config.vocab_size,
            "dropped": list(job.checkpoint.dropped),
            "largest_tile_bytes": max(job.plan.read_tile_bytes, job.plan.write_tile_bytes),
            "workers": job.plan.workers,
            "buffer_bytes": job.plan.buffer_bytes,
            "total_size": job.plan.tensor_bytes,
            "files": [
                {
                    "name": file.name,
                    "bytes": file.n_bytes,
                    "tensors": [
                        {
                            "name": tensor.spec.name,
                            "source": tensor.layout.meta_name,
                            "dtype": tensor.spec.dtype.code,
                            "shape": list(tensor.spec.shape),
                            "offset": tensor.offset,
                            "bytes": tensor.spec.n_bytes,
                            "tile_rows": tensor.tile_rows,
                        }
                        for tensor in file.tensors
                    ],
                }
                for file in job.plan.files
            ],
        }
    return described | {"disk_needed_bytes": job.disk_bytes, "disk_free_bytes": free}


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def plan_lines(described: Mapping[str, Any]) -> Iterator[str]:
    """Lay a described job out for a terminal of 80 columns.

    Args:
        described: From `describe_job`.

    Yields:
        Lines.
    """
    yield f"checkpoint  {described['input_dir']}"
    if "files" in described:
        yield f"model       {described['variant']}"
        yield (
            f"weights     {described['parameters']:,} parameters, "
            f"{_count(described['ranks'], 'rank')}, {described['source_dtype']}"
            + (
                ""
                if described["dtype"] == described["source_dtype"]
                else f" -> {described['dtype']}"
            )
        )
        yield (
            f"context     {described['max_position_embeddings']} positions, rope_theta "
            f"{described['rope_theta']:g}, vocabulary {described['vocab_size']}"
        )
        if described["dropped"]:
            yield f"dropped     {len(described['dropped'])} x rope.freqs"
        yield ""
        yield f"{'file':<36}{'tensors':>9}{'bytes':>18}"
        for file in described["files"]:
            yield (
                f"{file['name']:<36}{len(file['tensors']):>9}{file['bytes']:>18,}"
                f"{format_size(file['bytes']):>12}"
            )
        yield ""
        yield (
            f"memory      {format_size(described['buffer_bytes'])} of buffers "
            f"({_count(described['workers'], 'worker')}, tiles up to "
            f"{format_size(described['largest_tile_bytes'])})"
        )
    yield (
        f"disk        {format_size(described['disk_needed_bytes'])} needed, "
        f"{format_size(described['disk_free_bytes'])} free"
    )
