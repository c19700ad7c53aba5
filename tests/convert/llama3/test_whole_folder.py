"""Llama 3 whole: weights and tokenizer in, a folder that loads out, and back again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codellama_convert import (
    Options,
    ReverseOptions,
    convert_checkpoint,
    plan_conversion,
    plan_reverse,
    reverse_checkpoint,
    verify_output,
)
from codellama_convert.errors import TokenizerError
from tests.refusals import refused
from tests.witness.checkpoints import Shape, random_model
from tests.witness.llama3 import TINY, spelled
from tests.witness.llama3_ranks import llama_3_ranks, save_llama_3, save_whole_llama_3
from tests.witness.ranks import expected_ranks, in_metas_order, rank_differences
from tests.witness.vocabularies import model_bytes, write_model

BOS, END, EOM, EOT = 272, 273, 280, 281


def read(output: Path, name: str) -> Any:
    return json.loads((output / name).read_bytes())


@pytest.mark.parametrize(
    ("name", "scaled", "stop", "has_template"),
    [
        ("Meta-Llama-3-8B", False, END, False),
        ("Meta-Llama-3-8B-Instruct", False, [END, EOT], True),
        ("Llama3.1-8B", True, END, False),
        ("Llama3.1-8B-Instruct", True, [END, EOM, EOT], True),
    ],
)
def test_a_folder_says_the_same_in_each_of_its_files(
    tmp_path: Path, name, scaled, stop, has_template
) -> None:
    """As the folder's name and the scaling tell, down to the names of special tokens."""
    source, output = save_whole_llama_3(tmp_path / name, scaled=scaled), tmp_path / "out"
    convert_checkpoint(source, output)
    assert verify_output(output, plan_conversion(source)).problems == ()
    assert verify_output(output).problems == ()
    for file in ("config.json", "generation_config.json"):
        said = read(output, file)
        assert (said["bos_token_id"], said["eos_token_id"]) == (BOS, stop)
    config = read(output, "tokenizer_config.json")
    assert config["eos_token"] == ("<|eot_id|>" if has_template else "<|end_of_text|>")
    assert ("chat_template" in config) is has_template
    (eom,) = (t for t in read(output, "tokenizer.json")["added_tokens"] if t["id"] == EOM)
    assert eom["content"] == ("<|eom_id|>" if scaled else "<|reserved_special_token_4|>")


def test_a_tokenizer_alone_takes_the_names_from_its_folder(tmp_path: Path) -> None:
    alone = Options(model_size="tokenizer_only")
    for name, expected in (
        ("Meta-Llama-3-8B", "<|reserved_special_token_4|>"),
        ("Llama-Guard-2-8B", "<|reserved_special_token_4|>"),
        ("Llama3.2-1B", "<|eom_id|>"),
        ("somewhere", "<|eom_id|>"),
    ):
        write_model(tmp_path / name, spelled(TINY))
        output = tmp_path / f"{name}-hf"
        report = convert_checkpoint(tmp_path / name, output, options=alone)
        tokens = {t["id"]: t["content"] for t in read(output, "tokenizer.json")["added_tokens"]}
        assert tokens[EOM] == expected
        assert any("the names of Llama 3.1" in one for one in report.notes) is (name == "somewhere")
        assert verify_output(output, plan_conversion(tmp_path / name, alone)).problems == ()


@pytest.mark.parametrize("n_rows", [527, 272, 512])
def test_a_tokenizer_with_more_ids_than_rows_is_refused(tmp_path: Path, n_rows: int) -> None:
    shape = Shape(dim=256, n_layers=2, n_heads=4, n_kv_heads=1, hidden=352, vocab=n_rows)
    source = save_whole_llama_3(tmp_path / "in", shape=shape)
    with refused(TokenizerError, "528 pieces", f"{n_rows} rows", "--tokenizer_model"):
        plan_conversion(source)
    save_whole_llama_3(tmp_path / "in")
    plan_conversion(source)


def test_a_vocabulary_that_was_padded_is_converted_with_a_note(tmp_path: Path) -> None:
    shape = Shape(dim=256, n_layers=2, n_heads=4, n_kv_heads=1, hidden=352, vocab=576)
    job = plan_conversion(save_whole_llama_3(tmp_path / "in", shape=shape))
    assert any("576 rows, 48 more" in note for note in job.notes)


def test_the_way_back_copies_the_tokenizer_and_counts_its_tokens(tmp_path: Path) -> None:
    source, output, back = save_whole_llama_3(tmp_path / "in"), tmp_path / "hf", tmp_path / "back"
    convert_checkpoint(source, output)
    reverse_checkpoint(output, back)
    assert verify_output(back, plan_reverse(output)).problems == ()
    for name in ("tokenizer.model", "params.json", "consolidated.00.pth"):
        assert (back / name).read_bytes() == (source / name).read_bytes(), name
    (output / "tokenizer.model").write_bytes(spelled(TINY[:-1]))
    with refused(TokenizerError, "527 pieces", "528 rows", "--vocab_rows 527"):
        plan_reverse(output)
    (output / "tokenizer.model").write_bytes(model_bytes("plain"))
    with refused(TokenizerError, "910 pieces", "528 rows"):
        plan_reverse(output)
    plan_reverse(output, ReverseOptions(skip_tokenizer=True))


@pytest.mark.parametrize(
    ("vocabulary", "n_rows", "is_third"),
    [("sentencepiece", 910, False), ("tiktoken", 528, True)],
)
def test_the_tokenizer_and_not_the_theta_tells_whose_model_a_small_one_is(
    tmp_path: Path, vocabulary: str, n_rows: int, *, is_third: bool
) -> None:
    """Llama 2 was trained on with Llama 3's rope_theta: its embedding was split by rows."""
    shape = Shape(dim=256, n_layers=2, n_heads=4, n_kv_heads=2, hidden=352, vocab=n_rows)
    state = random_model(shape)
    source, output, back = (tmp_path / name for name in ("in", "hf", "back"))
    save_llama_3(source, shape, state, scaled=False)
    write_model(source, spelled(TINY) if is_third else model_bytes("plain"))
    convert_checkpoint(source, output)
    assert verify_output(output, plan_conversion(source)).problems == ()
    assert read(output, "config.json")["rope_theta"] == 500000.0
    context = read(output, "config.json")["max_position_embeddings"]
    assert context == (8192 if is_third else 2048)
    assert ("transformers_version" in read(output, "config.json")) is is_third
    (output / "conversion.json").unlink()
    of_third = [in_metas_order(rank) for rank in llama_3_ranks(state, 2, shape)]
    of_second = expected_ranks(state, shape, 2, theta=500000.0)
    for alone in (False, True):
        two = ReverseOptions(n_ranks=2, skip_tokenizer=alone)
        ranks = back / str(alone)
        reverse_checkpoint(output, ranks, options=two)
        assert verify_output(ranks, plan_reverse(output, two)).problems == ()
        assert rank_differences(ranks, of_third if is_third else of_second) == []
        assert rank_differences(ranks, of_second if is_third else of_third) != []
