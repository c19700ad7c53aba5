"""The documented methods of transformers' own classes, on the same folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from tests.tokenizer.test_transformers_loaders import V4, expected_ids, only_in_4
from tests.witness.vocabularies import model_bytes


@only_in_4
@pytest.mark.parametrize(
    "kind",
    [
        "LlamaTokenizerFast",
        "LlamaTokenizer",
        "CodeLlamaTokenizer",
        pytest.param(
            "CodeLlamaTokenizerFast",
            marks=pytest.mark.xfail(
                V4, reason="fault of transformers 4.57: it adds an id to a list", raises=TypeError
            ),
        ),
    ],
)
def test_build_inputs_with_special_tokens_works_in_transformers_4(kind, load):
    tokenizer = load(kind, "infilling")
    assert tokenizer.build_inputs_with_special_tokens([7, 8]) == [1, 7, 8]
    assert tokenizer.build_inputs_with_special_tokens([7], [8]) == [1, 7, 1, 8]


@only_in_4
@pytest.mark.parametrize(
    ("kind", "types"),
    [
        ("LlamaTokenizer", [0, 0, 1, 1, 1]),
        ("CodeLlamaTokenizer", [0, 0, 1, 1, 1]),
        # The fast classes inherit a method that knows of no special tokens.
        ("LlamaTokenizerFast", [0, 1, 1]),
        ("CodeLlamaTokenizerFast", [0, 1, 1]),
    ],
)
def test_the_other_documented_methods_work_in_transformers_4(kind, types, load, tmp_path):
    tokenizer = load(kind, "infilling")
    mask = tokenizer.get_special_tokens_mask([1, 7, 8], already_has_special_tokens=True)
    assert mask == [1, 0, 0]
    assert tokenizer.create_token_type_ids_from_sequences([7], [8, 9]) == types
    (path,) = tokenizer.save_vocabulary(str(tmp_path))
    assert Path(path).read_bytes() == model_bytes("infilling")


@only_in_4
@pytest.mark.parametrize("kind", ["LlamaTokenizerFast", "CodeLlamaTokenizerFast"])
def test_update_post_processor_works_in_transformers_4(kind, folder_of):
    tokenizer = getattr(transformers, kind).from_pretrained(folder_of("infilling"))
    tokenizer.add_eos_token = True
    tokenizer.update_post_processor()
    assert tokenizer("def")["input_ids"] == [*expected_ids("infilling", ["def"])[0], 2]


def test_the_documented_methods_that_are_left_work_in_auto_tokenizer(load, tmp_path):
    tokenizer = load("AutoTokenizer", "infilling")
    mask = tokenizer.get_special_tokens_mask([1, 7, 8], already_has_special_tokens=True)
    assert mask == [1, 0, 0]
    assert tokenizer.get_vocab()["▁<PRE>"] == 917
    if V4:  # LlamaTokenizerFast has it there
        with pytest.raises(NotImplementedError):
            tokenizer.save_vocabulary(str(tmp_path))
    else:
        assert tokenizer.save_vocabulary(str(tmp_path))
