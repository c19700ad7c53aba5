"""The trained Code Llama in examples/ means the same after its conversion: it fills what it learned.

Random weights prove bytes; this proves what they mean. test_tiny_controls.py shows what it notices.
"""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch

from codellama_convert import CodeLlamaTokenizer
from examples.infill import PROMPT, fill
from tests.witness.tiny import (
    DOCUMENTED_MIDDLE,
    TINY,
    auto_tokenizer,
    fill_all,
    load,
    merged,
    recipe_fill,
    recipe_prompt,
)

# --- the documented example -----------------------------------------------------------------------


@pytest.mark.parametrize("suffix_first", [False, True])
def test_the_documented_example_is_filled_in(tiny_folder, suffix_first):
    tokenizer = CodeLlamaTokenizer.from_pretrained(tiny_folder)
    filling = fill(load(tiny_folder), tokenizer, PROMPT, suffix_first=suffix_first)
    assert filling == DOCUMENTED_MIDDLE


@pytest.mark.parametrize("suffix_first", [False, True])
def test_every_function_is_filled_in_with_our_tokenizer(tiny_folder, training, suffix_first):
    tokenizer = CodeLlamaTokenizer.from_pretrained(tiny_folder)
    told = fill_all(load(tiny_folder), tokenizer, training.FILLINGS, suffix_first=suffix_first)
    assert len(told) == 12
    assert told == [one.middle for one in training.FILLINGS]


@pytest.mark.parametrize("suffix_first", [False, True])
def test_every_function_is_filled_in_with_auto_tokenizer(tiny_folder, training, suffix_first):
    tokenizer = auto_tokenizer(tiny_folder)
    prompts = [
        recipe_prompt(tokenizer, one.prefix, one.suffix, suffix_first=suffix_first)
        for one in training.FILLINGS
    ]
    told = recipe_fill(load(tiny_folder), tokenizer, prompts)
    assert told == [one.middle for one in training.FILLINGS]


def test_a_pipeline_goes_on_with_a_function(tiny_folder, training):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import pipeline

        generate = pipeline("text-generation", model=str(tiny_folder), device="cpu")
    first_line = "def factorial(n: int) -> int:"
    factorial = next(one for one in training.FILLINGS if one.name == "factorial")
    assert factorial.source.startswith(first_line)
    told = generate(first_line, do_sample=False, max_new_tokens=120)
    assert told[0]["generated_text"].rstrip() == factorial.source.rstrip()


# --- the same model -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(training) -> list[tuple[list[int], int]]:
    """Every function in both infilling orders and from left to right: ids, and how many are given.

    Encoded by the training script's own means.
    """
    import sentencepiece

    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(TINY / "tokenizer.model"))
    found = []
    for one in training.FILLINGS:
        answer = [*tokenizer.encode("☺" + one.middle)[2:], tokenizer.piece_to_id("▁<EOT>")]
        for order in ("psm", "spm"):
            prompt = training.infilling_prompt(tokenizer, one.prefix, one.suffix, order)
            found.append(([*prompt, *answer], len(prompt)))
        whole = [1, *tokenizer.encode(one.source), 2]
        found.append((whole, whole.index(tokenizer.piece_to_id("<0x0A>"))))
    return found


@pytest.fixture(scope="module")
def meta_logits_of(training, rows) -> Any:
    """The training script's forward pass over the original ranks, with sizes to be varied."""
    params = json.loads((TINY / "params.json").read_text())
    ranks = [torch.load(TINY / f"consolidated.0{n}.pth", weights_only=True) for n in (0, 1)]
    weights = merged(ranks)

    def logits(**changed: float) -> list[torch.Tensor]:
        sizes = training.Params(**(params | changed))
        with torch.no_grad():
            return [training.forward(sizes, weights, torch.tensor([ids]))[0] for ids, _ in rows]

    return logits


def transformers_logits(model: Any, rows: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits[0].float() for ids, _ in rows]


def differences(some: list[torch.Tensor], others: list[torch.Tensor]) -> list[float]:
    """How far two models' logits are apart, on every row."""
    return [(one - other).abs().max().item() for one, other in zip(some, others, strict=True)]


# Logits reach 17 here. Measured with torch 2.13: 1.1e-5 apart in float32, 0.17 in bfloat16.
FLOAT32_ROUNDING, BFLOAT16_ROUNDING = 1e-4, 0.5


def test_transformers_gives_the_logits_of_the_training_scripts_forward_pass(
    tiny_folder, rows, meta_logits_of
):
    expected = meta_logits_of()
    assert len(expected) == 3 * 12
    exact, rounded = load(tiny_folder, "float32"), load(tiny_folder)
    assert rounded.dtype == torch.bfloat16
    found, in_bfloat16 = (transformers_logits(model, rows) for model in (exact, rounded))
    assert max(differences(found, expected)) < FLOAT32_ROUNDING
    assert max(differences(in_bfloat16, expected)) < BFLOAT16_ROUNDING
    for (ids, n_given), *logits in zip(rows, expected, found, in_bfloat16, strict=True):
        for one in logits:  # greedy decoding tells the answer, token for token
            assert one[n_given - 1 : -1].argmax(1).tolist() == ids[n_given:]


@pytest.mark.parametrize(
    ("changed", "visible_in_bfloat16"),
    [
        ({"rope_theta": 1.01e6}, False),
        ({"norm_eps": 1e-6}, False),
        ({"rope_theta": 5e5}, True),
    ],
)
def test_a_small_fault_moves_the_logits_by_more_than_rounding(
    meta_logits_of, changed, visible_in_bfloat16
):
    """The control: on every row, ten times what is let pass."""
    moved = min(differences(meta_logits_of(**changed), meta_logits_of()))
    assert moved > 10 * FLOAT32_ROUNDING
    assert (moved > 3 * BFLOAT16_ROUNDING) is visible_in_bfloat16
