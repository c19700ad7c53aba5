"""The same folder in transformers' own classes: what is exact, and upstream's faults as they are.

A fault is a strict xfail: the day upstream mends it, the test fails and the README can say so.
"""

from __future__ import annotations

import json

import pytest
import transformers

from codellama_convert.tokenizer.hf_files import tokenizer_files
from tests.tokenizer.test_infilling import meta_prompt
from tests.witness.texts import infilling_pairs, varied_texts
from tests.witness.vocabularies import model_bytes, processor, write_folder, write_model

V4 = transformers.__version__.startswith("4.")
V5 = not V4

only_in_4 = pytest.mark.skipif(V5, reason="transformers 5 has no such class or method")
fault_of_5 = pytest.mark.xfail(V5, reason="fault of transformers 5.23", raises=AssertionError)
fault_of_both = pytest.mark.xfail(
    reason="fault of transformers 4.57 and 5.23", raises=AssertionError
)

SLOW = ("LlamaTokenizer", "CodeLlamaTokenizer")


def texts_for(kind):
    """Leave out "<PRE>" and the like for slow classes: they find those pieces in plain ASCII too."""
    texts = varied_texts()
    return [t for t in texts if "<" not in t] if kind in SLOW and V4 else list(texts)


def expected_ids(name, texts):
    return [[1, *ids] for ids in processor(name).encode(texts)]


PLAIN_LOADERS = [
    *((kind, "infilling") for kind in ("AutoTokenizer", "PreTrainedTokenizerFast")),
    *((kind, name) for kind in ("AutoTokenizer",) for name in ("plain", "mistral_infilling")),
    *(
        pytest.param(kind, name, marks=fault_of_5)
        for kind, name in (
            ("LlamaTokenizerFast", "plain"),
            ("LlamaTokenizerFast", "infilling"),
            ("LlamaTokenizer", "plain"),
            ("LlamaTokenizer", "infilling"),
            ("CodeLlamaTokenizerFast", "infilling"),
            ("CodeLlamaTokenizer", "infilling"),
        )
    ),
]


@pytest.mark.parametrize(("kind", "name"), PLAIN_LOADERS)
def test_plain_text_gets_the_ids_of_sentencepiece(kind, name, load):
    """In 5.23 the Llama classes rebuild the file and lose Meta's prefix before a leading space."""
    texts = texts_for(kind)
    assert len(texts) > 3000 or kind in SLOW
    assert load(kind, name)(texts)["input_ids"] == expected_ids(name, texts)


@pytest.mark.parametrize("kind", ["LlamaTokenizer", "CodeLlamaTokenizer"])
def test_text_without_a_leading_space_is_exact_in_every_class(kind, load):
    texts = [t for t in texts_for(kind) if not t.startswith((" ", "▁")) and "<" not in t]
    assert len(texts) > 1500
    assert load(kind, "infilling")(texts)["input_ids"] == expected_ids("infilling", texts)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("AutoTokenizer", "infilling"),
        ("LlamaTokenizerFast", "infilling"),
        ("PreTrainedTokenizerFast", "infilling"),
        ("LlamaTokenizer", "infilling"),
        pytest.param("CodeLlamaTokenizer", "infilling", marks=fault_of_5),
        pytest.param("CodeLlamaTokenizerFast", "infilling", marks=fault_of_5),
    ],
)
def test_no_id_lies_beyond_the_embedding(kind, name, load):
    """5.23's CodeLlamaTokenizer gives <FILL_ME> an id of its own, one more than there are rows."""
    assert len(load(kind, name)) == processor(name).get_piece_size()


@pytest.mark.parametrize("kind", ["CodeLlamaTokenizer", "CodeLlamaTokenizerFast"])
def test_a_code_llama_class_invents_no_pieces_when_asked_for_by_name(kind, load):
    tokenizer = load("AutoTokenizer", "plain", tokenizer_class=kind)
    assert len(tokenizer) == processor("plain").get_piece_size()


@pytest.mark.parametrize(
    "tokenizer_class",
    [
        "PreTrainedTokenizerFast",
        pytest.param("LlamaTokenizer", marks=fault_of_5),
        pytest.param("CodeLlamaTokenizer", marks=fault_of_5),
        pytest.param("CodeLlamaTokenizerFast", marks=fault_of_5),
    ],
)
def test_auto_tokenizer_is_exact_by_class_as_the_notes_say(tokenizer_class, load):
    tokenizer = load("AutoTokenizer", "infilling", tokenizer_class=tokenizer_class)
    texts = list(varied_texts())
    assert tokenizer(texts)["input_ids"] == expected_ids("infilling", texts)


def without_class(files):
    """What was written before tokenizer_class had a default."""
    config = json.loads(files["tokenizer_config.json"])
    assert config.pop("tokenizer_class") == "PreTrainedTokenizerFast"
    return {**files, "tokenizer_config.json": json.dumps(config).encode()}


@pytest.fixture(scope="module")
def classless(model_of, tmp_path_factory):
    files = without_class(tokenizer_files(model_of("infilling"), flavor="base"))
    folder = write_folder(tmp_path_factory.mktemp("classless"), files)
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_generate_can_take_what_auto_tokenizer_returns(load, classless):
    for tokenizer in (load("AutoTokenizer", "infilling"), classless):
        assert set(tokenizer("x")) == {"input_ids", "attention_mask"}
        assert tokenizer.padding_side == "left"
        assert tokenizer.pad_token is None
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_a_folder_of_before_the_default_class_stays_exact(classless):
    texts = list(varied_texts())
    assert classless(texts)["input_ids"] == expected_ids("infilling", texts)


def test_auto_tokenizer_decodes_as_sentencepiece_does(load):
    ids = processor("infilling").encode(list(varied_texts()))
    found = load("AutoTokenizer", "infilling").batch_decode(ids)
    assert found == processor("infilling").decode(ids)


def test_auto_tokenizer_adds_no_eos_in_transformers_4(load, folder_of):
    """The price of the default class in 4.57, and the class there that has it."""
    folder = folder_of("infilling")
    ids = expected_ids("infilling", ["  x"])[0]
    auto = transformers.AutoTokenizer.from_pretrained(
        folder, add_eos_token=True, add_bos_token=True
    )
    assert auto("  x")["input_ids"] == (ids if V4 else [*ids, 2])
    if V4:
        llama = transformers.LlamaTokenizerFast.from_pretrained(folder, add_eos_token=True)
        assert llama("  x")["input_ids"] == [*ids, 2]


@only_in_4
def test_auto_tokenizer_is_fast_in_transformers_4_whatever_is_asked(folder_of):
    """The price of the default class in 4.57, and the class there that is slow."""
    folder = folder_of("infilling")
    assert transformers.AutoTokenizer.from_pretrained(folder, use_fast=False).is_fast
    slow = transformers.LlamaTokenizer.from_pretrained(folder)
    assert not slow.is_fast
    assert slow("  x")["input_ids"] == expected_ids("infilling", ["  x"])[0]


def test_auto_tokenizer_of_transformers_5_wants_both_ends_named(folder_of):
    """add_eos_token alone drops the token that begins a sequence there."""
    folder = folder_of("infilling")
    ids = expected_ids("infilling", ["x"])[0]
    alone = transformers.AutoTokenizer.from_pretrained(folder, add_eos_token=True)
    assert alone("x")["input_ids"] == (ids if V4 else [*ids[1:], 2])


def test_a_folder_without_a_config_loads(model_of, tmp_path):
    """For a tokenizer converted alone: there is no config.json that says model_type llama."""
    files = tokenizer_files(model_of("infilling"), flavor="base")
    folder = write_folder(tmp_path, files, config=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("  x")["input_ids"] == expected_ids("infilling", ["  x"])[0]


@only_in_4
def test_a_folder_without_a_config_needs_a_class(model_of, tmp_path, monkeypatch):
    """transformers guesses the model from its path, so the path must not spell "llama"."""
    files = without_class(tokenizer_files(model_of("infilling"), flavor="base"))
    folder = write_folder(tmp_path, files, config=False)
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match="config"):
        transformers.AutoTokenizer.from_pretrained(".")


def test_infilling_pieces_do_not_stay_in_a_filling(load):
    tokenizer = load("AutoTokenizer", "infilling")
    eot = tokenizer.convert_tokens_to_ids("▁<EOT>")
    ids = [*processor("infilling").encode("return x"), eot]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "return x"
    assert processor("infilling").decode(ids) == "return x <EOT>"


def both_sides():
    return [(a, b) for a, b in infilling_pairs() if a and b and "<" not in a + b]


def found_prompts(tokenizer, pairs):
    return [tokenizer(f"{a}<FILL_ME>{b}")["input_ids"] for a, b in pairs]


@fault_of_5
@pytest.mark.parametrize("kind", ["CodeLlamaTokenizer", "CodeLlamaTokenizerFast"])
def test_code_llama_classes_infill_between_two_texts(kind, load):
    """5.23 puts a leading space before most suffixes."""
    pairs = both_sides()
    assert len(pairs) > 300
    found = found_prompts(load(kind, "infilling"), pairs)
    assert found == [meta_prompt("infilling", *pair, suffix_first=False) for pair in pairs]


@fault_of_both
@pytest.mark.parametrize("kind", ["CodeLlamaTokenizer", "CodeLlamaTokenizerFast"])
def test_code_llama_classes_infill_before_an_empty_suffix(kind, load):
    """They take it for plain text and leave the infilling pieces out."""
    found = load(kind, "infilling")("a<FILL_ME>")["input_ids"]
    assert found == meta_prompt("infilling", "a", "", suffix_first=False)


@fault_of_both
def test_the_fast_code_llama_class_infills_after_an_empty_prefix(load):
    """It puts a space there."""
    found = load("CodeLlamaTokenizerFast", "infilling")("<FILL_ME>a")["input_ids"]
    assert found == meta_prompt("infilling", "", "a", suffix_first=False)


@fault_of_both
def test_the_fast_code_llama_class_infills_in_a_list(load):
    found = load("CodeLlamaTokenizerFast", "infilling")(["a<FILL_ME>b"])["input_ids"]
    assert found == [meta_prompt("infilling", "a", "b", suffix_first=False)]


def test_what_auto_tokenizer_saves_again_still_names_an_exact_class(load, tmp_path):
    """What LlamaTokenizerFast of 4.57 saves loses a leading space in 5; 4.57 has not heard of 5's."""
    load("AutoTokenizer", "infilling").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_bytes())
    assert config["tokenizer_class"] == ("PreTrainedTokenizerFast" if V4 else "TokenizersBackend")
    texts = list(varied_texts()[:500])
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again(texts)["input_ids"] == expected_ids("infilling", texts)


def test_special_tokens_map_is_not_needed(model_of, tmp_path):
    """It is written for old readers; without it nothing changes."""
    files = tokenizer_files(model_of("infilling"), flavor="base")
    del files["special_tokens_map.json"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(write_folder(tmp_path, files))
    texts = list(varied_texts()[:500])
    assert tokenizer(texts)["input_ids"] == expected_ids("infilling", texts)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == (
        "<s>",
        "</s>",
        "<unk>",
    )


@pytest.mark.skipif(V4, reason="transformers 4 converts a bare tokenizer.model rightly")
def test_a_bare_tokenizer_model_is_wrong_in_transformers_5(tmp_path):
    """Negative control, and why tokenizer.model is never shipped alone."""
    write_model(tmp_path, model_bytes("infilling"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = list(varied_texts())
    found = tokenizer(texts)["input_ids"]
    expected = expected_ids("infilling", texts)
    assert sum(a != b for a, b in zip(found, expected, strict=True)) > 3000


def test_a_key_that_must_be_absent_is_found_harmful(model_of, tmp_path):
    """Negative control: fill_token in the config gives transformers 5 an id beyond the embedding."""
    files = tokenizer_files(model_of("infilling"), flavor="base")
    config = json.loads(files["tokenizer_config.json"])
    config |= {"fill_token": "<FILL_ME>", "extra_special_tokens": {"fill_token": "<FILL_ME>"}}
    files["tokenizer_config.json"] = json.dumps(config).encode()
    tokenizer = transformers.AutoTokenizer.from_pretrained(write_folder(tmp_path, files))
    assert len(tokenizer) == 927
