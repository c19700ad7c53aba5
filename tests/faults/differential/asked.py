"""The options of a run: drawn at random, spelled as arguments."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tests.faults.differential.bits import KINDS
from tests.faults.differential.sources import Checkpoint

_CLASSES = (
    "CodeLlamaTokenizer", "CodeLlamaTokenizerFast", "LlamaTokenizer", "PreTrainedTokenizerFast",
)  # fmt: skip
_SIZES = {1: ("7B", "7Bf"), 2: ("13B", "13Bf"), 4: ("30B", "34B"), 8: ("65B", "70B", "70Bf")}
_LEAST_RAM = 200_000  # for one worker and the largest head of these models


@dataclass(frozen=True)
class Asked:
    """What a run is asked for.

    Attributes:
        dtype: Of the output; None keeps the checkpoint's.
        shard_bytes: Largest file.
        context: Positions, where they are given.
        variant: What the model was tuned for, where it is given.
        model_size: What the checkpoint is said to be.
        tokenizer: Lies beside the ranks, is named, is skipped, or is all that is converted.
        tokenizer_class: What tokenizer_config.json is to name.
        sha256: Whether the record gets digests.
        card: Whether README.md is written.
        verify: Whether the output is verified before it is published.
        json: Whether the result is printed for machines.
        overwrite: Whether an older model may go.
        restart: Whether staged work is dropped.
        speed: Options that change no byte.
    """

    dtype: str | None = None
    shard_bytes: int = 5_000_000_000
    context: int | None = None
    variant: str | None = None
    model_size: str | None = None
    tokenizer: Literal["beside", "named", "skip", "only"] = "beside"
    tokenizer_class: str | None = None
    sha256: bool = False
    card: bool = False
    verify: bool = False
    json: bool = False
    overwrite: bool = False
    restart: bool = False
    speed: tuple[str, ...] = ()

    @property
    def class_name(self) -> str:
        """What tokenizer_config.json names, if there is one."""
        return self.tokenizer_class or _CLASSES[-1]

    def arguments(self, source: Path, target: Path) -> Iterator[str]:
        """Spell the command line."""
        yield from ("--input_dir", str(source), "--output_dir", str(target), "--quiet")
        yield from self._of_the_model()
        if self.tokenizer == "skip":
            yield "--skip_tokenizer"
        if self.tokenizer == "only":
            yield from ("--model_size", "tokenizer_only")
        if self.tokenizer == "named":
            yield from ("--tokenizer_model", str(source / "tokenizer.model"))
        for flag, wanted in (
            ("--sha256", self.sha256),
            ("--model_card", self.card),
            ("--verify", self.verify),
            ("--json", self.json),
            ("--overwrite", self.overwrite),
            ("--restart", self.restart),
        ):
            if wanted:
                yield flag
        yield from self.speed

    def _of_the_model(self) -> Iterator[str]:
        for flag, value in (
            ("--dtype", self.dtype),
            (
                "--max_shard_size",
                None if self.shard_bytes == 5_000_000_000 else f"{self.shard_bytes}B",
            ),
            ("--max_position_embeddings", self.context),
            ("--variant", self.variant),
            ("--model_size", self.model_size),
            ("--tokenizer_class", self.tokenizer_class),
        ):
            if value is not None:
                yield from (flag, str(value))


def draw_asked(rng: random.Random, checkpoint: Checkpoint) -> Asked:
    """Draw options that fit a checkpoint."""
    asked = Asked(
        dtype=rng.choice((None, None, None, *(kind.name for kind in KINDS))),
        shard_bytes=_draw_shard_bytes(rng, checkpoint),
        context=rng.choice((None, None, 4096, 77)),
        variant=rng.choice((None, None, None, "base", "python", "instruct", "chat")),
        sha256=rng.random() < 0.2,
        card=rng.random() < 0.2,
        verify=rng.random() < 0.2,
        json=rng.random() < 0.3,
        speed=draw_speed(rng),
    )
    if rng.random() < 0.15:
        sizes = _SIZES.get(len(checkpoint.ranks))
        asked = replace(asked, model_size=rng.choice(sizes) if sizes else None)
    if checkpoint.tokenizer is None:
        return replace(asked, tokenizer="skip")
    tokenizer: Literal["beside", "named", "skip", "only"] = rng.choices(
        ("beside", "named", "skip", "only"), (6, 1, 1, 1)
    )[0]
    asked = replace(asked, tokenizer=tokenizer)
    if tokenizer == "only":
        asked = replace(asked, dtype=None, model_size=None, card=False)
    if tokenizer != "skip" and rng.random() < 0.2:
        asked = replace(asked, tokenizer_class=rng.choice(_CLASSES))
    return asked


def _draw_shard_bytes(rng: random.Random, checkpoint: Checkpoint) -> int:
    """Draw a size that gives one file, or up to some dozens."""
    if rng.random() < 0.15:
        return 5_000_000_000
    n_bytes = sum(len(rank.raw) for rank in checkpoint.ranks)
    return max(1, int(n_bytes * rng.choice((1.1, 0.6, 0.3, 0.15, 0.05, 0.0))))


def draw_speed(rng: random.Random) -> tuple[str, ...]:
    """Draw options that change no byte."""
    workers = rng.choice((1, 1, 2, 3))
    speed = ["--workers", str(workers), "--io", rng.choice(("auto", "buffered", "buffered"))]
    if rng.random() < 0.5:
        speed += ["--max_ram", f"{workers * rng.choice((_LEAST_RAM, 2 * _LEAST_RAM))}B"]
    return tuple(speed)


def change(rng: random.Random, asked: Asked, checkpoint: Checkpoint) -> Asked:
    """Change an option between two runs."""
    changes: list[dict[str, Any]] = [
        {"restart": True},
        {"overwrite": True},
        {"speed": draw_speed(rng)},
        {"sha256": not asked.sha256},
        {"verify": not asked.verify},
        {"shard_bytes": _draw_shard_bytes(rng, checkpoint)},
        {"context": (asked.context or 0) + 1},
    ]
    if asked.tokenizer != "only":
        changes += [{"dtype": rng.choice([kind.name for kind in KINDS])}, {"card": not asked.card}]
    return replace(asked, **rng.choice(changes))
