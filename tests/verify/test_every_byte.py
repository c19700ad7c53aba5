"""Every byte of an output that is ours is compared; what is not is in the list of exceptions here."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from codellama_convert import Options, RunOptions, convert_checkpoint, plan_conversion
from codellama_convert.model.releases import RELEASES, Release, Shape
from codellama_convert.tensors import FLOAT16
from tests.faults.hostile.rank_bytes import TINY
from tests.verify.damage import RECORD, change, changes, missed, told
from tests.witness.checkpoints import random_model, save_checkpoint, tokenizer_model

CARD = "README.md"
# People edit the card; whatever it says, nothing is loaded from it.
EXCEPTIONS = {CARD}
KINDS: dict[str, Options] = {
    "model": Options(dtype=FLOAT16, max_position_embeddings=64, max_shard_bytes=4000),
    "weights": Options(max_position_embeddings=64, skip_tokenizer=True),
    "tokenizer": Options(model_size="tokenizer_only", flavor="chat"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny checkpoint with odd values, converted in three ways, each with every extra."""
    folder = tmp_path_factory.mktemp("bytes")
    state = random_model(TINY, torch.bfloat16, 2)
    state["norm.weight"][:3] = torch.tensor([float("nan"), float("inf"), 1e-9])
    tokenizer = tokenizer_model(TINY.vocab)
    save_checkpoint(folder / "in", TINY, state, n_ranks=2, tokenizer=tokenizer)
    (folder / "in" / "unused.pt").touch()
    for kind, options in KINDS.items():
        extras = RunOptions(sha256=True, model_card=kind != "tokenizer")
        convert_checkpoint(folder / "in", folder / kind, options=options, run_options=extras)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def output(place, kind, tmp_path):
    return Path(shutil.copytree(place / kind, tmp_path / kind))


@pytest.fixture(scope="module")
def job(place, kind):
    # No more than must be said where there is no record.
    size = "tokenizer_only" if kind == "tokenizer" else None
    flavor = "chat" if kind == "tokenizer" else None
    options = Options(model_size=size, flavor=flavor, skip_tokenizer=kind == "weights")
    return plan_conversion(place / "in", options)


def test_every_region_of_every_file_is_compared(output, job, kind):
    """With the source, with the source and no record, and with the record alone."""
    assert told(output, job) == told(output) == []
    names = sorted(path.name for path in output.iterdir())
    assert len(names) == {"model": 12, "weights": 5, "tokenizer": 5}[kind]
    for name in names:
        for what, changed in changes((output / name).read_bytes()):
            if changed != (output / name).read_bytes():
                # A tensor that the index does not have is named, and not the index.
                ways = missed(output, job, output / name, changed, by_name=False)
                assert len(ways) == (3 if name in EXCEPTIONS else 0), (name, what, ways)
    assert told(output, job) == []


LOADED = (
    "adapter_config.json",
    "added_tokens.json",
    "additional_chat_templates/default.jinja",
    "chat_template.jinja",
    "custom_generate/generate.py",
    "pytorch_model.bin",
    "vocab.json",
    "model-00001-of-00009.safetensors",
    "x.safetensors",
)
OF_MODELS = ("config.json", "generation_config.json", "model.safetensors.index.json")
OF_TOKENIZERS = (
    "special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
)  # fmt: skip


def test_what_loaders_take_beside_an_output_is_found(output, job, kind):
    """Beside weights alone, or a tokenizer alone, whatever lay there was passed over."""
    more = {"model": (), "weights": OF_TOKENIZERS, "tokenizer": OF_MODELS}[kind]
    for name in (*LOADED, *more):
        path = output / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"{}")
        top = name.split("/")[0]
        for found in (told(output, job), told(output)):
            assert any(top in line for line in found), (name, found)
        path.unlink()
        if path.parent != output:
            path.parent.rmdir()
    for name in ("LICENSE", "USE_POLICY.md", ".gitattributes", "notes.txt"):
        (output / name).write_bytes(b"{}")
    assert told(output, job) == told(output) == []


# --- the record, with a right sum of itself -------------------------------------------------------

NORM = "model.norm.weight"


@pytest.fixture
def model(place, tmp_path):
    return Path(shutil.copytree(place / "model", tmp_path / "model"))


@pytest.fixture(scope="module")
def model_job(place):
    return plan_conversion(place / "in", Options())


def shard(content: dict[str, Any]) -> dict[str, Any]:
    return content["files"]["model-00001-of-00003.safetensors"]


@pytest.mark.parametrize(
    ("edit", "fact"),
    [
        (lambda c: c["tensors"][NORM].pop("nonfinite"), "nonfinite 2, the record says 0"),
        (lambda c: c["tensors"][NORM].update(nonfinite=3), "nonfinite 2, the record says 3"),
        (lambda c: c["tensors"][NORM].pop("became_zero"), "became_zero 1, the record says 0"),
        (lambda c: c["tensors"]["lm_head.weight"].update(became_zero=1), "became_zero 0, the record"),
        (lambda c: c["tensors"][NORM].update(crc32="00000000"), "says 00000000"),
        (lambda c: shard(c).update(crc32="00000000"), "says 00000000"),
        (lambda c: shard(c).update(sha256="0" * 64), "SHA-256"),
        (lambda c: shard(c).pop("sha256"), "lacks the SHA-256 that others have"),
        (lambda c: c["files"]["config.json"].pop("sha256"), "lacks the SHA-256 that others have"),
        (lambda c: c["files"]["tokenizer.json"].update(crc32="00000000"), "says 00000000"),
        (lambda c: c["options"].pop("dtype"), "options: dtype is missing"),
        (lambda c: c["options"].update(dtype="bfloat16"), "float16, not bfloat16"),
        (lambda c: c["options"].update(dtype="int8"), "the option dtype is 'int8'"),
        (lambda c: c["options"].pop("variant"), "options: variant is missing"),
        (lambda c: c["options"].update(variant="chat"), "chat_template is missing"),
        (lambda c: c["options"].update(variant=1), "the option variant is 1"),
        (lambda c: c["options"].pop("max_shard_size"), "options: max_shard_size is missing"),
        (lambda c: c["options"].update(max_shard_size=6000), "it belongs in"),
        (lambda c: c["options"].pop("max_position_embeddings"), "options: max_position_embeddings is"),
        (lambda c: c["options"].update(max_position_embeddings=65), "max_position_embeddings is 64"),
        (lambda c: c["options"].pop("skip_tokenizer"), "options: skip_tokenizer is missing"),
        (lambda c: c["options"].update(skip_tokenizer=True), "tokenizer.json is in the folder"),
        (lambda c: c["options"].pop("tokenizer_class"), "options: tokenizer_class is missing"),
        (lambda c: c["options"].update(tokenizer_class="LlamaTokenizer"), 'expected "LlamaTokenizer"'),
        (lambda c: c["options"].update(more=1), "options: has more"),
        (lambda c: c.update(more=1), "has 'more'"),
        (lambda c: c.pop("model"), "model is missing"),
        (lambda c: c.update(model=1), "model is 1, not a string"),
        (lambda c: c.pop("notes"), "notes are None"),
        (lambda c: c.update(notes=[1]), "notes are [1]"),
        (lambda c: c.pop("converter"), "converter is None"),
        (lambda c: c["converter"].update(name="other"), "converter is"),
        (lambda c: c["files"].update({"x.bin": c["files"]["config.json"]}), "files names x.bin"),
    ],
)  # fmt: skip
def test_a_record_with_a_right_sum_of_itself_is_compared_with_the_source(
    model, model_job, edit, fact
):
    assert told(model, model_job) == []
    change(model / RECORD, lambda content: None)
    assert told(model, model_job) == [], "the control: the same record with its own sum"
    change(model / RECORD, edit)
    assert any(fact in line for line in told(model, model_job)), told(model, model_job)


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c.update(notes=[]),
        lambda c: c["notes"].append("x"),
        lambda c: c.update(model="Llama 2 7B"),
        lambda c: c["converter"].update(version="0.0.1"),
        lambda c: c["options"].update(max_shard_size=4001),
        lambda c: c["options"].update(variant="python"),
    ],
)
def test_what_nothing_else_tells_is_covered_by_the_records_own_sum(model, model_job, edit):
    """What lay around the checkpoint then, and options of which no byte depends, are the record's
    alone to say: with a right sum they are believed, changed afterwards they are not.
    """
    content = json.loads((model / RECORD).read_bytes())
    change(model / RECORD, edit)
    assert told(model, model_job) == told(model) == []
    edit(content)
    (model / RECORD).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    for found in (told(model, model_job), told(model)):
        assert len(found) == 1
        assert "was changed after it was written" in found[0]


def test_the_name_of_a_released_model_is_compared(place, tmp_path, monkeypatch):
    shape = Shape(2, TINY.dim, TINY.n_layers, TINY.n_heads, TINY.n_kv_heads, TINY.hidden)
    released = Release(
        "Code Llama Tiny", "Code Llama", "base", "7B", shape, (1e-5,), 1e6, TINY.vocab, 64, "here"
    )
    monkeypatch.setattr("codellama_convert.model.recognise.RELEASES", (*RELEASES, released))
    job = plan_conversion(place / "in", Options())
    convert_checkpoint(place / "in", tmp_path / "out")
    assert told(tmp_path / "out", job) == []
    change(tmp_path / "out" / RECORD, lambda c: c.update(model="Code Llama 7B"))
    assert told(tmp_path / "out", job) == [
        "conversion.json: model is 'Code Llama 7B', expected 'Code Llama Tiny'"
    ]
    monkeypatch.setattr(
        "codellama_convert.model.recognise.RELEASES",
        (*RELEASES, replace(released, name="Code Llama 7B")),
    )
    assert told(tmp_path / "out", job) == []
