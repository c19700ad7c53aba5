"""Runs that die while they publish, and what is done to their files."""

from __future__ import annotations

from pathlib import Path

from codellama_convert.convert.run import RunOptions, run
from codellama_convert.plan.job import Options, plan_conversion
from tests.faults.dying import run_and_die
from tests.outputs import SHARD_BYTES

OPTIONS = Options(max_shard_bytes=SHARD_BYTES, workers=1)
OVER = RunOptions(overwrite=True)
SHARD = "model-00003-of-00006.safetensors"
# In the order of their renames: six shards and the small files, then the index.
N_MOVES = 13


def convert(converted: Path, target: Path, how: RunOptions | None = None) -> None:
    run(plan_conversion(converted / "in", OPTIONS), target, how)


def stop_in_publish(
    converted: Path, target: Path, kill_at: str, *, how: RunOptions | None = None, times: int = 1
) -> None:
    """Die right after a step, when it is passed for the n-th time."""
    run_and_die(plan_conversion(converted / "in", OPTIONS), target, kill_at, how=how, times=times)


def flip(path: Path) -> None:
    """Change the last byte but four, which is data of a tensor or text of a small file."""
    bytes_ = bytearray(path.read_bytes())
    bytes_[-5] ^= 4
    path.write_bytes(bytes_)
