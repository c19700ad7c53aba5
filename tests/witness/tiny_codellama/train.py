"""Train a Code Llama small enough to ship, and write it as Meta would ship it.

Usage:
    python -m tests.witness.tiny_codellama.train           # trains, writes examples/tiny-codellama
    python -m tests.witness.tiny_codellama.train --check   # does the shipped model fill every gap?

Needs torch, sentencepiece and numpy, five minutes of one core and 1 GB of memory.
The same processor and torch give the same bytes again; another processor or torch rounds otherwise,
and so ends at other weights, equally good. The shipped ones need not be those that yours makes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from torch.nn import functional

from tests.witness.tiny_codellama.functions import FILLINGS, Filling, other_split, suffix_forms
from tests.witness.tiny_codellama.model import (
    Params,
    Weights,
    forward,
    initial_weights,
    rotary_frequencies,
    tensor_rules,
)
from tests.witness.tiny_codellama.tokenizer import (
    EOT,
    ORDERS,
    Order,
    decode_infilling,
    infilling_answer,
    infilling_prompt,
    train_tokenizer,
)

FOLDER = Path(__file__).resolve().parents[3] / "examples" / "tiny-codellama"
PARAMS = Params()
SEED = 6
N_RANKS = 2
N_THREADS = 1  # steps this small gain nothing from more, and sums keep their order on any machine
N_STEPS = 450
N_OTHER_SPLITS = 12  # per step, beside the documented ones; each in both orders
PEAK_RATE = 4e-3
LONGEST_ANSWER = 256
IGNORED = -100  # torch's own value for targets that count for nothing


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids to learn: `prompt` is given, `answer` is learned."""

    prompt: list[int]
    answer: list[int]


def infilling_examples(tokenizer: Any, fillings: Sequence[Filling]) -> list[Example]:
    """Encode each filling in both infilling orders."""
    return [
        Example(
            infilling_prompt(tokenizer, filling.prefix, filling.suffix, order),
            infilling_answer(tokenizer, filling),
        )
        for filling in fillings
        for order in ORDERS
    ]


def completion_examples(tokenizer: Any, fillings: Sequence[Filling]) -> list[Example]:
    """Encode each function from left to right; all but its first line is learned."""
    examples = []
    for filling in fillings:
        whole = [tokenizer.bos_id(), *tokenizer.encode(filling.source), tokenizer.eos_id()]
        n_given = whole.index(tokenizer.piece_to_id("<0x0A>"))
        examples.append(Example(whole[:n_given], whole[n_given:]))
    return examples


def padded(examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay examples out as rows.

    Args:
        examples: What to learn.

    Returns:
        The tokens, and for each the token to be told next, or `IGNORED`.
    """
    width = max(len(example.prompt) + len(example.answer) for example in examples) - 1
    tokens = torch.zeros((len(examples), width), dtype=torch.long)
    targets = torch.full_like(tokens, IGNORED)
    for row, example in enumerate(examples):
        whole = example.prompt + example.answer
        tokens[row, : len(whole) - 1] = torch.tensor(whole[:-1])
        targets[row, len(example.prompt) - 1 : len(whole) - 1] = torch.tensor(example.answer)
    return tokens, targets


def learning_rate(step: int, n_steps: int) -> float:
    """Rise for 30 steps, then fall along a cosine to a thirtieth."""
    rise = min(1.0, (step + 1) / 30)
    fall = (1 + math.cos(math.pi * step / n_steps)) / 2
    return PEAK_RATE * rise * (0.03 + 0.97 * fall)


def train(params: Params, tokenizer: Any, n_steps: int) -> dict[str, torch.Tensor]:
    """Learn every function by heart.

    Each step sees all documented splits in both orders, with the suffix forms by turns, all
    functions from left to right, and a few other splits; the latter make the model look at where
    the gap begins and ends.

    Args:
        params: The model's sizes.
        tokenizer: The trained tokenizer.
        n_steps: Optimiser steps.

    Returns:
        Whole float32 tensors under Meta's names.
    """
    rng = np.random.default_rng(SEED)
    seeded = torch.Generator().manual_seed(SEED)
    weights = initial_weights(params, tokenizer.get_piece_size(), seeded)
    for tensor in weights.values():
        tensor.requires_grad_()
    optimizer = torch.optim.AdamW(weights.values(), betas=(0.9, 0.98), weight_decay=0.1)
    turns = [
        infilling_examples(tokenizer, fillings) + completion_examples(tokenizer, FILLINGS)
        for fillings in zip(*map(suffix_forms, FILLINGS), strict=True)
    ]
    for step in range(n_steps):
        chosen = rng.integers(len(FILLINGS), size=N_OTHER_SPLITS)
        others = [other_split(FILLINGS[index], rng) for index in chosen]
        tokens, targets = padded(turns[step % len(turns)] + infilling_examples(tokenizer, others))
        logits = forward(params, weights, tokens)
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate(step, n_steps)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step:4d}  loss {loss.item():.5f}", flush=True)
    return {name: tensor.detach() for name, tensor in weights.items()}


def rank_tensors(params: Params, weights: Weights, rank: int) -> dict[str, torch.Tensor]:
    """Take one rank's part of every tensor, in bfloat16, and Meta's rotary buffer."""
    rules = tensor_rules(params, weights["output.weight"].shape[0])
    part = {
        # A clone owns its storage: torch.save writes the whole storage of a view.
        name: (weights[name] if split is None else weights[name].chunk(N_RANKS, split)[rank])
        .bfloat16()
        .clone(memory_format=torch.contiguous_format)
        for name, (_, split) in rules.items()
    }
    return part | {"rope.freqs": rotary_frequencies(params).bfloat16()}


def write_checkpoint(folder: Path, params: Params, weights: Weights, tokenizer: bytes) -> None:
    """Write the ranks, params.json, tokenizer.model and checklist.chk, as Meta lays them out.

    Args:
        folder: Where to; made if it is not there.
        params: The model's sizes.
        weights: Whole tensors under Meta's names.
        tokenizer: The bytes of tokenizer.model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"consolidated.{rank:02d}.pth" for rank in range(N_RANKS)]
    for rank, name in enumerate(names):
        torch.save(rank_tensors(params, weights, rank), folder / name)
    (folder / "params.json").write_text(json.dumps(asdict(params)) + "\n")
    (folder / "tokenizer.model").write_bytes(tokenizer)
    digests = (
        (hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest(), name)
        for name in (*names, "params.json", "tokenizer.model")
    )
    (folder / "checklist.chk").write_text("".join(f"{md5}  {name}\n" for md5, name in digests))


def read_checkpoint(folder: Path) -> tuple[Params, dict[str, torch.Tensor], Any]:
    """Read what `write_checkpoint` wrote.

    Args:
        folder: The checkpoint's folder.

    Returns:
        The sizes, the whole tensors in float32, and the tokenizer.
    """
    params = Params(**json.loads((folder / "params.json").read_text()))
    ranks = [
        # Not read through the package: a witness uses its own eyes.
        torch.load(path, weights_only=True)
        for path in sorted(folder.glob("consolidated.*.pth"))
    ]
    rules = tensor_rules(params, ranks[0]["tok_embeddings.weight"].shape[0])
    weights = {
        name: (
            ranks[0][name] if split is None else torch.cat([rank[name] for rank in ranks], split)
        ).float()
        for name, (_, split) in rules.items()
    }
    model_file = str(folder / "tokenizer.model")
    return params, weights, sentencepiece.SentencePieceProcessor(model_file=model_file)


@torch.no_grad()
def fill(
    params: Params, weights: Weights, tokenizer: Any, *, prefix: str, suffix: str, order: Order
) -> str:
    """Fill the gap between `prefix` and `suffix`, greedily, up to `▁<EOT>`."""
    tokens = infilling_prompt(tokenizer, prefix, suffix, order)
    n_given, end = len(tokens), tokenizer.piece_to_id(EOT)
    while len(tokens) < n_given + LONGEST_ANSWER:
        told = int(forward(params, weights, torch.tensor([tokens]))[0, -1].argmax())
        if told == end:
            break
        tokens.append(told)
    return decode_infilling(tokenizer, tokens[n_given:])


@torch.no_grad()
def least_gaps(params: Params, weights: Weights, examples: Sequence[Example]) -> list[float]:
    """Measure how far the right token leads over the next best, at its closest, per example.

    Args:
        params: The model's sizes.
        weights: Whole tensors under Meta's names.
        examples: Prompts with their right answers.

    Returns:
        The least lead in logits; above 0, greedy decoding gives the answer token for token.
    """
    tokens, targets = padded(examples)
    logits = forward(params, weights, tokens)
    counted, right = targets != IGNORED, targets.clamp(min=0).unsqueeze(-1)
    lead = logits.gather(-1, right).squeeze(-1) - logits.scatter(-1, right, -math.inf).amax(-1)
    least: list[float] = lead.masked_fill(~counted, math.inf).amin(-1).tolist()
    return least


def check(folder: Path) -> bool:
    """Fill every function's gap in both orders, and print the outcome.

    Args:
        folder: The checkpoint's folder.

    Returns:
        Whether all were filled exactly.
    """
    params, weights, tokenizer = read_checkpoint(folder)
    leads = iter(least_gaps(params, weights, infilling_examples(tokenizer, FILLINGS)))
    outcomes = []
    for filling in FILLINGS:
        for order in ORDERS:
            gap = {"prefix": filling.prefix, "suffix": filling.suffix}
            told = fill(params, weights, tokenizer, **gap, order=order)
            outcomes.append(told == filling.middle)
            word = "filled" if outcomes[-1] else "WRONG "
            print(f"{word}  {order}  least lead {next(leads):5.2f}  {filling.name}")
    print(f"{sum(outcomes)} of {len(outcomes)} gaps filled exactly")
    return all(outcomes)


def main() -> int:
    """Train and write, unless only asked to check; then check. Return the exit status."""
    parser = argparse.ArgumentParser(description="Train the tiny Code Llama of examples/.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="checkpoint folder")
    parser.add_argument("--check", action="store_true", help="only check what is there")
    options = parser.parse_args()
    if options.check and not (options.folder / "params.json").is_file():
        parser.error(f"{options.folder} holds no params.json; without --check it is trained")
    torch.set_num_threads(N_THREADS)
    torch.use_deterministic_algorithms(mode=True)
    if not options.check:
        model = train_tokenizer([filling.source for filling in FILLINGS])
        tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model)
        weights = train(PARAMS, tokenizer, N_STEPS)
        write_checkpoint(options.folder, PARAMS, weights, model)
        print(f"trained and written in {time.process_time():.0f} s of processor time")
    return 0 if check(options.folder) else 1


if __name__ == "__main__":
    raise SystemExit(main())
