"""Own the ways that a model goes while things fail: its source, its job and its command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from codellama_convert.convert.report import ConversionReport
from codellama_convert.convert.run import RunOptions, convert_checkpoint, run
from codellama_convert.plan.job import Job, Options, plan_conversion
from codellama_convert.plan.ranks.job import ReverseJob, plan_reverse
from codellama_convert.plan.ranks.options import ReverseOptions
from tests.faults.at_once import AtOnce
from tests.outputs import SHARD_BYTES, command
from tests.witness.checkpoints import GQA, Storage, random_model, save_checkpoint

OPTIONS = Options(max_shard_bytes=SHARD_BYTES, workers=1)


@dataclass(frozen=True, slots=True)
class Direction:
    """A way from one folder to another.

    Attributes:
        name: For reports.
        n_ranks: How many are written; 0 where a Hugging Face folder is.
        from_hugging_face: Whether the source is one, in six files.
        workers: Makes the executor whose workers write the files; None where there is none.
    """

    name: str
    n_ranks: int
    from_hugging_face: bool
    workers: Callable[[], Executor] | None = None

    @property
    def weights(self) -> list[str]:
        """The names of the files that hold the weights in the end, shards of 60 kB."""
        if self.n_ranks:
            return [f"consolidated.{number:02d}.pth" for number in range(self.n_ranks)]
        return [f"model-{number:05d}-of-00006.safetensors" for number in range(1, 7)]

    @property
    def n_together(self) -> int:
        """How many of them are kept together or not at all: what is read for one is read for all."""
        return self.n_ranks if self.n_ranks and self.workers is None else 1

    def save(self, folder: Path, seed: int, *, n_ranks: int = 2, storage: Storage = "own") -> Path:
        """Write a source.

        Args:
            folder: A new one.
            seed: Of the model.
            n_ranks: Of the checkpoint that it is, or is made of.
            storage: How the tensors lie in its ranks.

        Returns:
            The folder.
        """
        model = random_model(GQA, torch.bfloat16, seed)
        if not self.from_hugging_face:
            return save_checkpoint(folder, GQA, model, n_ranks, storage=storage)
        ranks = folder.with_name(f"{folder.name}-ranks")
        save_checkpoint(ranks, GQA, model, n_ranks, storage=storage)
        convert_checkpoint(ranks, folder, options=OPTIONS)
        return folder

    def job(self, source: Path) -> Job | ReverseJob:
        """Prepare the conversion."""
        if self.n_ranks:
            return plan_reverse(source, ReverseOptions(n_ranks=self.n_ranks, workers=1))
        return plan_conversion(source, OPTIONS)

    def run(self, source: Path, target: Path, how: RunOptions | None = None) -> ConversionReport:
        """Convert, by workers where there are some."""
        with ExitStack() as stack:
            executor = None if self.workers is None else stack.enter_context(self.workers())
            return run(self.job(source), target, how, executor=executor)

    def command(self, source: Path, target: Path, *more: str) -> list[str]:
        """Spell the command."""
        if not self.n_ranks:
            return command(source, target, *more)
        return [
            sys.executable, "-m", "codellama_convert", "reverse", "--input_dir", str(source),
            "--output_dir", str(target), "--ranks", str(self.n_ranks), "--quiet", *more,
        ]  # fmt: skip


FORWARD = Direction("ranks to Hugging Face", 0, from_hugging_face=False)
BACK = Direction("Hugging Face to ranks", 4, from_hugging_face=True)
ACROSS = Direction("ranks to ranks", 4, from_hugging_face=False)
DIRECTIONS = (FORWARD, BACK, ACROSS)
# Workers in the coordinator's own process: a kill takes all of them at once.
BY_WORKERS = replace(
    FORWARD, name="ranks to Hugging Face by workers", workers=partial(ThreadPoolExecutor, 2)
)
BACK_BY_WORKERS = replace(BACK, name="Hugging Face to ranks by workers", workers=BY_WORKERS.workers)
ACROSS_BY_WORKERS = replace(ACROSS, name="ranks to ranks by workers", workers=BY_WORKERS.workers)
# As many of them, and every step and call in its place.
BY_ORDERLY_WORKERS = replace(BY_WORKERS, workers=AtOnce)
