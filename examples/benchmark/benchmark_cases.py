"""Say what is measured, as command lines; part of benchmark.py."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from make_true_size_checkpoint import Size

HERE = Path(__file__).resolve().parent
REFERENCE = "transformers.models.llama.convert_llama_weights_to_hf"
# Neither waits for the disk by itself; this tool does, and so must what it is compared with.
COPY = 'out=$1; shift; cp --reflink=never --sparse=never "$@" "$out" && sync "$out"/*'
RUN_AND_SYNC = 'out=$1; shift; "$@" && sync "$out"/*'


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to measure.

    Attributes:
        name: As `--only` spells it.
        title: For the table.
        command: What is run.
        floor: The case that moves the same bytes and does nothing else.
        read_times: Bytes that are read, in units of the checkpoint's.
        write_times: Bytes that are written, in the same units.
        disk_times: Bytes on the disk at worst, in the same units.
        needs_output: Whether it reads what `convert` has written.
    """

    name: str
    title: str
    command: tuple[str, ...]
    floor: str = "floor"
    read_times: int = 1
    write_times: int = 1
    disk_times: int = 1
    needs_output: bool = False


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and how to measure.

    Attributes:
        size: The model.
        size_name: As `--size` spells it.
        sparse: Whether the weights are holes.
        folder: The work folder.
        workers: Asked of the tool and of the floor; None is the tool's default.
        reference_python: The interpreter of the reference converter.
    """

    size: Size
    size_name: str
    sparse: bool
    folder: Path
    workers: int | None
    reference_python: Path | None

    @property
    def made(self) -> Path:
        """The folder around the checkpoint, named after its settings."""
        kind = "-sparse" if self.sparse else ""
        return self.folder / f"{self.size_name}-{self.size.n_layers}-layers{kind}"

    @property
    def checkpoint(self) -> Path:
        """The checkpoint."""
        return self.made / self.size.folder

    @property
    def ranks(self) -> list[Path]:
        """Its weights."""
        names = (f"consolidated.{rank:02d}.pth" for rank in range(self.size.n_ranks))
        return [self.checkpoint / name for name in names]

    @property
    def output(self) -> Path:
        """What a run writes."""
        return self.folder / "output"

    @property
    def temporary(self) -> Path:
        """TMPDIR of every run."""
        return self.folder / "temporary"

    def tool(self, command: str, *options: str) -> tuple[str, ...]:
        """Give a command line of this project's tool, in this interpreter."""
        folders = ("--input_dir", str(self.checkpoint), "--output_dir", str(self.output))
        return (sys.executable, "-m", "codellama_convert", command, *folders, *options)

    def convert(self, *options: str) -> tuple[str, ...]:
        """Give the command line that converts the checkpoint."""
        workers = () if self.workers is None else ("--workers", str(self.workers))
        return self.tool("convert", "--quiet", *workers, *options)

    def reverse(self, n_ranks: int) -> tuple[str, ...]:
        """Give the command line that writes ranks from what `convert` has written."""
        workers = () if self.workers is None else ("--workers", str(self.workers))
        folders = (str(self.output), str(self.temporary / f"ranks-{n_ranks}"))
        options = ("--ranks", str(n_ranks), "--overwrite", "--quiet", *workers)
        return (sys.executable, "-m", "codellama_convert", "reverse", *folders, *options)

    def copy(self, threads: int, write_times: int, *, direct: bool) -> tuple[str, ...]:
        """Give the command line that copies the checkpoint, or reads it and the output."""
        sources = (*map(str, self.ranks), *(() if write_times else (str(self.output),)))
        target = ("--target", str(self.output / "copy.bin")) if write_times else ()
        mode = () if direct else ("--buffered",)
        times = ("--threads", str(threads), "--write_times", str(write_times))
        return (sys.executable, str(HERE / "direct_copy.py"), *sources, *target, *times, *mode)


def abilities(bench: Bench) -> frozenset[str]:
    """Ask the installed tool which of the measured options and commands it has."""
    words: set[str] = set()
    for command in ((), ("convert",)):
        shown = subprocess.run(  # noqa: S603 - the command is this project's own
            [sys.executable, "-m", "codellama_convert", *command, "--help"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        words.update(shown.stdout.split())
    if bench.workers is not None and "--workers" not in words:
        raise click.UsageError("the installed codellama-convert has no option --workers")
    return frozenset({"--io", "--workers", "reverse", "verify"} & words)


def planned(bench: Bench, tool_has: frozenset[str]) -> dict[str, Any]:
    """Ask the tool for its plan of the checkpoint; small by what would fill the results."""
    workers = () if bench.workers is None else ("--workers", str(bench.workers))
    shown = subprocess.run(  # noqa: S603 - the command is this project's own
        bench.tool("plan", "--json", *(workers if "--workers" in tool_has else ())),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if shown.returncode:
        raise click.ClickException(f"plan: {shown.stderr.strip()}")
    plan: dict[str, Any] = json.loads(shown.stdout)
    return {key: plan[key] for key in ("workers", "buffer_bytes", "total_size")}


def build_cases(
    bench: Bench, tool_has: frozenset[str], *, threads: int, direct: bool
) -> list[Case]:
    """List what can be measured here.

    Args:
        bench: Where and how.
        tool_has: From `abilities`.
        threads: Of the floor.
        direct: Whether the file system takes direct I/O.

    Returns:
        The cases; those that read an output stand behind one that writes it.
    """
    way = f"{'direct' if direct else 'buffered'} copy, {threads} thread{'s' if threads > 1 else ''}"
    ranks = tuple(map(str, bench.ranks))
    cases = [
        Case("floor", way, bench.copy(threads, 1, direct=direct)),
        Case("cp", "cp, then sync", ("/bin/sh", "-c", COPY, "sh", str(bench.output), *ranks)),
    ]
    if bench.reference_python is not None:
        size = "13B" if bench.size_name == "tiny" else bench.size_name
        python = (str(bench.reference_python), "-m", REFERENCE, "--model_size", size)
        folders = ("--input_dir", str(bench.checkpoint), "--output_dir", str(bench.output))
        then_sync = ("/bin/sh", "-c", RUN_AND_SYNC, "sh", str(bench.output))
        cases.append(
            Case("reference", "reference, then sync", then_sync + python + folders, disk_times=2)
        )
    if "--io" in tool_has:
        cases += [
            Case(mode, f"convert --io {mode}", bench.convert("--io", mode))
            for mode in ("buffered", "direct")
        ]
    cases.append(Case("auto", "convert", bench.convert()))
    if "verify" in tool_has:
        read = Case("verify", "verify", bench.tool("verify"), "floor-read", 2, 0, needs_output=True)
        floor = bench.copy(threads, 0, direct=direct)
        cases += [
            Case("floor-read", f"{way}, reads only", floor, "floor-read", 2, 0, needs_output=True),
            read,
        ]
    if "reverse" in tool_has:
        cases += [
            Case(
                f"reverse-{n_ranks}",
                f"reverse --ranks {n_ranks}",
                bench.reverse(n_ranks),
                disk_times=2,
                needs_output=True,
            )
            for n_ranks in (1, 8)
        ]
    float32 = bench.convert("--dtype", "float32")
    floor = bench.copy(threads, 2, direct=direct)
    return [
        *cases,
        Case("float16", "convert --dtype float16", bench.convert("--dtype", "float16")),
        Case("floor-float32", f"{way}, written twice", floor, "floor-float32", 1, 2, 2),
        Case("float32", "convert --dtype float32", float32, "floor-float32", 1, 2, 2),
    ]
