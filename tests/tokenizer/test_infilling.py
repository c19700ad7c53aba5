"""Infilling prompts equal Meta's: through our class, and through AutoTokenizer by the recipe.

Meta's format is spelled here after FACTS.md 5.3, with sentencepiece alone.
"""

from __future__ import annotations

import pytest

from codellama_convert import CodeLlamaTokenizer
from codellama_convert.errors import TokenizerError
from tests.witness.texts import infilling_pairs
from tests.witness.tiny import recipe_prompt
from tests.witness.vocabularies import processor

MODELS = ("infilling", "step", "mistral_infilling")


def meta_prompt(name: str, prefix: str, suffix: str, *, suffix_first: bool) -> list[int]:
    encode, number = processor(name).encode, processor(name).piece_to_id
    pre, suf, mid = number("▁<PRE>"), number("▁<SUF>"), number("▁<MID>")
    after = encode("☺" + suffix)[2:]
    if suffix_first:
        return [1, pre, suf, *after, mid, *encode(prefix)]
    return [1, pre, *encode(prefix), suf, *after, mid]


def test_there_are_enough_pairs():
    pairs = infilling_pairs()
    assert len(pairs) >= 500
    assert sum(not prefix for prefix, _ in pairs) >= 2
    assert sum(not suffix for _, suffix in pairs) >= 2
    assert ("", "") in pairs


@pytest.mark.parametrize("suffix_first", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_our_class_builds_metas_prompt(name, suffix_first, folder_of):
    tokenizer = CodeLlamaTokenizer.from_pretrained(folder_of(name), suffix_first=suffix_first)
    pairs = infilling_pairs()
    texts = [f"{prefix}<FILL_ME>{suffix}" for prefix, suffix in pairs]
    expected = [meta_prompt(name, *pair, suffix_first=suffix_first) for pair in pairs]
    assert [tokenizer.encode(text) for text in texts] == expected
    assert tokenizer(texts)["input_ids"] == expected
    assert [tokenizer.infilling_prompt(*pair) for pair in pairs] == expected


@pytest.mark.parametrize("suffix_first", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_recipe_builds_metas_prompt_with_auto_tokenizer(name, suffix_first, auto_of):
    tokenizer = auto_of(name)
    for pair in infilling_pairs():
        found = recipe_prompt(tokenizer, *pair, suffix_first=suffix_first)
        assert found == meta_prompt(name, *pair, suffix_first=suffix_first), pair


def test_the_prompt_is_the_right_one_seen_by_eye(folder_of):
    """The expectations above share sentencepiece; this one is spelled in pieces."""
    tokenizer = CodeLlamaTokenizer.from_pretrained(folder_of("infilling"))
    text = "def add(a):\n    <FILL_ME>\n    return a\n"
    assert "|".join(tokenizer.tokenize(text)) == (
        "▁<PRE>|▁def|▁|ad|d|(|a|)|:|<0x0A>|▁▁▁▁|▁<SUF>|<0x0A>|▁▁▁|▁return|▁a|<0x0A>|▁<MID>"
    )
    assert tokenizer.encode(text)[0] == 1
    first = tokenizer(text, suffix_first=True)["input_ids"]
    assert "|".join(tokenizer.convert_ids_to_tokens(first)) == (
        "<s>|▁<PRE>|▁<SUF>|<0x0A>|▁▁▁|▁return|▁a|<0x0A>|▁<MID>|▁def|▁|ad|d|(|a|)|:|<0x0A>|▁▁▁▁"
    )


def test_the_order_can_be_chosen_for_one_call(folder_of):
    tokenizer = CodeLlamaTokenizer.from_pretrained(folder_of("infilling"))
    for suffix_first in (True, False):
        expected = meta_prompt("infilling", "a", "b", suffix_first=suffix_first)
        assert tokenizer("a<FILL_ME>b", suffix_first=suffix_first).input_ids == expected
        assert tokenizer.encode("a<FILL_ME>b", suffix_first=suffix_first) == expected
    assert not tokenizer.suffix_first


def test_without_special_tokens_only_the_beginning_is_left_out(folder_of):
    tokenizer = CodeLlamaTokenizer.from_pretrained(folder_of("infilling"))
    expected = meta_prompt("infilling", "a", "b", suffix_first=False)[1:]
    assert tokenizer("a<FILL_ME>b", add_special_tokens=False).input_ids == expected


def test_another_fill_token_may_be_chosen(folder_of):
    tokenizer = CodeLlamaTokenizer.from_pretrained(folder_of("infilling"), fill_token="<HOLE>")
    expected = meta_prompt("infilling", "a", "b", suffix_first=False)
    assert tokenizer("a<HOLE>b").input_ids == expected
    plain = tokenizer("a<FILL_ME>b").input_ids
    assert plain == [1, *processor("infilling").encode("a<FILL_ME>b")]


def test_a_batch_may_mix_infilling_and_text(folder_of):
    tokenizer = CodeLlamaTokenizer.from_pretrained(folder_of("infilling"))
    assert tokenizer(["a<FILL_ME>b", "  x"]).input_ids == [
        meta_prompt("infilling", "a", "b", suffix_first=False),
        [1, *processor("infilling").encode("  x")],
    ]


@pytest.mark.parametrize("name", ["plain", "stories", "mistral"])
def test_a_model_without_infilling_pieces_refuses(name, folder_of):
    tokenizer = CodeLlamaTokenizer.from_pretrained(folder_of(name))
    with pytest.raises(TokenizerError, match=r"tokenizer.model: .*no infilling pieces.*▁<PRE>"):
        tokenizer("a<FILL_ME>b")
    assert tokenizer("a<FILL_ME b").input_ids == [1, *processor(name).encode("a<FILL_ME b")]


def test_two_gaps_are_refused(folder_of):
    tokenizer = CodeLlamaTokenizer.from_pretrained(folder_of("infilling"))
    with pytest.raises(TokenizerError, match="holds <FILL_ME> 2 times"):
        tokenizer("a<FILL_ME>b<FILL_ME>c")


def test_a_vocabulary_that_joins_the_marker_is_refused(tmp_path):
    """Then dropping the marker's ids would drop a part of the suffix."""
    from tests.witness.vocabularies import add_piece, model_bytes, parsed, write_model

    model = parsed(model_bytes("infilling"))
    add_piece(model, "☺x", 0.0)
    tokenizer = CodeLlamaTokenizer.from_pretrained(write_model(tmp_path, model.SerializeToString()))
    with pytest.raises(TokenizerError, match="joins '☺' with text"):
        tokenizer("a<FILL_ME>xy")
    assert tokenizer("a<FILL_ME>y")


def test_the_filling_keeps_its_leading_space(folder_of):
    tokenizer = CodeLlamaTokenizer.from_pretrained(folder_of("infilling"))
    ids = processor("infilling").encode("return a + b\n    ")
    assert tokenizer.decode(ids) == "return a + b\n    "
    assert tokenizer.decode_infilling(ids) == " return a + b\n    "
    end = tokenizer.eot_id
    assert tokenizer.decode_infilling([*ids, end, *ids]) == " return a + b\n    "
    assert tokenizer.decode_infilling([*ids, 2, 2]) == " return a + b\n    "
    assert tokenizer.decode_infilling([]) == ""


@pytest.mark.parametrize("name", MODELS)
def test_the_recipe_decodes_a_filling_with_auto_tokenizer(name, auto_of, folder_of):
    """Meta's decode_infilling: decode after the marker, then drop it, so that the space stays."""
    tok = auto_of(name)
    ours = CodeLlamaTokenizer.from_pretrained(folder_of(name))
    eot = tok.convert_tokens_to_ids("▁<EOT>")
    for text in ("return a", " two  spaces", "x\n    y\n", "é\t", ""):
        new = [*processor(name).encode(text), eot]
        marker = tok("☺", add_special_tokens=False)["input_ids"][1:]
        filling = tok.decode(marker + new, skip_special_tokens=True)[1:]
        assert filling == (f" {text}" if text else "")
        assert ours.decode_infilling(new) == filling


def test_a_text_prompt_is_not_equivalent():
    """Negative control: what an English description of the format suggests, differs from it."""
    pairs = infilling_pairs()
    encode = processor("infilling").encode
    different = [
        (prefix, suffix)
        for prefix, suffix in pairs
        if [1, *encode(f"<PRE> {prefix} <SUF>{suffix} <MID>")]
        != meta_prompt("infilling", prefix, suffix, suffix_first=False)
    ]
    assert len(different) > 30
    assert ("", "a") in different


def test_a_suffix_encoded_like_any_text_is_found_different():
    """Negative control: without the marker, a suffix gets a leading space of its own."""
    encode = processor("infilling").encode
    different = [s for _, s in infilling_pairs() if encode(s) != encode("☺" + s)[2:]]
    assert len(different) > 300
