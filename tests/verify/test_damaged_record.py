"""A conversion.json that lies is found, with the source and without it."""

from __future__ import annotations

import shutil

import pytest

from codellama_convert import Options, convert_checkpoint
from tests.verify.damage import MODEL, NORM, RECORD, change, told


@pytest.mark.parametrize(
    ("edit", "fact"),
    [
        (lambda c: c.update(files=[]), "files is []"),
        (lambda c: c.pop("files"), "files is None"),
        (lambda c: c.update(tensors=None), "tensors is None"),
        (lambda c: c.pop("source"), "source is None"),
        (lambda c: c.pop("options"), "options is None"),
        (lambda c: c["files"].update({MODEL: None}), MODEL),
        (lambda c: c["files"][MODEL].pop("size"), MODEL),
        (lambda c: c["files"]["config.json"].update(size="568"), "config.json"),
        (lambda c: c["files"]["config.json"].update(size=True), "config.json"),
        (lambda c: c["files"]["config.json"].update(crc32=[1]), "config.json"),
        (lambda c: c["files"]["config.json"].update(crc32="0"), "config.json"),
        (lambda c: c["files"]["config.json"].update(sha256=1), "config.json"),
        (lambda c: c["files"]["config.json"].update(crc32="00000000"), "config.json"),
        (lambda c: c["files"]["config.json"].update(size=1), "config.json"),
        (lambda c: c["files"].update({"/etc/passwd": {"size": 1, "crc32": "0" * 8}}), "not a file name"),
        (lambda c: c["files"].update({"../one/x": {"size": 1, "crc32": "0" * 8}}), "not a file name"),
        (lambda c: c["files"].update({"a\n\ud800": {"size": 1, "crc32": "0" * 8}}), "file name"),
        (lambda c: c["files"].update({"x": {"size": 1, "crc32": "0" * 8}}), "No such file"),
        (lambda c: c["files"].update({"x.safetensors": {"size": 1, "crc32": "0" * 8}}), "which holds no tensor"),
        (lambda c: c["files"].clear(), "lack config.json"),
        (lambda c: c["files"].pop(MODEL), f"lack {MODEL}"),
        (lambda c: c["files"].pop("tokenizer.json"), "lack tokenizer.json"),
        (lambda c: c["tensors"].clear(), "nothing"),
        (lambda c: c["tensors"].pop(NORM), NORM),
        (lambda c: c["tensors"].update(x=c["tensors"][NORM]), "'x'"),
        (lambda c: c["tensors"][NORM].update(shape=None), NORM),
        (lambda c: c["tensors"][NORM].update(shape="64"), NORM),
        (lambda c: c["tensors"][NORM].update(shape=[[64]]), NORM),
        (lambda c: c["tensors"][NORM].update(shape=[32, 2]), NORM),
        (lambda c: c["tensors"][NORM].update(crc32=None), NORM),
        (lambda c: c["tensors"][NORM].update(file="../one/model.safetensors"), NORM),
        (lambda c: c["tensors"][NORM].update(file="config.json"), NORM),
        (lambda c: c["tensors"][NORM].update(dtype="F16"), NORM),
        (lambda c: c["tensors"][NORM].update(size=127), NORM),
    ],
)  # fmt: skip
def test_a_record_that_lies_is_told_with_and_without_the_source(one, job, edit, fact):
    change(one / RECORD, edit)
    assert any(fact in line for line in told(one, job))
    assert any(fact in line for line in told(one))


@pytest.mark.parametrize(
    ("edit", "fact"),
    [
        (lambda c: c["source"]["consolidated.01.pth"].update(crc32="00000000"), "00000000"),
        (lambda c: c["source"]["consolidated.01.pth"].update(size=7), "7 bytes"),
        (lambda c: c["source"].pop("consolidated.01.pth"), "is missing"),
        (lambda c: c["source"].update({"x.pth": {"size": 1, "crc32": "0" * 8}}), "x.pth"),
        (lambda c: c["options"].update(dtype="float32"), "not float32 as asked for"),
        (lambda c: c["options"].update(max_position_embeddings=5), "max_position_embeddings"),
        (lambda c: c["options"].update(tokenizer_class="LlamaTokenizer"), "tokenizer_class"),
        (lambda c: c["options"].update(variant="chat"), "chat_template"),
    ],
)
def test_a_record_that_lies_of_its_source_is_told_beside_it(one, job, edit, fact):
    change(one / RECORD, edit)
    assert any(fact in line for line in told(one, job))


def test_what_differs_from_the_source_is_told_once(one, job):
    """Its record differs from it too, which says less."""
    for name in ("tokenizer_config.json", "generation_config.json"):
        change(one / name, lambda content: content.update(bos_token_id="x", bos_token="x"))
    found = told(one, job)
    assert len(found) == 4
    assert all("bos_token" in line for line in found)
    # A file whose name only ends alike is still compared with the record.
    change(one / RECORD, lambda c: c["files"]["config.json"].update(size=1))
    assert len(told(one, job)) == 5


def test_a_value_that_names_another_file_keeps_nothing_of_it_unchecked(one, job):
    """The lines that were told were searched for the name of a file to see if it was among them."""
    change(one / RECORD, lambda c: c["files"]["tokenizer.json"].update(crc32="00000000"))
    change(one / "config.json", lambda c: c.update(transformers_version="see tokenizer.json"))
    of_config, of_tokenizer = told(one, job)
    assert "see tokenizer.json" in of_config
    assert of_tokenizer.startswith("tokenizer.json: has CRC-32")


def test_a_sum_of_the_weights_in_a_record_is_compared_without_the_source(one):
    change(one / RECORD, lambda c: c["tensors"][NORM].update(crc32="00000000"))
    (found,) = told(one)
    assert NORM in found
    assert "00000000" in found


NO_EXCEPTION = [
    lambda c: c.update(more=1),
    lambda c: c["files"]["config.json"].update(md5="x"),
    lambda c: c["tensors"][NORM].update(md5="x"),
    lambda c: c["source"]["consolidated.01.pth"].update(sha256="0" * 64),
    lambda c: c["options"].update(more=1),
    lambda c: c["converter"].update(more=1),
]


@pytest.mark.parametrize("edit", NO_EXCEPTION)
def test_what_a_conversion_does_not_write_is_found_in_its_record(one, job, edit):
    """Keys that nobody knows were passed over, as a later version's."""
    change(one / RECORD, edit)
    found = told(one, job)
    assert any("more" in line or "md5" in line or "sha256" in line for line in found)
    assert told(one) == found


def test_a_record_of_a_tokenizer_alone_does_not_cover_a_model(place, one, tmp_path):
    options = Options(model_size="tokenizer_only")
    convert_checkpoint(place / "in", tmp_path / "alone", options=options)
    assert told(tmp_path / "alone") == []
    shutil.copy(one / MODEL, tmp_path / "alone")
    assert told(tmp_path / "alone")
