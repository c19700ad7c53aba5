"""Measure conversions at true size, on the disk and in memory, against plain copies.

Example: python examples/benchmark/benchmark.py --json results.json

Everything is measured as whole processes, in turns: what is compared stands in one series, and each
of its rounds begins with another case. The floor of a case is a plain copy of the bytes that it
reads and writes, past the page cache where that is possible, with as many threads as the tool has
workers. Linux only.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from benchmark_cases import SERIES, Bench, Series, is_available
from benchmark_machine import machine_facts
from benchmark_results import load, results_to_add_to
from benchmark_run import measure_all
from benchmark_table import regions, written_between_marks
from make_true_size_checkpoint import SIZES, Size


def require_matplotlib() -> None:
    """Refuse to draw without matplotlib, before minutes of measuring and not after them.

    Raises:
        click.ClickException: If it cannot be imported.
    """
    # In a process of its own: it would count into the memory of every measured run.
    tried = [sys.executable, "-c", "import matplotlib.figure"]
    if subprocess.run(tried, capture_output=True, check=False).returncode:  # noqa: S603
        raise click.ClickException(
            "--readme needs matplotlib for the pictures: pip install matplotlib, or leave --readme "
            "out; a --json file can be put into a README later, with --from"
        )


def require_known(wanted: str | None, known: Sequence[str], option: str) -> list[str]:
    """Split an option's names, all of them if it is absent.

    Raises:
        click.UsageError: If a name is not known.
    """
    names = list(known) if wanted is None else [name.strip() for name in wanted.split(",")]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise click.UsageError(
            f"{option} {', '.join(unknown)} is not known; there are {', '.join(known)}"
        )
    return [name for name in known if name in names]


def cut(series: Series, layers: int | None) -> Size:
    """Give a series' model as many layers as are measured: no more than any of the three."""
    model = SIZES[series.size]
    wanted = [n for n in (layers, series.layers) if n is not None]
    return replace(model, n_layers=min([model.n_layers, *wanted]))


def report(results: Mapping[str, Any], readme: Path | None) -> None:
    """Print the tables, and write a README with its pictures."""
    click.echo("\n\n".join(f"{name}: {region}" for name, region in regions(results)))
    if readme is not None:
        from benchmark_pictures import draw  # noqa: PLC0415 - matplotlib, which only drawing needs

        text = written_between_marks(readme.read_text(encoding="utf-8"), results)
        draw(results, readme.parent / "pictures")
        readme.write_text(text, encoding="utf-8")


@click.command(
    context_settings={
        "show_default": True,
        "max_content_width": 100,
        "token_normalize_func": lambda name: name.replace("-", "_"),
    }
)
@click.option(
    "--series", metavar="NAMES", help=f"Some of {', '.join(s.name for s in SERIES)}; all if absent."
)
@click.option("--only", metavar="NAMES", help="Some cases of each, such as floor,convert.")
@click.option(
    "--size",
    type=click.Choice(list(SIZES)),
    metavar="SIZE",
    help="Of all models, such as 13B; each series has its own if absent.",
)
@click.option("--layers", type=click.IntRange(1), help="At most so many layers of each model.")
@click.option("--rounds", type=click.IntRange(1), help="Measure nothing more often than this.")
@click.option("--workers", type=click.IntRange(1), help="Of the tool, and threads of the floors.")
@click.option(
    "--reference_python",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An interpreter that has transformers 4.47.1 or older.",
)
@click.option(
    "--work_dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("benchmark-work"),
    help="Where to work; on the disk to be measured.",
)
@click.option(
    "--ram_dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/dev/shm"),  # noqa: S108 - the series in memory needs one
    help="Whose files are in memory, for the series ram.",
)
@click.option("--keep", is_flag=True, help="Leave the checkpoints for another run.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("benchmark-results.json"),
    help="Where the results are saved after each run; those of other series stay.",
)
@click.option(
    "--readme",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Put the tables between this file's marks, and pictures beside it; needs matplotlib.",
)
@click.option(
    "--from",
    "from_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Measure nothing; show the results of an earlier --json.",
)
def main(
    *,
    series: str | None,
    only: str | None,
    size: str | None,
    layers: int | None,
    rounds: int | None,
    workers: int | None,
    reference_python: Path | None,
    work_dir: Path,
    ram_dir: Path,
    keep: bool,
    json_file: Path,
    readme: Path | None,
    from_file: Path | None,
) -> None:
    """Measure conversions at true size: about 25 minutes, 45 GB of disk and 22 GB of memory.

    Example: python examples/benchmark/benchmark.py --json results.json
    """
    if readme is not None:
        require_matplotlib()
    if from_file is not None:
        report(load(from_file), readme)
        return
    known = list(dict.fromkeys(name for one in SERIES for name in one.rounds))
    available = [name for name in known if is_available(name, reference_python)]
    cases = require_known(only, available, "--only")
    names = require_known(series, [one.name for one in SERIES], "--series")
    folders = {True: ram_dir.resolve() / work_dir.name, False: work_dir.resolve()}
    benches = []
    for one in SERIES:
        times = {n: min(t, rounds or t) for n, t in one.rounds.items() if n in cases}
        if one.name in names and times:
            sized = replace(one, size=size or one.size)
            folder = folders[one.in_memory]
            bench = Bench(sized, cut(sized, layers), folder, times, workers, reference_python)
            benches.append(bench)
    results = results_to_add_to(json_file, machine_facts(reference_python))
    if readme is not None:  # a missing mark is found now, and not after minutes of measuring
        written_between_marks(readme.read_text(encoding="utf-8"), results)
    measure_all(benches, results, json_file, keep=keep)
    report(results, readme)


if __name__ == "__main__":
    main()
