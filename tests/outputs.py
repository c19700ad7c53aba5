"""Own what tests ask of output folders, and how they run the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from codellama_convert.convert.run import RunOptions, run
from codellama_convert.errors import Interrupted
from codellama_convert.plan.job import Job
from codellama_convert.staging.records import Journal, read_journal, write_journal
from codellama_convert.storage.held_folder import HeldFolder
from codellama_convert.storage.signals import StopRequest
from codellama_convert.storage.watch import Watch
from tests.witness.checkpoints import GQA, random_model, save_checkpoint

ROOT = Path(__file__).parents[1]
STAGING = ".codellama-convert.partial"
LOCK = ".codellama-convert.lock"
TOKEN = "run.token"  # by which workers know that their run goes
# What loaders of either side begin with.
ENTRANCES = frozenset({"model.safetensors", "model.safetensors.index.json", "params.json"})
SHARDS = "60KB"
SHARD_BYTES = 60_000


def content(folder: Path) -> dict[str, bytes]:
    """Read every file of a folder, the hidden ones too."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def loads(folder: Path) -> bool:
    """Whether a loader would find a model to begin with."""
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    return bool(names & ENTRANCES)


def command(source: Path, target: Path, *more: str) -> list[str]:
    """Spell the command that converts into shards of 60 KB."""
    return [
        sys.executable, "-m", "codellama_convert", "--input_dir", str(source), "--output_dir",
        str(target), "--max_shard_size", SHARDS, "--quiet", *more,
    ]  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    """Give the environment of a child: this checkout, and one thread for numpy."""
    own = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **own, **more}


def finish(arguments: list[str], **how: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; `how` goes into its environment."""
    return subprocess.run(
        arguments, check=False, capture_output=True, text=True, cwd=ROOT,
        env=environment(**how), timeout=120,
    )  # fmt: skip


def on_a_terminal(*arguments: object) -> tuple[int, str]:
    """Run the program on a terminal of 80 columns; give its status and all that it printed."""
    import fcntl
    import pty
    import struct
    import termios

    terminal, its_end = pty.openpty()
    fcntl.ioctl(its_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "codellama_convert", *map(str, arguments)],
        cwd=ROOT, env=environment(), stdin=its_end, stdout=its_end, stderr=its_end,
    )  # fmt: skip
    os.close(its_end)
    printed = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # EIO: nobody has the other end open any more
            break
        if not piece:
            break
        printed += piece
    os.close(terminal)
    return process.wait(), printed.decode()


def convert_whole(folder: Path) -> Path:
    """Put a checkpoint into `in`, and what an uninterrupted run makes of it into `out`."""
    save_checkpoint(folder / "in", GQA, random_model(GQA, torch.bfloat16, 3), n_ranks=2)
    assert finish(command(folder / "in", folder / "out")).returncode == 0
    return folder


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """Give the one line that says what went wrong; notes may stand before it."""
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("Error: "), done.stderr
    return lines[0]


def stop_after_files(job: Job, target: Path, n_files: int, how: RunOptions | None = None) -> None:
    """Run a job until some of its files are whole; the next one has begun then."""
    stop = StopRequest()
    left = sum(file.tensor_bytes for file in job.weight_files[:n_files])

    def count(n_bytes: int) -> None:
        nonlocal left
        left -= n_bytes
        if left < 0:
            stop.ask(signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(job, target, how, watch=Watch(count, stop))


def journal_of(target: Path) -> Journal | None:
    """Read the journal of what is staged in an output folder."""
    if not (target / STAGING).exists():
        return None
    with HeldFolder(target / STAGING) as staging:
        return read_journal(staging)


def put_journal(target: Path, journal: Journal) -> None:
    """Write another journal into an output folder."""
    with HeldFolder(target / STAGING) as staging:
        write_journal(staging, journal)


def flip_bit(path: Path, at: int) -> None:
    """Change one bit of a byte of a file; a negative position counts from the end."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


class StopAfter(StopRequest):
    """Asks to stop after a number of looks."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._left = looks

    def is_set(self) -> bool:
        self._left -= 1
        if self._left < 0:
            self.ask(signal.SIGTERM)
        return super().is_set()
