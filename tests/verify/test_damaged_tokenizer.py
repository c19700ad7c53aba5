"""What changes an id or a class in the tokenizer's files is found."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import pytest

from codellama_convert import Options, convert_checkpoint, plan_conversion
from tests.verify.damage import RECORD, change, told, without_record
from tests.witness.vocabularies import model_bytes


def test_without_a_record_a_known_tokenizer_class_is_taken_as_asked_for(one, job):
    without_record(one)
    path = one / "tokenizer_config.json"
    change(path, lambda content: content.update(tokenizer_class="LlamaTokenizer"))
    assert told(one, job) == []
    change(path, lambda content: content.update(tokenizer_class="EvilTokenizer"))
    assert any("EvilTokenizer" in line for line in told(one, job))
    change(path, lambda content: content.pop("tokenizer_class"))
    assert any("PreTrainedTokenizerFast" in line for line in told(one, job))


def name_no_class(folder: Path) -> None:
    """Make of an output what was written before tokenizer_class had a default."""
    path = folder / "tokenizer_config.json"
    change(path, lambda content: content.pop("tokenizer_class"))
    raw = path.read_bytes()
    sums = {"size": len(raw), "crc32": f"{zlib.crc32(raw):08x}"}

    def edit(record: dict[str, Any]) -> None:
        record["options"]["tokenizer_class"] = None
        record["files"]["tokenizer_config.json"] |= sums

    change(folder / RECORD, edit)


def test_an_output_that_names_no_tokenizer_class_passes_by_its_record(one, job):
    """Conversions left the key out before there was a default; their records say so."""
    name_no_class(one)
    assert told(one, job) == []
    assert told(one) == []
    path = one / "tokenizer_config.json"
    change(path, lambda content: content.update(tokenizer_class="PreTrainedTokenizerFast"))
    assert any("tokenizer_class" in line for line in told(one, job))
    assert told(one)


def swap_merges(content: dict[str, Any], first: int, second: int) -> None:
    merges = content["model"]["merges"]
    merges[first], merges[second] = merges[second], merges[first]


@pytest.mark.parametrize(
    ("edit", "fact"),
    [
        (lambda c: swap_merges(c, 5, 6), "merge 6 "),
        (lambda c: swap_merges(c, 0, 20), "merge 1 "),
        (lambda c: c["model"]["merges"].pop(), "30 merges, expected 31"),
        (lambda c: c["model"]["merges"].pop(4), "30 merges, expected 31"),
        (lambda c: c["model"]["merges"].insert(4, c["model"]["merges"][4]), "merge 5 "),
        (lambda c: c["model"]["merges"].append("▁ 銀"), "merge 31 "),
        (lambda c: c["model"]["merges"].append(["▁", "e"]), "merge 31 "),
        (lambda c: c["model"]["merges"].append(None), "merge 31 "),
        (lambda c: c["model"].update(merges={}), "merges are {}"),
        (lambda c: c["model"].update(merges=None), "merges are None"),
        (lambda c: c["model"].update(vocab=[["a", 1]]), "vocab is"),
        (lambda c: c["model"].pop("vocab"), "vocab is None"),
        (lambda c: c["model"]["vocab"].update({"<s>": True}), "'<s>' has id True"),
        (lambda c: c["model"]["vocab"].update({"</s>": 2.0}), "'</s>' has id 2.0"),
        (lambda c: c["model"]["vocab"].update({"銀": 320}), "321 pieces, expected 320"),
        (lambda c: c["model"]["vocab"].pop("</s>"), "'</s>' has id None"),
        (lambda c: c["model"].update(byte_fallback=False), "byte_fallback"),
        (lambda c: c["model"].update(dropout=0.1), "dropout"),
        (lambda c: c["model"].update(type="WordPiece"), "WordPiece"),
        (lambda c: c.update(model=[]), "model is []"),
        (lambda c: c["added_tokens"].pop(), "added_tokens"),
        (lambda c: c["added_tokens"][1].update(lstrip=True), "added_tokens"),
        (lambda c: c["added_tokens"].append(c["added_tokens"][2] | {"id": 320, "content": "<pad>"}), "added_tokens"),
        (lambda c: c["normalizer"]["normalizers"].pop(0), "normalizer"),
        (lambda c: c["post_processor"]["special_tokens"]["<s>"].update(ids=[2]), "post_processor"),
    ],
)  # fmt: skip
def test_whatever_changes_an_id_in_tokenizer_json_is_found(one, job, edit, fact):
    without_record(one)
    change(one / "tokenizer.json", edit)
    (found,) = told(one, job)
    assert fact in found


@pytest.mark.parametrize("name", ["plain", "infilling", "step", "step_control", "stories"])
@pytest.mark.parametrize("tokenizer_class", [None, "CodeLlamaTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("flavor", [None, "base", "instruct"])
def test_right_tokenizer_files_of_every_kind_pass(tmp_path, name, tokenizer_class, flavor):
    """Alone and with a record, without one, and with the options named once more or not."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "tokenizer.model").write_bytes(model_bytes(name))
    options = Options(model_size="tokenizer_only", flavor=flavor, tokenizer_class=tokenizer_class)
    convert_checkpoint(tmp_path / "in", tmp_path / "out", options=options)
    plain = plan_conversion(tmp_path / "in", Options(model_size="tokenizer_only"))
    same = plan_conversion(tmp_path / "in", options)
    assert told(tmp_path / "out") == []
    for source in (plain, same):
        assert told(tmp_path / "out", source) == []
    without_record(tmp_path / "out")
    for source in (plain, same):
        assert told(tmp_path / "out", source) == []
    other = Options(model_size="tokenizer_only", flavor="base" if flavor == "instruct" else "chat")
    (found,) = told(tmp_path / "out", plan_conversion(tmp_path / "in", other))
    assert "chat_template" in found


@pytest.mark.parametrize("name", ["mistral", "mistral_infilling", "mistral_step"])
def test_the_merges_of_a_whole_vocabulary_pass_and_two_swapped_do_not(tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "tokenizer.model").write_bytes(model_bytes(name))
    options = Options(model_size="tokenizer_only")
    convert_checkpoint(tmp_path / "in", tmp_path / "out", options=options)
    source = plan_conversion(tmp_path / "in", options)
    assert told(tmp_path / "out", source) == []
    change(tmp_path / "out" / "tokenizer.json", lambda c: swap_merges(c, 30_000, 30_001))
    assert any("merge 30001 " in line for line in told(tmp_path / "out", source))
