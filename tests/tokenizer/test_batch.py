"""Lists of texts: padding, masks and tensors."""

from __future__ import annotations

import copy

import pytest

from codellama_convert import CodeLlamaTokenizer
from codellama_convert.errors import TokenizerError
from tests.witness.vocabularies import processor


def test_a_text_gives_lists_and_a_list_gives_lists_of_lists(tokenizer):
    one = tokenizer("hi")
    assert one["input_ids"] == [1, *processor("infilling").encode("hi")]
    assert one.input_ids is one["input_ids"]
    assert tokenizer(["hi"])["input_ids"] == [one.input_ids]
    assert tokenizer([])["input_ids"] == []
    assert tokenizer("")["input_ids"] == [1]
    assert list(one) == ["input_ids", "attention_mask"]


def test_padding_goes_left_with_eos_and_is_masked(tokenizer):
    """Generation continues after the last token; Meta's models have no padding token."""
    first = [1, *processor("infilling").encode("def")]
    second = [1, *processor("infilling").encode("x = value(1)")]
    missing = len(second) - len(first)
    assert missing > 0
    for padding in (True, "longest"):
        batch = tokenizer(["def", "x = value(1)"], padding=padding)
        assert batch.input_ids == [[2] * missing + first, second]
        assert batch.attention_mask == [[0] * missing + [1] * len(first), [1] * len(second)]


def test_padding_can_go_right_and_use_another_token(folder_of):
    tokenizer = CodeLlamaTokenizer.from_pretrained(folder_of("infilling"), padding_side="right")
    tokenizer.pad_token = "<unk>"
    assert tokenizer.pad_token_id == 0
    ids = [1, *processor("infilling").encode("def")]
    batch = tokenizer("def", padding="max_length", max_length=9)
    assert batch.input_ids == ids + [0] * (9 - len(ids))
    assert batch.attention_mask == [1] * len(ids) + [0] * (9 - len(ids))
    assert tokenizer("def def def def def", padding="max_length", max_length=2).input_ids == [
        1,
        *processor("infilling").encode("def def def def def"),
    ]


def test_padding_to_no_length_is_refused(tokenizer):
    with pytest.raises(TokenizerError, match="pass max_length"):
        tokenizer("a", padding="max_length")


@pytest.mark.parametrize("kind", ["np", "pt"])
def test_tensors_hold_the_same_ids(kind, tokenizer):
    lists = tokenizer(["def", "x = value(1)"], padding=True)
    tensors = tokenizer(["def", "x = value(1)"], padding=True, return_tensors=kind)
    for name in ("input_ids", "attention_mask"):
        assert tensors[name].tolist() == lists[name]
        assert str(tensors[name].dtype).endswith("int64")
    one = tokenizer("def", return_tensors=kind)
    assert tuple(one.input_ids.shape) == (1, len(tokenizer("def").input_ids))
    assert tokenizer.batch_decode(one.input_ids, skip_special_tokens=True) == ["def"]
    assert tokenizer.decode(one.input_ids[0]) == "<s> def"


def test_tensors_move_to_a_device(tokenizer):
    batch = tokenizer("def", return_tensors="pt").to("cpu")
    assert batch.input_ids.tolist() == [tokenizer("def").input_ids]
    assert set(batch) == {"input_ids", "attention_mask"}


def test_texts_of_unequal_length_do_not_fit_a_tensor(tokenizer):
    with pytest.raises(TokenizerError, match="pass padding=True"):
        tokenizer(["def", "x = value(1)"], return_tensors="np")
    assert tokenizer(["def", "def"], return_tensors="np").input_ids.shape[0] == 2


def test_an_unknown_kind_of_tensor_is_refused(tokenizer):
    with pytest.raises(TokenizerError, match="'tf'"):
        tokenizer("a", return_tensors="tf")


def test_the_padding_token_can_be_set_by_id(tokenizer):
    """As a pipeline with a batch_size asks for."""
    tokenizer = copy.copy(tokenizer)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == (None, None)
    tokenizer.pad_token_id = 2
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("</s>", 2)
    tokenizer.pad_token_id = None
    assert tokenizer.pad_token is None
    with pytest.raises(TokenizerError, match="id 926: the model has 926"):
        tokenizer.pad_token_id = 926
