"""Llama 3 in transformers computes what Meta's formula does, far into the context too.

The rotary scaling shows beyond some 80,000 positions only, so short prompts prove nothing of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from codellama_convert import Options, convert_checkpoint
from tests.witness.checkpoints import Shape, State, random_model
from tests.witness.llama3_ranks import (
    EMBEDDING,
    HEADS_OF_64,
    HEADS_OF_128,
    SIXTEEN,
    llama_3_ranks,
    save_llama_3,
    scaled_frequencies,
)
from tests.witness.meta_forward import meta_logits

TOLERANCE, CLEARLY_WRONG = 1e-4, 1e-2  # logits are of order one
POSITIONS = torch.cat([start + torch.arange(4) for start in (0, 9_000, 100_000)])
TOKENS = torch.randint(0, 320, (12,), generator=torch.Generator().manual_seed(7))

pytestmark = pytest.mark.transformers


def converted(folder: Path, shape: Shape, n_ranks: int, factor: float | None) -> tuple[Path, State]:
    """Convert a random model in float32, as strongly attending as positions must show."""
    state = random_model(shape, torch.float32, seed=3)
    for name in state:
        if name.endswith(("wq.weight", "wk.weight")):
            state[name] *= 3
    source = save_llama_3(folder / "in", shape, state, n_ranks, scaled=factor is not None)
    options = Options(skip_tokenizer=True, rope_scaling_factor=factor)
    convert_checkpoint(source, folder / "out", options=options)
    return folder / "out", state


def logits_of(folder: Path) -> torch.Tensor:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        # Without a mask, transformers 5 takes a gap between positions for the end of a text.
        found: torch.Tensor = model(
            TOKENS[None],
            position_ids=POSITIONS[None],
            attention_mask=torch.ones(1, len(TOKENS), dtype=torch.long),
        ).logits[0]
    return found


def wanted_of(state: State, shape: Shape, factor: float | None) -> torch.Tensor:
    frequencies = None if factor is None else scaled_frequencies(shape.head_dim, 500000.0, factor)
    return meta_logits(
        state, shape, TOKENS, rope_theta=500000.0, frequencies=frequencies, positions=POSITIONS
    )


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    said = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(said), encoding="utf-8")


@pytest.mark.parametrize(
    ("shape", "n_ranks", "factor"),
    [
        (HEADS_OF_64, 1, 32.0),
        (HEADS_OF_128, 2, 8.0),
        (HEADS_OF_128, 1, None),
        (SIXTEEN, 16, 8.0),
    ],
    ids=str,
)
def test_transformers_computes_what_metas_formula_does(
    tmp_path: Path, shape: Shape, n_ranks: int, factor: float | None
) -> None:
    folder, state = converted(tmp_path, shape, n_ranks, factor)
    difference = (logits_of(folder) - wanted_of(state, shape, factor)).abs().max()
    assert difference < TOLERANCE


def test_another_factor_and_none_are_told_apart(tmp_path: Path) -> None:
    """Negative controls: both load without a word."""
    folder, state = converted(tmp_path, HEADS_OF_64, 1, 32.0)
    wanted = wanted_of(state, HEADS_OF_64, 32.0)
    scaling = json.loads((folder / "config.json").read_text(encoding="utf-8"))["rope_scaling"]
    for wrong in (scaling | {"factor": 8.0}, None):
        change_config(folder, rope_scaling=wrong)
        assert (logits_of(folder) - wanted).abs().max() > CLEARLY_WRONG
    change_config(folder, rope_scaling=scaling)
    assert (logits_of(folder) - wanted).abs().max() < TOLERANCE


def test_an_embedding_that_is_joined_on_the_wrong_side_is_told_apart(tmp_path: Path) -> None:
    """As a converter does that takes the ranks for Llama 2's: the shape can be mended, too."""
    folder, state = converted(tmp_path, HEADS_OF_128, 2, 8.0)
    ranks = llama_3_ranks(state, 2, HEADS_OF_128)
    wrong = torch.cat([rank[EMBEDDING] for rank in ranks], 1).view(HEADS_OF_128.vocab, -1)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] = wrong.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    wanted = wanted_of(state, HEADS_OF_128, 8.0)
    assert (logits_of(folder) - wanted).abs().max() > CLEARLY_WRONG
