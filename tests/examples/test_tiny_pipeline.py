"""Our tokenizer in transformers' text-generation pipeline, with the trained Code Llama of examples/.

Version 4 decodes prompt and answer together, version 5 the answer alone.
"""

from __future__ import annotations

import warnings

import pytest
import torch

from codellama_convert import CodeLlamaTokenizer
from tests.witness.tiny import DOCUMENTED_MIDDLE, DOCUMENTED_PREFIX, DOCUMENTED_SUFFIX

# The call of the model's documentation, which does not stop at ▁<EOT>. Its return_type=1 is no longer
# taken by either version: it ends in an UnboundLocalError with every tokenizer.
DOCUMENTED = {"max_new_tokens": 128}


@pytest.fixture(scope="module")
def generator(tiny_folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import pipeline

        tokenizer = CodeLlamaTokenizer.from_pretrained(tiny_folder)
        return pipeline(
            "text-generation", model=str(tiny_folder), tokenizer=tokenizer, do_sample=False
        )


def texts(results):
    return [one["generated_text"] for one in results]


@pytest.mark.parametrize("told", [{}, {"do_sample": False}])
def test_a_pipeline_draws_its_tokens_unless_told_not_to(generator, told):
    """One in fifty times a filling was another: most often it ended too early."""
    from transformers import pipeline

    one = pipeline("text-generation", model=generator.model, tokenizer=generator.tokenizer, **told)
    with torch.random.fork_rng():
        before = torch.get_rng_state().tolist()
        one("def f", max_new_tokens=1)
        assert (torch.get_rng_state().tolist() == before) == bool(told)


def test_the_documented_pipeline_fills_the_gap(generator):
    """It ended in a TypeError: decode() knew no clean_up_tokenization_spaces."""
    prompt = f"{DOCUMENTED_PREFIX}<FILL_ME>{DOCUMENTED_SUFFIX}"
    found = generator(prompt, **DOCUMENTED, return_full_text=False)
    assert texts(found) == [DOCUMENTED_MIDDLE]
    assert texts(generator(prompt, **DOCUMENTED)) == [prompt + DOCUMENTED_MIDDLE]


def test_the_pipeline_fills_every_function_and_stops_where_the_filling_ends(generator, training):
    prompts = [f"{one.prefix}<FILL_ME>{one.suffix}" for one in training.FILLINGS]
    stop = [generator.tokenizer.eos_token_id, generator.tokenizer.eot_id]
    generator.tokenizer.pad_token_id = generator.model.config.eos_token_id
    for batch_size in (1, 4):
        found = generator(
            prompts,
            max_new_tokens=128,
            eos_token_id=stop,
            return_full_text=False,
            batch_size=batch_size,
        )
        assert [texts(one) for one in found] == [[one.middle] for one in training.FILLINGS]


def test_the_pipeline_resumes_a_function(generator, training):
    """Without <FILL_ME> it is plain text; the answer begins with a line break."""
    factorial = next(one for one in training.FILLINGS if one.name == "factorial")
    found = texts(generator("def factorial(n: int) -> int:", max_new_tokens=120))
    assert [text.rstrip() for text in found] == [factorial.source.rstrip()]
