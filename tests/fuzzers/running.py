"""Convert one mutant of a tiny checkpoint, and measure how it ended and what it cost."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save

from codellama_convert.convert.run import convert_checkpoint
from codellama_convert.errors import ConvertError
from codellama_convert.formats.tensor_reader import TensorReader
from codellama_convert.plan.job import Options
from tests.faults.hostile import rank_bytes, zip_bytes
from tests.witness.checkpoints import (
    Shape,
    State,
    expected_state_dict,
    random_model,
    save_checkpoint,
)

MODEL_FILE = "model.safetensors"
CASE_SECONDS = 20


METADATA = {"format": "pt"}
QUICK = Options(skip_tokenizer=True, io_mode="buffered", workers=1)
_TWO = Shape(dim=8, n_layers=1, n_heads=4, n_kv_heads=2, hidden=16, vocab=300)


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Break a hang with an exception that the package does not handle; on Windows, pytest breaks it."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(folder: Path, out: Path, expected: bytes | None) -> str:
    """Convert, and tell how it ended.

    Args:
        folder: The checkpoint.
        out: The new folder; removed again.
        expected: The model file, to the byte; None where any is right.

    Returns:
        "exact", "converted", "refused", "wrong" or "crash: ...".
    """
    try:
        with time_limit(CASE_SECONDS):
            convert_checkpoint(folder, out, options=QUICK)
    except ConvertError as problem:
        text = str(problem)
        if "\n" in text or len(text) > 1000:
            return f"crash: a message of {len(text)} characters"
        return "crash: something was left" if out.exists() else "refused"
    except Exception as problem:  # noqa: BLE001 - any other is what is looked for
        shutil.rmtree(out, ignore_errors=True)
        return f"crash: {type(problem).__name__}: {problem}"[:200]
    found = (out / MODEL_FILE).read_bytes()
    shutil.rmtree(out)
    if expected is None:
        return "converted"
    return "exact" if found == expected else "wrong"


@dataclass(frozen=True)
class Subject:
    """A tiny good checkpoint, and the model file that it must give."""

    name: str
    folder: Path
    expected: bytes

    @property
    def ranks(self) -> list[Path]:
        return sorted(self.folder.glob("*.pth"))


def subjects(scratch: Path) -> list[Subject]:
    """Write the checkpoints that are damaged: torch's layouts, and those of other writers."""
    made = []

    def add(name: str, shape: Shape, state: State, write: Callable[[Path], Any]) -> None:
        folder = scratch / name
        write(folder)
        expected = save(contiguous(expected_state_dict(state, shape)), metadata=METADATA)
        made.append(Subject(name, folder, expected))

    for name, shape, how in (
        ("own", rank_bytes.TINY, {}),
        ("two-ranks", _TWO, {"n_ranks": 2}),
        ("flat", rank_bytes.TINY, {"storage": "flat"}),
        ("shared", _TWO, {"storage": "shared-offset", "n_ranks": 2}),
        ("transposed", rank_bytes.TINY, {"storage": "transposed", "pickle_protocol": 4}),
        ("strided", rank_bytes.TINY, {"storage": "strided", "rope": "inner"}),
    ):
        state = random_model(shape, seed=11, special_values=True)

        def write(folder: Path, shape: Shape = shape, state: State = state, how: Any = how) -> None:
            save_checkpoint(folder, shape, state, tokenizer=False, **how)

        add(name, shape, state, write)

    def rezipped(folder: Path) -> None:
        save_checkpoint(folder, rank_bytes.TINY, rank_bytes.STATE, tokenizer=False)
        rank_bytes.put(folder, rank_bytes.rank_file().members())

    def streamed(folder: Path) -> None:
        save_checkpoint(folder, rank_bytes.TINY, rank_bytes.STATE, tokenizer=False)
        members = rank_bytes.rank_file().members()
        rank_bytes.put(
            folder, [zip_bytes.stream_member(m.name, m.content) for m in members], end64={}
        )

    add("rezipped", rank_bytes.TINY, rank_bytes.STATE, rezipped)
    add("streamed", rank_bytes.TINY, rank_bytes.STATE, streamed)
    return made


def contiguous(state: State) -> State:
    """Copy what a view shares, which the library refuses to save."""
    return {name: tensor.clone().contiguous() for name, tensor in state.items()}


def no_check(*_: object) -> None:
    """Stand in for the comparison of CRC-32s."""


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder in memory where there is one: an fsync costs nothing there."""
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() else None
    with tempfile.TemporaryDirectory(dir=place, prefix="codellama-convert-fuzz-") as name:
        yield Path(name)


def count(tally: Counter[str], found: str, number: int) -> None:
    tally[found] += 1
    if found.startswith("crash") or (found == "wrong" and TensorReader._check is not no_check):
        sys.stderr.write(f"  mutant {number}: {found}\n")


def memory_status(key: str) -> int:
    """Read a line of /proc/self/status in bytes: VmRSS or VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) << 10


def measured_growth(run: Callable[[], Any]) -> tuple[Any, int]:
    """Run, and tell by how much the peak memory was above that at the beginning."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
    before = memory_status("VmRSS")
    result = run()
    return result, memory_status("VmHWM") - before
