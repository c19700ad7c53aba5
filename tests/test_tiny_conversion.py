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
from tests.tiny import (
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
    tokenizer, model = auto_tokenizer(tiny_folder), load(tiny_folder)
    for one in training.FILLINGS:
        prompt = recipe_prompt(tokenizer, one.prefix, one.suffix, suffix_first=suffix_first)
        assert recipe_fill(model, tokenizer, prompt) == one.middle, one.name


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


def infilling_rows(training: Any) -> list[tuple[list[int], int]]:
    """Prompt and answer of every function in both orders, by the training script's own means."""
    import sentencepiece

    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(TINY / "tokenizer.model"))
    rows = []
    for one in training.FILLINGS:
        answer = [*tokenizer.encode("☺" + one.middle)[2:], tokenizer.piece_to_id("▁<EOT>")]
        for order in ("psm", "spm"):
            prompt = training.infilling_prompt(tokenizer, one.prefix, one.suffix, order)
            rows.append(([*prompt, *answer], len(prompt)))
    return rows


def test_transformers_gives_the_logits_of_the_training_scripts_forward_pass(tiny_folder, training):
    params = training.Params(**json.loads((TINY / "params.json").read_text()))
    ranks = [torch.load(TINY / f"consolidated.0{n}.pth", weights_only=True) for n in (0, 1)]
    weights = merged(ranks)
    exact, rounded = load(tiny_folder, "float32"), load(tiny_folder)
    assert rounded.dtype == torch.bfloat16
    wrong = training.Params(
        **(json.loads((TINY / "params.json").read_text()) | {"rope_theta": 1e4})
    )
    for ids, n_prompt in infilling_rows(training):
        tokens = torch.tensor([ids])
        with torch.no_grad():
            expected = training.forward(params, weights, tokens)
            found = exact(tokens).logits
            in_bfloat16 = rounded(tokens).logits.float()
            otherwise = training.forward(wrong, weights, tokens)
        assert (found - expected).abs().max() < 1e-3
        assert (in_bfloat16 - expected).abs().max() < 1.0
        answers = slice(n_prompt - 1, -1)
        told = expected[0, answers].argmax(1).tolist()
        assert told == ids[n_prompt:]
        assert found[0, answers].argmax(1).tolist() == told
        assert in_bfloat16[0, answers].argmax(1).tolist() == told
        # The control: one wrong number moves the logits by far more than any rounding.
        assert (otherwise - expected).abs().max() > 3.0
