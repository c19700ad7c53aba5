"""Say what is measured, as command lines; part of benchmark.py."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from make_true_size_checkpoint import Size

HERE = Path(__file__).resolve().parent
REFERENCE = "transformers.models.llama.convert_llama_weights_to_hf"
# Neither waits for the disk by itself; this tool does, and so must what it is compared with.
COPY = 'out=$1; shift; cp --reflink=never --sparse=never "$@" "$out" && sync "$out"/*'
RUN_AND_SYNC = 'out=$1; shift; "$@" && sync "$out"/*'
FAST = "zlib_ng"  # what the extra [fast] installs
# What is None in sys.modules cannot be imported, as if it were not installed.
WITHOUT_FAST = (
    f"import runpy, sys; sys.modules[{FAST!r}] = None; "
    "runpy.run_module('codellama_convert', run_name='__main__', alter_sys=True)"
)
PART_BYTES = 14e9  # of a model that the disk cannot hold


@dataclass(frozen=True, slots=True)
class Series:
    """A checkpoint, where it lies, and how often each case is measured on it.

    Attributes:
        name: As `--series` spells it.
        size: The model's, as `SIZES` spells it.
        rounds: How often by case, in the order of the first round.
        layers: Fewer than the model has.
        in_memory: Whether its files are in memory, and not on the disk.
        sparse: Whether its weights are holes: for what no disk at hand can hold.
    """

    name: str
    size: str
    rounds: Mapping[str, int]
    layers: int | None = None
    in_memory: bool = False
    sparse: bool = False


# All that write write as much: where a host takes back unused memory, a case that writes more than
# the one before it waits for that.
_IN_MEMORY = {"floor": 5, "convert": 5, "zlib": 5, "float16": 5, "floor-read": 3, "verify": 3}
_ON_DISK = {
    "plan": 5, "floor": 5, "floor-large": 5, "convert": 5, "float16": 3, "floor-float32": 3,
    "float32": 3, "floor-read": 3, "verify": 3, "reverse": 3, "cp": 1, "reference": 1,
}  # fmt: skip
SERIES = (
    Series("ram", "7B", _IN_MEMORY, layers=16, in_memory=True),
    Series("disk", "7B", _ON_DISK),
    Series("llama3", "Llama3.1-8B", {"plan": 5, "floor": 3, "convert": 3}),
    Series("70B", "70B", {"help": 9, "plan": 9, "part": 1}, sparse=True),
    Series("405B", "Llama3.1-405B", {"plan": 3, "part": 1}, sparse=True),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to measure.

    Attributes:
        title: For the table.
        command: What is run.
        floor: The case that moves the same bytes and does nothing else; empty if there is none.
        reads: Bytes that are read, in units of the checkpoint's.
        writes: Bytes that are written, in the same units.
        needs_output: Whether it reads what `convert` has written, and leaves it.
        leaves_output: Whether it writes just that.
        may_refuse: Whether exit status 1 is a result: `plan` of what the disk cannot hold.
    """

    title: str
    command: tuple[str, ...]
    floor: str = "floor"
    reads: float = 1
    writes: float = 1
    needs_output: bool = False
    leaves_output: bool = False
    may_refuse: bool = False

    @property
    def on_disk(self) -> float:
        """Bytes beside the checkpoint at worst, in the same units."""
        return self.writes + self.needs_output


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and how a series is measured.

    Attributes:
        series: What.
        size: The model, with as many layers as are measured.
        folder: The work folder.
        rounds: By case; the cases that are not available here are left out.
        workers: Asked of the tool and of the floor; None is the tool's default.
        reference_python: The interpreter of the reference converter.
    """

    series: Series
    size: Size
    folder: Path
    rounds: Mapping[str, int] = field(default_factory=dict)
    workers: int | None = None
    reference_python: Path | None = None

    @property
    def made(self) -> Path:
        """The folder around the checkpoint, named after its settings."""
        kind = "-sparse" if self.series.sparse else ""
        return self.folder / f"{self.series.size}-{self.size.n_layers}-layers{kind}"

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

    def tool(self, command: str, *options: str, program: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return a command line of this project's tool, in this interpreter."""
        folders = ("--input_dir", str(self.checkpoint), "--output_dir", str(self.output))
        has_tokenizer = (self.checkpoint / "tokenizer.model").exists()
        skip = () if has_tokenizer else ("--skip_tokenizer",)
        return (*(program or TOOL), command, *folders, *skip, *options)

    def with_workers(self) -> tuple[str, ...]:
        """Return the option that sets the workers, if there is one."""
        return () if self.workers is None else ("--workers", str(self.workers))

    def convert(self, *options: str, program: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return the command line that converts the checkpoint."""
        return self.tool("convert", "--quiet", *self.with_workers(), *options, program=program)

    def reverse(self) -> tuple[str, ...]:
        """Return the command line that writes one rank from what `convert` has written."""
        folders = (str(self.output), str(self.temporary / "ranks"))
        options = ("--ranks", "1", "--overwrite", "--quiet", *self.with_workers())
        return (*TOOL, "reverse", *folders, *options)

    def copy(self, threads: int, write_times: int, *, direct: bool) -> tuple[str, ...]:
        """Return the command line that copies the checkpoint, or reads it and the output."""
        sources = (*map(str, self.ranks), *(() if write_times else (str(self.output),)))
        target = ("--target", str(self.output / "copy.bin")) if write_times else ()
        mode = () if direct else ("--buffered",)
        times = ("--threads", str(threads), "--write_times", str(write_times))
        return (sys.executable, str(HERE / "direct_copy.py"), *sources, *target, *times, *mode)


TOOL = (sys.executable, "-m", "codellama_convert")


def planned(bench: Bench) -> dict[str, Any]:
    """Ask the tool for its plan of the checkpoint; small by what would fill the results."""
    shown = subprocess.run(  # noqa: S603 - the command is this project's own
        bench.tool("plan", "--json", *bench.with_workers()),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if not shown.stdout:
        raise click.ClickException(f"plan: {shown.stderr.strip()}")
    plan: dict[str, Any] = json.loads(shown.stdout)
    return {key: plan[key] for key in ("workers", "buffer_bytes", "total_size")}


def is_available(case: str, reference_python: Path | None) -> bool:
    """Tell whether a case can be measured here."""
    if case == "reference":
        return reference_python is not None
    return case != "zlib" or find_spec(FAST) is not None  # without it, that is "convert"


def build_cases(bench: Bench, *, threads: int, direct: bool) -> dict[str, Case]:
    """Spell what can be measured.

    Args:
        bench: Where and how.
        threads: Of the floors.
        direct: Whether the file system takes direct I/O.

    Returns:
        The cases by name.
    """
    ranks = tuple(map(str, bench.ranks))
    to_output = ("sh", str(bench.output))
    reference = (
        str(bench.reference_python), "-m", REFERENCE,
        "--model_size", "13B" if bench.series.size == "tiny" else bench.series.size,
        "--input_dir", str(bench.checkpoint), "--output_dir", str(bench.output),
    )  # fmt: skip
    slow = (sys.executable, "-c", WITHOUT_FAST)
    n_parts = max(1, round(bench.size.n_bytes / PART_BYTES))
    part = bench.convert("--part", f"1/{n_parts}")
    copies = [bench.copy(threads, times, direct=direct) for times in (0, 1, 2)]
    return {
        "floor": Case("plain copy", copies[1]),
        "floor-large": Case("plain copy in large pages", (*copies[1], "--large_pages")),
        "floor-read": Case("reading both sides", copies[0], "floor-read", 2, 0, needs_output=True),
        "floor-float32": Case("plain copy, written twice", copies[2], "floor-float32", 1, 2),
        "cp": Case("`cp`, then sync", ("/bin/sh", "-c", COPY, *to_output, *ranks)),
        "reference": Case(
            "the reference converter, then sync",
            ("/bin/sh", "-c", RUN_AND_SYNC, *to_output, *reference), writes=2,
        ),
        "convert": Case("convert", bench.convert(), leaves_output=True),
        "zlib": Case(
            "convert without `[fast]`", bench.convert(program=slow), leaves_output=True
        ),
        "float16": Case("convert `--dtype float16`", bench.convert("--dtype", "float16")),
        "float32": Case(
            "convert `--dtype float32`", bench.convert("--dtype", "float32"), "floor-float32", 1, 2
        ),
        "verify": Case(
            "verify", bench.tool("verify"), "floor-read", 2, 0, needs_output=True
        ),
        "reverse": Case("reverse `--ranks 1`", bench.reverse(), needs_output=True),
        "part": Case(f"convert `--part 1/{n_parts}`", part, "", 1 / n_parts, 1 / n_parts),
        "plan": Case("plan", bench.tool("plan"), "", 0, 0, may_refuse=True),
        "help": Case("`--help`", (*TOOL, "--help"), "", 0, 0),
    }  # fmt: skip
