"""The files beside tokenizer.json, and what is noted of them."""

from __future__ import annotations

import json

import pytest
import transformers

from codellama_convert.choices import TOKENIZER_CLASSES
from codellama_convert.errors import TokenizerError
from codellama_convert.formats.sentencepiece import read_sentencepiece_model
from codellama_convert.tokenizer.hf_files import (
    check_embedding_rows,
    stop_token_ids,
    tokenizer_files,
    tokenizer_notes,
)
from codellama_convert.tokenizer.tokenizer_json import tokenizer_json
from tests.witness.vocabularies import add_piece, model_bytes, parsed, write_model

TRANSFORMERS_4 = transformers.__version__.startswith("4.")

PLAIN_CONFIG = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "legacy": False,
    "model_input_names": ["input_ids", "attention_mask"],
    "model_max_length": 1000000000000000019884624838656,
    "padding_side": "left",
    "tokenizer_class": "PreTrainedTokenizerFast",
    "unk_token": "<unk>",
}


def config_of(model, **options):
    return json.loads(tokenizer_files(model, **options)["tokenizer_config.json"])


def test_four_files_are_written_and_the_model_is_unchanged(model_of):
    files = tokenizer_files(model_of("infilling"), flavor="base")
    assert sorted(files) == [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    assert files["tokenizer.model"] == model_bytes("infilling")
    assert json.loads(files["special_tokens_map.json"]) == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }


def test_the_small_files_are_sorted_and_indented(tmp_path):
    """As a person reads them, and the same from run to run."""
    model = parsed(model_bytes("plain"))
    model.pieces[0].piece = model.trainer_spec.unk_piece = "<\u00fcnk>"
    read = read_sentencepiece_model(write_model(tmp_path, model.SerializeToString()))
    files = tokenizer_files(read, flavor="base")
    assert files["special_tokens_map.json"].decode() == (
        '{\n  "bos_token": "<s>",\n  "eos_token": "</s>",\n  "unk_token": "<\u00fcnk>"\n}\n'
    )
    keys = [*json.loads(files["tokenizer_config.json"])]
    assert keys == ["add_bos_token", "add_eos_token", "bos_token", "clean_up_tokenization_spaces",
                    "eos_token", "legacy", "model_input_names", "model_max_length",
                    "padding_side", "tokenizer_class", "unk_token"]  # fmt: skip


@pytest.mark.parametrize("name", ["plain", "infilling", "step"])
@pytest.mark.parametrize("flavor", ["base", "python", None])
def test_the_config_holds_exactly_the_keys_that_make_ids_exact(name, flavor, model_of):
    assert config_of(model_of(name), flavor=flavor) == PLAIN_CONFIG


def test_the_context_length_is_written_if_known(model_of):
    config = config_of(model_of("plain"), flavor="base", model_max_length=16384)
    assert config == {**PLAIN_CONFIG, "model_max_length": 16384}


@pytest.mark.parametrize("flavor", ["instruct", "chat"])
def test_dialogue_models_get_a_template(flavor, model_of):
    config = config_of(model_of("plain"), flavor=flavor)
    assert "[INST]" in config.pop("chat_template")
    assert config == PLAIN_CONFIG
    template = config_of(model_of("step"), flavor=flavor)["chat_template"]
    assert "<step>" in template
    assert "[INST]" not in template


@pytest.mark.parametrize("name", TOKENIZER_CLASSES)
def test_a_class_that_was_asked_for_is_written(name, model_of):
    config = config_of(model_of("infilling"), flavor="base", tokenizer_class=name)
    assert config == {**PLAIN_CONFIG, "tokenizer_class": name}
    notes = tokenizer_notes(model_of("mistral"), tokenizer_class=name)
    assert any(name in note for note in notes) == (name != "PreTrainedTokenizerFast")


def test_a_code_llama_class_without_infilling_pieces_is_told_so(model_of):
    """Else both versions of transformers invent the pieces, with ids beyond the embedding."""
    config = config_of(model_of("plain"), flavor="base", tokenizer_class="CodeLlamaTokenizer")
    assert config == {
        **PLAIN_CONFIG,
        "tokenizer_class": "CodeLlamaTokenizer",
        "prefix_token": None,
        "middle_token": None,
        "suffix_token": None,
        "eot_token": None,
        "fill_token": None,
    }


@pytest.mark.parametrize(
    ("name", "flavor", "expected"),
    [
        ("plain", "base", (2,)),
        ("infilling", "instruct", (2,)),
        ("plain", "chat", (2,)),
        ("step", "instruct", (2, 925)),
        ("step_control", "instruct", (2, 925)),
        ("step", "chat", (2, 925)),
        ("step", "base", (2,)),
        ("step", "python", (2,)),
        ("step", None, (2,)),
    ],
)
def test_generation_stops_where_metas_code_stops(name, flavor, expected, model_of):
    assert stop_token_ids(model_of(name), flavor=flavor) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain", ["<unk>", "<s>", "</s>"]),
        ("infilling", ["<unk>", "<s>", "</s>", "▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"]),
        ("step", ["<unk>", "<s>", "</s>", "▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>", "<step>"]),
    ],
)
def test_special_pieces_are_found_by_name_and_never_invented(name, expected, model_of):
    content = json.loads(bytes(tokenizer_json(model_of(name))))
    added = content["added_tokens"]
    assert [token["content"] for token in added] == expected
    assert all(content["model"]["vocab"][token["content"]] == token["id"] for token in added)
    assert {(t["special"], t["normalized"], t["lstrip"], t["rstrip"]) for t in added} == {
        (True, False, False, False)
    }


def test_a_tokenizer_of_another_model_is_refused(model_of):
    model = model_of("infilling")
    assert check_embedding_rows(model, 926, is_released=True) == ()
    (note,) = check_embedding_rows(model, 960, is_released=False)
    assert "960 rows, 34 more than tokenizer.model has pieces" in note
    mismatch = (
        r"tokenizer.model: .*926 pieces.*910 rows: they do not belong together; "
        r"name the right one with --tokenizer_model$"
    )
    with pytest.raises(TokenizerError, match=mismatch):
        check_embedding_rows(model, 910, is_released=False)
    with pytest.raises(TokenizerError, match=r"926 pieces.*960 rows: they do not belong"):
        check_embedding_rows(model, 960, is_released=True)  # Llama 2's beside a Code Llama


def test_notes_are_silent_for_metas_kind_of_model(model_of):
    for name in ("plain", "infilling", "step", "mistral"):
        assert tokenizer_notes(model_of(name)) == ()


@pytest.mark.parametrize(
    ("text", "score", "kind", "fact"),
    [
        ("[TOOL]", 0.0, 4, "user-defined pieces ('[TOOL]'; 1 in all)"),
        ("xÐÐ", -5000.0, None, "only in longer pieces ('Ð'; 1 in all)"),
        ("xÐ", -5000.0, None, "only in longer pieces ('Ð'; 1 in all)"),
        ("abca", -7.0, None, "pieces with equal scores ('st'; 2 in all)"),
    ],
)
def test_pieces_that_make_ids_inexact_are_noted(text, score, kind, fact, tmp_path):
    model = parsed(model_bytes("plain"))
    add_piece(model, text, score, kind)
    notes = tokenizer_notes(
        read_sentencepiece_model(write_model(tmp_path, model.SerializeToString()))
    )
    assert len(notes) == 1
    assert fact in notes[0]
    assert "\n" not in notes[0]


# From here on: bytes, time and memory.
