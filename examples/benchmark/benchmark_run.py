"""Make the checkpoints and measure them, in turns; part of benchmark.py."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from benchmark_cases import HERE, Bench, Case, build_cases, planned
from benchmark_clock import MAKING, Clock
from benchmark_machine import file_system, make_cold, require_space, takes_direct_io
from benchmark_meter import Measurement, measure
from benchmark_results import save
from make_true_size_checkpoint import SIZES


def require_room(bench: Bench) -> None:
    """Refuse a series that does not fit on its disk, or into memory."""
    bench.folder.mkdir(parents=True, exist_ok=True)
    cases = build_cases(bench, threads=1, direct=True)
    times = max(cases[name].on_disk for name in bench.rounds)
    if not (bench.series.sparse or bench.checkpoint.exists()):
        times += 1
    what = f"the series {bench.series.name}"
    in_memory = bench.series.in_memory
    require_space(bench.folder, times * bench.size.n_bytes, what, in_memory=in_memory)


def make_checkpoint(bench: Bench) -> None:
    """Make the checkpoint unless an earlier run left it."""
    if (bench.checkpoint / "params.json").exists():  # it is written last
        return
    shutil.rmtree(bench.made, ignore_errors=True)
    script = [sys.executable, str(HERE / "make_true_size_checkpoint.py"), str(bench.checkpoint)]
    size = ["--size", bench.series.size, "--layers", str(bench.size.n_layers)]
    sparse = ["--sparse"] if bench.series.sparse else []
    # In a process of its own: torch would count into the memory of every measured run.
    subprocess.run([*script, *size, *sparse], check=True)  # noqa: S603


def empty(folders: Sequence[Path]) -> None:
    """Remove what an earlier run wrote, so that no two outputs are on the disk."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)


def in_turns(rounds: Mapping[str, int]) -> Iterator[tuple[int, str]]:
    """Order the runs: each case once a round, each round beginning with another one.

    Args:
        rounds: How often by case.

    Yields:
        The round, and the case's name.
    """
    for number in range(max(rounds.values(), default=0)):
        names = [name for name, times in rounds.items() if times > number]
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            yield number, name


def run_in_turns(bench: Bench, cases: Mapping[str, Case]) -> Iterator[tuple[int, str, Measurement]]:
    """Measure every case as often as is asked for.

    Args:
        bench: Where, and how often.
        cases: What.

    Yields:
        The round, the case's name, and what was measured.
    """
    env = {"TMPDIR": str(bench.temporary), "HF_HUB_OFFLINE": "1"}
    watched = (bench.output, bench.temporary)
    holds_model = False
    for number, name in in_turns(bench.rounds):
        case = cases[name]
        if not (case.needs_output and holds_model):
            empty(watched)
        if case.needs_output and not holds_model:
            measure("convert", bench.convert(), watched=watched, env=env)
        make_cold([*bench.ranks, *(path for path in bench.output.iterdir() if path.is_file())])
        measured = measure(name, case.command, watched=watched, env=env, may_refuse=case.may_refuse)
        empty([bench.temporary])
        holds_model = case.needs_output or case.leaves_output
        yield number, name, measured


def measure_series(bench: Bench, clock: Clock, *, keep: bool) -> Iterator[dict[str, Any]]:
    """Make the checkpoint of a series, measure all of it, and remove what was written.

    Args:
        bench: Where and how.
        clock: Says how long it takes.
        keep: Whether to leave the checkpoint.

    Yields:
        The results so far, after each run.
    """
    require_room(bench)
    try:
        began = time.perf_counter()
        make_checkpoint(bench)
        clock.show(bench.series.name, MAKING, time.perf_counter() - began)
        plan = planned(bench)
        direct = not bench.series.in_memory and takes_direct_io(bench.folder)
        cases = build_cases(bench, threads=plan["workers"], direct=direct)
        results = {
            **facts(bench),
            **plan,
            "direct_io": direct,
            "cases": {n: {"title": cases[n].title, "floor": cases[n].floor} for n in bench.rounds},
            "runs": [],
        }
        for number, name, measured in run_in_turns(bench, cases):
            clock.show(bench.series.name, name, measured.seconds)
            run = {"case": name, "round": number, **asdict(measured)}
            # The memory over time is drawn, of one run.
            results["runs"].append(run if number == 0 else {**run, "samples": []})
            yield results
    finally:
        for folder in (bench.output, bench.temporary, *(() if keep else (bench.made,))):
            shutil.rmtree(folder, ignore_errors=True)


def facts(bench: Bench) -> dict[str, Any]:
    """Say what is converted, and where."""
    return {
        "model": bench.size.folder,
        "ranks": bench.size.n_ranks,
        "layers": bench.size.n_layers,
        "all_layers": SIZES[bench.series.size].n_layers,
        "bytes": bench.size.n_bytes,
        "sparse": bench.series.sparse,
        "file_system": file_system(bench.folder),
    }


def compile_tool() -> None:
    """Compile the tool's modules, so that no run is measured that does."""
    spec = find_spec("codellama_convert")
    folders = (spec.submodule_search_locations or ()) if spec else ()
    compiling = [sys.executable, "-m", "compileall", "-q", *folders]
    subprocess.run(compiling, check=False, capture_output=True)  # noqa: S603


def measure_all(
    benches: Sequence[Bench], results: dict[str, Any], json_file: Path, *, keep: bool
) -> None:
    """Measure all series, and save the results after each run.

    Args:
        benches: The series.
        results: What is there of others; these are added.
        json_file: Where to save.
        keep: Whether to leave the checkpoints.
    """
    try:
        for bench in benches:
            require_room(bench)
        clock = Clock(benches)
        click.echo(f"about {clock.minutes_left():.1f} minutes", err=True)
        compile_tool()
        for bench in benches:
            for measured in measure_series(bench, clock, keep=keep):
                results["series"][bench.series.name] = measured
                save(results, json_file)
    finally:
        for bench in benches:
            with suppress(OSError):  # if it is not empty
                bench.folder.rmdir()
