"""Every change of the small files beside the weights is found."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from codellama_convert import Options, plan_conversion
from codellama_convert.tensors import BFLOAT16, FLOAT16
from tests.verify.damage import (
    INDEX,
    MODEL,
    RECORD,
    SMALL_FILES,
    change,
    irregular,
    told,
    without_record,
)

CONFIG_KEYS = (
    "architectures", "attention_bias", "bos_token_id", "eos_token_id", "hidden_act", "hidden_size",
    "initializer_range", "intermediate_size", "max_position_embeddings", "model_type",
    "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "pretraining_tp",
    "rms_norm_eps", "rope_scaling", "rope_theta", "tie_word_embeddings", "torch_dtype", "use_cache",
    "vocab_size",
)  # fmt: skip
TOKENIZER_CONFIG_KEYS = (
    "add_bos_token", "add_eos_token", "bos_token", "clean_up_tokenization_spaces", "eos_token",
    "legacy", "model_input_names", "model_max_length", "padding_side", "tokenizer_class",
    "unk_token",
)  # fmt: skip
EVERY_KEY = [
    *(("config.json", key) for key in CONFIG_KEYS),
    *(("generation_config.json", key) for key in ("bos_token_id", "eos_token_id")),
    *(("tokenizer_config.json", key) for key in TOKENIZER_CONFIG_KEYS),
    *(("special_tokens_map.json", key) for key in ("bos_token", "eos_token", "unk_token")),
    *(("tokenizer.json", key) for key in ("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model")),
]  # fmt: skip


def of_another_kind(value: Any) -> Any:
    """Give what Python takes for equal, or nearly so: 1 for true, 2.0 for 2, "x" for "X"."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return True if value == 1 else float(value)
    if isinstance(value, float):
        return str(value)
    if isinstance(value, str):
        return value.swapcase() if value.swapcase() != value else f"{value}0"
    if isinstance(value, list):
        return [*value, "more"]
    return {"type": "linear", "factor": 2.0}


@pytest.mark.parametrize(("name", "key"), EVERY_KEY)
def test_every_value_counts_and_so_does_its_type(place, one, job, name, key):
    without_record(one)
    path = one / name
    whole = path.read_bytes()
    assert set(json.loads(whole)) == {k for n, k in EVERY_KEY if n == name}
    change(path, lambda content: content.update({key: of_another_kind(content[key])}))
    found = told(one, job)
    assert any(name in line and key in line for line in found)
    assert len(found) == 1 or key == "model"
    path.write_bytes(whole)
    change(path, lambda content: content.pop(key))
    (line,) = told(one, job)
    assert name in line
    assert key in line


SPELLINGS = [
    lambda raw: b"\xef\xbb\xbf" + raw,
    lambda raw: raw + b"\n",
    lambda raw: raw.rstrip(b"\n") if raw.endswith(b"\n") else raw + b" ",
    lambda raw: raw.replace(b"\n", b"\r\n"),
    lambda raw: raw.replace(b": ", b":", 1),
    lambda raw: raw.replace(b"o", b"\\u006f", 1),
    lambda raw: json.dumps(json.loads(raw)).encode(),
    lambda raw: json.dumps(json.loads(raw), indent=7).encode(),
    lambda raw: json.dumps(dict(reversed(json.loads(raw).items())), indent=2).encode() + b"\n",
]


@pytest.mark.parametrize("spell", SPELLINGS)
@pytest.mark.parametrize("name", [n for n in SMALL_FILES if n.endswith("json")])
def test_the_same_values_otherwise_spelled_are_found(one, job, name, spell):
    """A byte order mark in front, which many a JSON reader refuses, was passed over."""
    without_record(one)
    raw = (one / name).read_bytes()
    assert told(one, job) == []
    (one / name).write_bytes(spell(raw))
    (found,) = told(one, job)
    assert found.startswith(f"{name}: the values are right, the spelling is not: ")


@pytest.mark.parametrize("spell", SPELLINGS)
def test_an_index_otherwise_spelled_is_found(many, job, spell):
    without_record(many)
    raw = (many / INDEX).read_bytes()
    assert told(many, job) == []
    (many / INDEX).write_bytes(spell(raw))
    (found,) = told(many, job)
    assert found.startswith(f"{INDEX}: the values are right, the spelling is not: ")


@pytest.mark.parametrize("spell", SPELLINGS)
def test_a_record_otherwise_spelled_is_found_with_and_without_the_source(one, job, spell):
    (one / RECORD).write_bytes(spell((one / RECORD).read_bytes()))
    for found in (told(one, job), told(one)):
        (line,) = found
        assert line.startswith(f"{RECORD}: ")


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("config.json", "head_dim", 16),
        ("config.json", "mlp_bias", True),
        ("config.json", "quantization_config", {"bits": 4}),
        ("config.json", "rope_parameters", {"rope_type": "default", "rope_theta": 1e4}),
        ("config.json", "dtype", "float16"),
        ("config.json", "sliding_window", 4),
        ("config.json", "auto_map", {"AutoModelForCausalLM": "evil.Model"}),
        ("config.json", "pad_token_id", 0),
        ("generation_config.json", "do_sample", True),
        ("generation_config.json", "temperature", 0.6),
        ("generation_config.json", "max_new_tokens", 3),
        ("tokenizer_config.json", "tokenizer_class", "LlamaTokenizer"),
        ("tokenizer_config.json", "tokenizer_class", "EvilTokenizer"),
        ("tokenizer_config.json", "chat_template", "{{ messages }}"),
        ("tokenizer_config.json", "fill_token", "<FILL_ME>"),
        ("tokenizer_config.json", "add_prefix_space", False),
        ("tokenizer_config.json", "auto_map", {"AutoTokenizer": ["evil.Tokenizer", None]}),
        ("special_tokens_map.json", "pad_token", "<unk>"),
    ],
)
def test_a_key_that_does_not_belong_there_is_found(one, job, name, key, value):
    assert told(one, job) == []
    change(one / name, lambda content: content.update({key: value}))
    found = told(one, job)
    assert any(name in line and key in line for line in found)
    assert told(one)


def test_a_dtype_or_context_that_nobody_asked_for_is_found(place, one):
    def with_options(**options: Any) -> list[str]:
        return told(one, plan_conversion(place / "in", Options(**options)))

    assert with_options(dtype=BFLOAT16) == []
    assert with_options(dtype=FLOAT16) == [
        "the tensors are bfloat16, not float16 as asked for",
        'conversion.json: options: dtype is "bfloat16", expected "float16"',
        "conversion.json: original is there, and the ranks cannot come back byte for byte",
    ]
    assert with_options(max_position_embeddings=16384) == []
    found = with_options(max_position_embeddings=4096)
    assert [line.split(" is ")[0] for line in found] == [
        "config.json: max_position_embeddings",
        "tokenizer_config.json: model_max_length",
        "conversion.json: options: max_position_embeddings",
    ]


@pytest.mark.skipif(os.name == "nt", reason="FIFOs and links as POSIX has them")
@pytest.mark.parametrize("kind", ["fifo", "folder", "huge", "missing", "dangling", "loop", "zero"])
@pytest.mark.parametrize("name", [*SMALL_FILES, MODEL, RECORD])
def test_what_is_no_file_of_that_kind_is_told_at_once(one, job, name, kind):
    irregular(one / name, kind)
    found = told(one, job)
    assert bool(found) is not (name == RECORD and kind == "missing")
    assert all(name in line for line in found)
    assert any(name in line for line in told(one))


@pytest.mark.parametrize("name", [n for n in SMALL_FILES if n != "tokenizer.model"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[1]",
        b"[" * 100_000,
        b'{"a": NaN}',
        b'{"a": 1, "a": 1}',
        b'{"hidden_act": "\\ud800\\u001b[2J"}',
        b'{"vocab_size": ' + b"9" * 5000 + b"}",
        b'{"rope_theta": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"architectures": ["' + b"x" * 60_000 + b'"]}',
        b"{}".ljust((1 << 16) + 1),
    ],
)
def test_what_is_not_json_is_told(one, job, name, content):
    (one / name).write_bytes(content)
    assert any(name in line for line in told(one, job))
    assert any(name in line for line in told(one))


@pytest.mark.parametrize(
    "name",
    [
        "adapter_config.json",
        "added_tokens.json",
        "chat_template.jinja",
        "model-00001-of-00002.safetensors",
        "a\n\x1b[2J.safetensors",
        b"\xff.safetensors",
    ],
)
def test_a_file_that_loaders_may_take_is_found(one, job, name):
    if sys.platform != "linux" and not (isinstance(name, str) and name.isprintable()):
        pytest.skip("such a name is not valid here")
    (one / "README.md").write_text("what people add")
    assert told(one, job) == told(one) == []
    Path(os.fsdecode(os.path.join(os.fsencode(one), os.fsencode(name)))).write_bytes(b"")  # noqa: PTH118
    assert len(told(one, job)) == len(told(one)) == 1
