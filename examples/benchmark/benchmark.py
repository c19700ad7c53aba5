"""Measure the conversion at true size against a plain copy, `cp` and the reference converter.

Example: python examples/benchmark/benchmark.py --size 7B --rounds 3 --json results.json --pictures pictures

Everything is measured in one run, in turns, as whole processes. The floor of a run is a plain copy
of the same bytes past the page cache, with as many threads as the tool has workers. Linux only.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from benchmark_cases import HERE, Bench, Case, abilities, build_cases, planned
from benchmark_meter import Measurement, drop_caches, machine_facts, measure
from benchmark_table import summarize, table_lines
from make_true_size_checkpoint import SIZES

SLACK_BYTES = 1 << 30  # free space that is left alone
FORMAT = 1  # of the JSON file


def require_space(folder: Path, n_bytes: int, what: str) -> None:
    """Refuse what does not fit on the disk.

    Args:
        folder: Where it would be written.
        n_bytes: How much.
        what: For the message.

    Raises:
        click.ClickException: If it does not fit.
    """
    free = shutil.disk_usage(folder).free
    if n_bytes + SLACK_BYTES > free:
        raise click.ClickException(
            f"{what} takes {n_bytes / 1e9:.1f} GB and 1 GB is left alone, but {free / 1e9:.1f} GB "
            "are free; name another disk with --work_dir, fewer --layers, or a subset with --only"
        )


def require_matplotlib() -> None:
    """Refuse to draw without matplotlib, before minutes of measuring and not after them.

    Raises:
        click.ClickException: If it cannot be imported.
    """
    # In a process of its own: it would count into the memory of every measured run.
    tried = [sys.executable, "-c", "import matplotlib.figure"]
    if subprocess.run(tried, capture_output=True, check=False).returncode:  # noqa: S603
        raise click.ClickException(
            "--pictures needs matplotlib: pip install matplotlib, or leave --pictures out; a --json "
            "file can be drawn later with --plot_from"
        )


def make_checkpoint(bench: Bench) -> None:
    """Make the checkpoint unless an earlier run left it."""
    if (bench.checkpoint / "params.json").exists():  # it is written last
        return
    if not bench.sparse:
        require_space(bench.folder, bench.size.n_bytes, "the checkpoint")
    shutil.rmtree(bench.made, ignore_errors=True)
    click.echo(f"making {bench.made.name}", err=True)
    script = [sys.executable, str(HERE / "make_true_size_checkpoint.py"), str(bench.checkpoint)]
    size = ["--size", bench.size_name, "--layers", str(bench.size.n_layers)]
    # In a process of its own: torch would count into the memory of every measured run.
    subprocess.run([*script, *size, *(["--sparse"] if bench.sparse else [])], check=True)  # noqa: S603


def choose(cases: Sequence[Case], only: str | None) -> list[Case]:
    """Pick the cases that `--only` names.

    Args:
        cases: What can be measured.
        only: Names with commas between them; None is all.

    Returns:
        The chosen ones, in the order of `cases`.

    Raises:
        click.UsageError: If a name is not known here.
    """
    if only is None:
        return list(cases)
    names = {case.name for case in cases}
    wanted = {name.strip() for name in only.split(",")}
    if not wanted <= names:
        raise click.UsageError(
            f"--only {', '.join(sorted(wanted - names))} is not known or not available here; "
            f"there are {', '.join(case.name for case in cases)}"
        )
    return [case for case in cases if case.name in wanted]


def run_in_turns(
    bench: Bench, cases: Sequence[Case], rounds: int
) -> Iterator[tuple[int, Case, Measurement]]:
    """Measure every case once a round, each round beginning with another one.

    Args:
        bench: Where.
        cases: What.
        rounds: How often.

    Yields:
        Round, case and measurement.
    """
    env = {"TMPDIR": str(bench.temporary), "HF_HUB_OFFLINE": "1"}
    watched = (bench.output, bench.temporary)
    holds_model = False
    for number in range(rounds):
        first = number % len(cases)
        for case in (*cases[first:], *cases[:first]):
            if not (case.needs_output and holds_model):
                empty(watched)
            if case.needs_output and not holds_model:
                measure("convert", bench.convert(), watched=watched, env=env)
            drop_caches(bench.ranks + [path for path in bench.output.iterdir() if path.is_file()])
            measured = measure(case.name, case.command, watched=watched, env=env)
            empty([bench.temporary])
            holds_model = case.needs_output or case.name in ("auto", "direct", "buffered")
            click.echo(f"round {number + 1} {case.name}: {measured.seconds:.2f} s", err=True)
            yield number, case, measured
    empty(watched)


def empty(folders: Sequence[Path]) -> None:
    """Remove what an earlier run wrote, so that no two outputs are on the disk."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)


def run(bench: Bench, *, only: str | None, rounds: int) -> dict[str, Any]:
    """Make the checkpoint, measure, and gather the results.

    Args:
        bench: Where and how.
        only: The chosen cases.
        rounds: How often.

    Returns:
        The content of the JSON file.
    """
    machine = machine_facts(bench.folder, bench.reference_python)
    tool_has = abilities(bench)
    direct = bool(machine["direct_io"])
    choose(build_cases(bench, tool_has, threads=1, direct=direct), only)  # before minutes of work
    make_checkpoint(bench)
    plan = planned(bench, tool_has)
    cases = choose(build_cases(bench, tool_has, threads=plan["workers"], direct=direct), only)
    n_bytes = sum(path.stat().st_size for path in bench.ranks)
    require_space(bench.folder, max(c.disk_times for c in cases) * n_bytes, "the largest output")
    caches_dropped = drop_caches(bench.ranks)
    runs = [
        {"case": case.name, "round": number, **asdict(measured)}
        for number, case, measured in run_in_turns(bench, cases, rounds)
    ]
    return {
        "format": FORMAT,
        "machine": machine,
        "checkpoint": {
            "size": bench.size_name,
            "layers": bench.size.n_layers,
            "sparse": bench.sparse,
            "ranks": bench.size.n_ranks,
            "bytes": n_bytes,
        },
        "settings": {
            "rounds": rounds,
            "caches_dropped": caches_dropped,
            "tool_has": sorted(tool_has),
            **plan,
        },
        "summary": summarize(cases, runs, n_bytes),
        "runs": runs,
    }


def report(results: Mapping[str, Any], json_file: Path | None, pictures: Path | None) -> None:
    """Print the table; write the JSON file and the pictures."""
    click.echo("\n".join(table_lines(results)))
    if json_file is not None:
        json_file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if pictures is not None:
        from benchmark_pictures import draw  # noqa: PLC0415 - matplotlib, which only drawing needs

        draw(results, pictures)


@click.command(
    context_settings={
        "show_default": True,
        "max_content_width": 100,
        "token_normalize_func": lambda name: name.replace("-", "_"),
    }
)
@click.option(
    "--size",
    type=click.Choice(list(SIZES)),
    default="7B",
    metavar="7B|13B|34B|70B",
    help="Of the release.",
)
@click.option("--layers", type=click.IntRange(1), help="Fewer layers; all of them if absent.")
@click.option("--sparse", is_flag=True, help="Leave the weights zero; takes next to no disk.")
@click.option(
    "--rounds", type=click.IntRange(1), default=3, help="How often to measure everything."
)
@click.option(
    "--only", metavar="NAMES", help="What to measure, such as floor,cp,auto; everything if absent."
)
@click.option("--workers", type=click.IntRange(1), help="Of the tool, and threads of the floor.")
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
@click.option("--keep", is_flag=True, help="Leave the checkpoint in --work_dir for another run.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the results to a file.",
)
@click.option(
    "--pictures",
    type=click.Path(file_okay=False, path_type=Path),
    help="Draw the results into a folder; needs matplotlib.",
)
@click.option(
    "--plot_from",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Measure nothing; show and draw the results of an earlier --json.",
)
def main(
    *,
    size: str,
    layers: int | None,
    sparse: bool,
    rounds: int,
    only: str | None,
    workers: int | None,
    reference_python: Path | None,
    work_dir: Path,
    keep: bool,
    json_file: Path | None,
    pictures: Path | None,
    plot_from: Path | None,
) -> None:
    """Measure the conversion at true size.

    Example: python examples/benchmark/benchmark.py --size 7B --rounds 3 --json results.json
    """
    if pictures is not None:
        require_matplotlib()
    if plot_from is not None:
        report(json.loads(plot_from.read_text(encoding="utf-8")), None, pictures)
        return
    is_new = not work_dir.exists()
    work_dir.mkdir(parents=True, exist_ok=True)
    model = SIZES[size]
    model = replace(model, n_layers=min(layers or model.n_layers, model.n_layers))
    bench = Bench(model, size, sparse, work_dir.resolve(), workers, reference_python)
    try:
        results = run(bench, only=only, rounds=rounds)
    finally:
        for folder in (bench.output, bench.temporary, *(() if keep else (bench.made,))):
            shutil.rmtree(folder, ignore_errors=True)
        if is_new and not keep:
            work_dir.rmdir()
    report(results, json_file, pictures)


if __name__ == "__main__":
    main()
