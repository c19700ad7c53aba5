"""`CodeLlamaTokenizer`: Meta's ids, and the interface that the model's documentation names."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import codellama_convert
from codellama_convert import CodeLlamaTokenizer
from codellama_convert.errors import TokenizerError
from tests.witness.texts import INFILLING_LITERALS, SPECIAL_LITERALS, varied_texts
from tests.witness.vocabularies import model_bytes, processor, write_model

# Ids of the trained model, read off by eye.
PRE, SUF, MID, EOT, STEP = 917, 918, 919, 920, 925


@pytest.mark.parametrize("name", ["plain", "infilling", "step_control", "stories", "mistral"])
def test_ids_and_texts_are_those_of_sentencepiece(name, folder_of):
    """Literal special tokens included: text stays text, as in Meta's code."""
    tokenizer = CodeLlamaTokenizer.from_pretrained(folder_of(name))
    texts = [*varied_texts(), *SPECIAL_LITERALS, *INFILLING_LITERALS]
    expected = processor(name).encode(texts)
    found = tokenizer(texts)
    assert found["input_ids"] == [[1, *ids] for ids in expected]
    assert found["attention_mask"] == [[1] * (len(ids) + 1) for ids in expected]
    assert tokenizer(texts, add_special_tokens=False)["input_ids"] == expected
    special = {PRE, SUF, MID, EOT} if name in ("infilling", "step_control") else set()
    plain = [ids for ids in expected if special.isdisjoint(ids)]
    assert len(plain) > 3000
    restored = processor(name).decode(plain)
    assert tokenizer.batch_decode(plain) == restored
    assert tokenizer.batch_decode([[1, *ids, 2] for ids in plain], skip_special_tokens=True) == (
        restored
    )


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(max_size=40))
def test_any_text_round_trips(text, tokenizer):
    if "<FILL_ME>" in text or "▁" in text:
        return
    ids = tokenizer.encode(text)
    assert ids == [1, *processor("infilling").encode(text)]
    if not set(ids) & {PRE, SUF, MID, EOT}:
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_loads_a_folder_and_a_bare_file(folder_of, tmp_path):
    folder = CodeLlamaTokenizer.from_pretrained(str(folder_of("infilling")))
    file = CodeLlamaTokenizer.from_pretrained(write_model(tmp_path, model_bytes("infilling")))
    assert folder.get_vocab() == file.get_vocab()
    assert len(folder) == folder.vocab_size == len(folder.get_vocab()) == 926


def test_a_name_on_a_hub_is_refused_as_a_missing_file():
    with pytest.raises(
        TokenizerError, match="codellama/CodeLlama-7b-hf: cannot open: No such file"
    ):
        CodeLlamaTokenizer.from_pretrained("codellama/CodeLlama-7b-hf")


def test_a_damaged_model_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match="truncated"):
        CodeLlamaTokenizer.from_pretrained(write_model(tmp_path, model_bytes("plain")[:-9]).parent)


def test_special_tokens_have_names_and_ids(tokenizer):
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<s>", 1)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("</s>", 2)
    assert (tokenizer.unk_token, tokenizer.unk_token_id) == ("<unk>", 0)
    assert (tokenizer.prefix_token, tokenizer.prefix_id) == ("▁<PRE>", PRE)
    assert (tokenizer.suffix_token, tokenizer.suffix_id) == ("▁<SUF>", SUF)
    assert (tokenizer.middle_token, tokenizer.middle_id) == ("▁<MID>", MID)
    assert (tokenizer.eot_token, tokenizer.eot_id) == ("▁<EOT>", EOT)
    assert (tokenizer.step_token, tokenizer.step_id) == (None, None)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == (None, None)
    assert tokenizer.all_special_ids == (0, 1, 2, PRE, SUF, MID, EOT)
    assert tokenizer.fill_token == "<FILL_ME>"


def test_pieces_that_the_model_lacks_are_none(folder_of):
    plain = CodeLlamaTokenizer.from_pretrained(folder_of("plain"))
    assert (plain.prefix_token, plain.prefix_id, plain.eot_token, plain.eot_id) == (None,) * 4
    step = CodeLlamaTokenizer.from_pretrained(folder_of("step"))
    assert (step.step_token, step.step_id) == ("<step>", STEP)


def test_a_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(TokenizerError, match="lone surrogate at 1"):
        tokenizer("a\ud800b")


def test_decoding_drops_the_space_of_a_first_word_only(tokenizer):
    ids = tokenizer.encode("return value", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁return", "▁value"]
    assert tokenizer.decode(ids) == "return value"
    assert tokenizer.decode(ids[1]) == "value"
    assert tokenizer.decode(tokenizer.encode("  x"), skip_special_tokens=True) == "  x"


def test_decoding_shows_special_tokens_unless_told_to_skip(tokenizer):
    ids = [1, PRE, *processor("infilling").encode("return value"), 2]
    assert tokenizer.decode(ids) == "<s> <PRE> return value</s>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "return value"
    assert tokenizer.decode([PRE]) == "<PRE>"


def test_a_filling_keeps_its_first_space_and_ends_where_the_model_says_so(tokenizer):
    """transformers 5's pipeline decodes the new ids alone, and knows no decode_infilling."""
    words = processor("infilling").encode("return value")
    assert tokenizer.decode([*words, EOT], skip_special_tokens=True) == " return value"
    assert tokenizer.decode([*words, EOT, *words, EOT, 2], skip_special_tokens=True) == (
        " return value"
    )
    assert tokenizer.decode([*words, 2], skip_special_tokens=True) == "return value"
    assert tokenizer.decode([*words, EOT]) == "return value <EOT>"
    # A text that spells the piece is no filling.
    assert tokenizer.decode([1, *words, EOT, *words], skip_special_tokens=True) == (
        "return value return value"
    )


def test_a_prompt_with_its_filling_begins_as_the_prompt_does(tokenizer):
    """transformers 4's pipeline decodes both, and cuts off as much as the prompt decodes to."""
    prompt = tokenizer.encode("def f():<FILL_ME> 1")
    answer = [*processor("infilling").encode("return"), EOT, 7]
    shown = tokenizer.decode(prompt, skip_special_tokens=True)
    assert shown == "def f(): 1"
    assert tokenizer.decode([2, *prompt, *answer], skip_special_tokens=True) == f"{shown} return"


def test_the_texts_own_spaces_are_never_cleaned_up(tokenizer):
    """A pipeline of transformers 4 asks for it; code would be damaged."""
    ids = tokenizer.encode("a , b . c ! 'll n't")
    for asked in (None, False, True):
        found = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=asked)
        assert found == "a , b . c ! 'll n't"
        assert tokenizer.batch_decode(
            [ids], skip_special_tokens=True, clean_up_tokenization_spaces=asked
        ) == [found]


@pytest.mark.parametrize("skip", [False, True])
def test_decoding_agrees_with_auto_tokenizer(skip, tokenizer, auto_of):
    texts = [text for text in varied_texts() if "\ufffd" not in text][:600]
    ids = [[1, *processor("infilling").encode(text), EOT, 2] for text in texts]
    expected = auto_of("infilling").batch_decode(ids, skip_special_tokens=skip)
    assert tokenizer.batch_decode(ids, skip_special_tokens=skip) == expected


def test_decoding_drops_metas_padding_and_refuses_other_ids(tokenizer):
    ids = tokenizer.encode("def", add_special_tokens=False)
    assert tokenizer.decode([*ids, -1, -1]) == "def"
    for wrong in (-2, 926):
        with pytest.raises(TokenizerError, match=f"id {wrong}: the model has 926"):
            tokenizer.decode([*ids, wrong])
    assert tokenizer.decode([925]) == "<EOT>" * 6


def test_tokens_and_ids_convert(tokenizer):
    assert tokenizer.convert_tokens_to_ids("▁<PRE>") == PRE
    assert tokenizer.convert_tokens_to_ids("no such piece") == 0
    assert tokenizer.convert_ids_to_tokens([1, PRE, 3]) == ["<s>", "▁<PRE>", "<0x00>"]
    assert tokenizer.tokenize("def\n") == ["▁def", "<0x0A>"]


@pytest.mark.parametrize(
    ("bos", "eos", "one", "two"),
    [
        (True, False, [1, 7, 8], [1, 7, 8, 1, 9]),
        (True, True, [1, 7, 8, 2], [1, 7, 8, 2, 1, 9, 2]),
        (False, True, [7, 8, 2], [7, 8, 2, 9, 2]),
        (False, False, [7, 8], [7, 8, 9]),
    ],
)
def test_special_tokens_masks_and_types_fit_together(bos, eos, one, two, folder_of):
    tokenizer = CodeLlamaTokenizer.from_pretrained(
        folder_of("plain"), add_bos_token=bos, add_eos_token=eos
    )
    assert tokenizer.build_inputs_with_special_tokens([7, 8]) == one
    assert tokenizer.build_inputs_with_special_tokens([7, 8], [9]) == two
    assert tokenizer.get_special_tokens_mask([7, 8]) == [int(n < 3) for n in one]
    assert tokenizer.get_special_tokens_mask([7, 8], [9]) == [int(n < 3) for n in two]
    assert tokenizer.get_special_tokens_mask(two, already_has_special_tokens=True) == [
        int(n < 3) for n in two
    ]
    types = tokenizer.create_token_type_ids_from_sequences([7, 8], [9])
    assert types == [0] * len(one) + [1] * (len(two) - len(one))
    assert tokenizer.create_token_type_ids_from_sequences([7, 8]) == [0] * len(one)
    assert tokenizer("").input_ids == [*([1] if bos else []), *([2] if eos else [])]


def test_the_vocabulary_is_saved_byte_for_byte(tokenizer, tmp_path):
    assert tokenizer.save_vocabulary(tmp_path) == (str(tmp_path / "tokenizer.model"),)
    assert (tmp_path / "tokenizer.model").read_bytes() == model_bytes("infilling")
    assert tokenizer.save_vocabulary(str(tmp_path), "x") == (str(tmp_path / "x-tokenizer.model"),)
    again = CodeLlamaTokenizer.from_pretrained(tmp_path / "x-tokenizer.model")
    assert again.get_vocab() == tokenizer.get_vocab()
    with pytest.raises(TokenizerError, match="No such file or directory"):
        tokenizer.save_vocabulary(tmp_path / "missing")


def test_a_tokenizer_travels_to_worker_processes(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again("a <FILL_ME> b").input_ids == tokenizer("a <FILL_ME> b").input_ids


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'CodeLamaTokenizer'"):
        _ = codellama_convert.CodeLamaTokenizer


def test_importing_the_package_imports_no_library():
    code = (
        "import sys, codellama_convert\n"
        "heavy = {'sentencepiece', 'numpy', 'torch', 'click'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "codellama_convert.CodeLlamaTokenizer\n"
        "assert 'sentencepiece' in sys.modules\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("texts", ["one", "batch"])
def test_the_documented_example_runs_on_a_small_model(texts, tokenizer):
    """Random weights: what is filled in means nothing, but every step of the example is taken."""
    with warnings.catch_warnings():
        # transformers and its libraries import deprecated names of each other.
        warnings.simplefilter("ignore", DeprecationWarning)
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": len(tokenizer)}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, bos_token_id=1, eos_token_id=2))
    prompts = ["def add(a):\n    <FILL_ME>\n", "x = <FILL_ME>"][: 1 if texts == "one" else 2]
    inputs = tokenizer(prompts, padding=True, return_tensors="pt")
    stop = [tokenizer.eos_token_id, tokenizer.eot_id]
    output = model.generate(
        **inputs, max_new_tokens=5, do_sample=False, eos_token_id=stop, pad_token_id=stop[0]
    )
    new = output[:, inputs.input_ids.shape[1] :]
    fillings = tokenizer.batch_decode(new, skip_special_tokens=True)
    assert len(fillings) == len(prompts)
    for prompt, row in zip(prompts, new, strict=True):
        assert "<FILL_ME>" not in prompt.replace("<FILL_ME>", tokenizer.decode_infilling(row))
