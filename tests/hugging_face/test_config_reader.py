"""config.json is read in both spellings, and a model that Meta's code cannot run is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codellama_convert.errors import ConfigError
from codellama_convert.hugging_face.config_json import config_json
from codellama_convert.hugging_face.config_reader import (
    HuggingFaceConfig,
    parse_config,
    read_config,
)
from codellama_convert.model.config import ModelConfig
from codellama_convert.tensors import BFLOAT16, FLOAT16
from tests.model.params import CODE_34B, model
from tests.refusals import refused

PATH = Path("config.json")
LLAMA_3_SCALING = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
CODE_LLAMA_34B = ModelConfig(
    hidden_size=8192, intermediate_size=22016, num_hidden_layers=48, num_attention_heads=64,
    num_key_value_heads=8, rms_norm_eps=1e-5, rope_theta=1e6, vocab_size=32000,
)  # fmt: skip
NUMBERS: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 48,
    "num_attention_heads": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
    "vocab_size": 32000, "max_position_embeddings": 16384, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.02, "use_cache": True, "tie_word_embeddings": False,
}  # fmt: skip
VERSION_4 = NUMBERS | {
    "rope_theta": 1000000, "rope_scaling": None, "torch_dtype": "bfloat16", "pretraining_tp": 1,
    "attention_bias": False, "attention_dropout": 0.0, "transformers_version": "4.33.0.dev0",
}  # fmt: skip
VERSION_5 = NUMBERS | {
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "dtype": "bfloat16",
    "head_dim": 128, "mlp_bias": False, "pad_token_id": None, "transformers_version": "5.24.0",
}  # fmt: skip
CODE_LLAMA = HuggingFaceConfig(CODE_LLAMA_34B, BFLOAT16)


def parsed(content: dict[str, Any]) -> HuggingFaceConfig:
    return parse_config(json.dumps(content).encode(), PATH)


@pytest.mark.parametrize("content", [VERSION_4, VERSION_5, VERSION_4 | VERSION_5])
def test_both_spellings_are_one_model(content):
    assert parsed(content) == CODE_LLAMA


def test_what_the_forward_run_writes_is_read_back():
    content = config_json(
        model(CODE_34B, 22016, 32000),
        dtype=BFLOAT16, max_position_embeddings=16384, bos_token_id=1, eos_token_ids=[2],
    )  # fmt: skip
    assert parse_config(content, PATH) == CODE_LLAMA


@pytest.mark.transformers
@pytest.mark.parametrize("tied", [False, True])
def test_what_the_installed_transformers_saves_is_read(tmp_path, tied):
    """Whichever of the two spellings it writes."""
    import transformers

    transformers.LlamaConfig(
        hidden_size=96, intermediate_size=200, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=3, rms_norm_eps=1e-6, vocab_size=77, max_position_embeddings=512,
        rope_theta=5000.0, tie_word_embeddings=tied, bos_token_id=5, eos_token_id=[6, 7],
        architectures=["LlamaForCausalLM"], dtype="float16",
    ).save_pretrained(tmp_path)  # fmt: skip
    found, content = read_config(tmp_path / "config.json")
    assert content == (tmp_path / "config.json").read_bytes()
    assert found == HuggingFaceConfig(
        ModelConfig(
            hidden_size=96, intermediate_size=200, num_hidden_layers=3, num_attention_heads=6,
            num_key_value_heads=3, rms_norm_eps=1e-6, rope_theta=5000.0, vocab_size=77,
            tie_word_embeddings=tied,
        ),
        FLOAT16,
    )  # fmt: skip


def test_what_a_file_leaves_out_is_what_transformers_takes():
    """Llama 2's first config.json had no rope_theta; Llama 1's had no key and value heads."""
    left_out = ("rope_theta", "num_key_value_heads", "hidden_act", "architectures", "torch_dtype",
                "max_position_embeddings", "bos_token_id", "eos_token_id", "tie_word_embeddings",
                "attention_bias", "rope_scaling")  # fmt: skip
    found = parsed({key: value for key, value in VERSION_4.items() if key not in left_out})
    assert (found.model.rope_theta, found.model.num_key_value_heads) == (10000.0, 64)
    assert not found.model.tie_word_embeddings
    assert found.dtype is None


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"model_type": "mistral"}, ["'model_type': 'mistral'", "Mistral's", "are supported"]),
        ({"model_type": "qwen2"}, ["'qwen2'", "Qwen2's"]),
        ({"model_type": "gemma"}, ["'gemma'", "Gemma's"]),
        ({"model_type": "other"}, ["'model_type': 'other'", "are supported"]),
        ({"model_type": None}, ["no 'model_type'"]),
        ({"model_type": ["llama"]}, ["'model_type': ['llama']"]),
        ({"architectures": ["LlamaForSequenceClassification"]}, ["LlamaForSequenceClassification", "LlamaForCausalLM"]),
        ({"architectures": ["LlamaModel"]}, ["LlamaModel", "with its head"]),
        ({"architectures": "LlamaForCausalLM"}, ["architectures"]),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["quantization_config", "'gptq'", "quantised", "before quantisation"]),
        ({"quantization_config": "int8"}, ["'int8'", "quantised"]),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, ["compression_config"]),
        ({"attention_bias": True}, ["'attention_bias': true", "no biases"]),
        ({"mlp_bias": True}, ["'mlp_bias': true", "no biases"]),
        ({"mlp_bias": 0}, ["'mlp_bias' is 0", "true or false"]),
        ({"tie_word_embeddings": "true"}, ["'tie_word_embeddings' is 'true'"]),
        ({"hidden_act": "gelu"}, ["'hidden_act': 'gelu'", "silu"]),
        ({"head_dim": 96}, ["'head_dim': 96", "8192", "64", "128"]),
        ({"head_dim": 128.0}, ["'head_dim' is 128.0"]),
        ({"head_dim": True}, ["'head_dim' is True"]),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["'rope_scaling'", "linear", "as Llama 3.1 does"]),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ["no 'low_freq_factor'"]),
        ({"rope_scaling": LLAMA_3_SCALING | {"factor": 16.0}}, ["'rope_scaling'", "16.0", "factors 8 (32 for Llama 3.2)"]),
        ({"rope_scaling": LLAMA_3_SCALING | {"low_freq_factor": 2.0}}, ["'low_freq_factor': 2.0"]),
        ({"rope_scaling": LLAMA_3_SCALING | {"original_max_position_embeddings": 4096}}, ["4096"]),
        ({"rope_scaling": LLAMA_3_SCALING | {"type": "yarn"}}, ["'rope_scaling'", "yarn"]),
        ({"rope_scaling": LLAMA_3_SCALING, "rope_parameters": LLAMA_3_SCALING | {"factor": 32.0}}, ["the factor of rope_parameters 32.0", "of rope_scaling 8.0", "keep the one"]),
        ({"rope_scaling": {"factor": 8.0}}, ["'rope_scaling'", "factor"]),
        ({"rope_scaling": {"rope_type": "default", "type": "yarn"}}, ["'rope_scaling'", "yarn"]),
        ({"rope_scaling": 2.0}, ["'rope_scaling' is 2.0", "not an object"]),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "dynamic"}}, ["'rope_parameters'", "dynamic"]),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, ["'partial_rotary_factor': 0.5 in 'rope_parameters'", "whole heads"]),
        ({"partial_rotary_factor": 0.25}, ["'partial_rotary_factor': 0.25", "whole heads"]),  # as transformers 4 spells it
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, ["'rope_parameters'", "full_attention"]),
        ({"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}, ["rope_theta 1000000.0", "in rope_parameters 10000.0", "keep the one"]),
        ({"dtype": "float16"}, ["'torch_dtype': 'bfloat16'", "'dtype': 'float16'", "keep the one"]),
        ({"sliding_window": 4096}, ["'sliding_window': 4096", "Mistral"]),
        ({"num_experts": 8}, ["'num_experts': 8", "experts"]),
        ({"vocab_size": -1}, ["'vocab_size' is -1"]),
        ({"vocab_size": None}, ["no 'vocab_size'"]),
        ({"hidden_size": 0}, ["'hidden_size' is 0"]),
        ({"hidden_size": 8192.0}, ["'hidden_size' is 8192.0"]),
        ({"hidden_size": 8190}, ["hidden_size 8190", "num_attention_heads 64"]),
        ({"num_key_value_heads": 7}, ["num_attention_heads 64", "num_key_value_heads 7"]),
        ({"num_hidden_layers": 1 << 25}, ["'num_hidden_layers'"]),
        ({"intermediate_size": "22016"}, ["'intermediate_size' is '22016'"]),
        ({"rms_norm_eps": None}, ["no 'rms_norm_eps'"]),
        ({"rms_norm_eps": -1e-5}, ["'rms_norm_eps' is -1e-05"]),
        ({"rope_theta": "1e6"}, ["'rope_theta' is '1e6'"]),
        ({"rope_theta": 1e31}, ["'rope_theta' is 1e+31"]),
        ({"partial_rotary_factor": "half"}, ["'partial_rotary_factor' is 'half'"]),
    ],
)  # fmt: skip
def test_what_metas_code_cannot_run_is_refused_with_key_and_value(change, facts):
    with refused(ConfigError, "config.json", *facts):
        parsed(VERSION_4 | change)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": {"type": "default"}, "head_dim": None},
        {"rope_scaling": {"rope_type": "default", "factor": 1.0, "partial_rotary_factor": 1.0}},
        {"rope_scaling": {"rope_theta": 1000000}},
        {"rope_parameters": {"rope_theta": 1e6, "type": "default"}},
        {"partial_rotary_factor": 1.0},
        {"max_position_embeddings": 2.5, "bos_token_id": "1"},  # Meta's code reads neither
        {"attention_bias": None, "mlp_bias": None, "rope_interleaved": False},
        {"quantization_config": None, "sliding_window": None, "num_experts": 0},
        {"architectures": ["LLaMAForCausalLM"], "_name_or_path": "somewhere", "unknown": 7},
        {"architectures": None, "head_dim": 128, "hidden_act": None},
    ],
)
def test_what_says_nothing_of_another_model_is_passed_over(change):
    assert parsed(VERSION_4 | change) == CODE_LLAMA


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": LLAMA_3_SCALING},
        {"rope_scaling": {**LLAMA_3_SCALING, "type": "llama3"}},
        {"rope_theta": None, "rope_parameters": LLAMA_3_SCALING | {"rope_theta": 1e6}},
        {"rope_scaling": LLAMA_3_SCALING, "rope_parameters": LLAMA_3_SCALING | {"factor": 8}},
    ],
)
def test_the_scaling_of_llama_3_is_read_in_both_spellings(change):
    """It was refused: Meta's older code scales no rotary frequencies."""
    found = parsed(VERSION_4 | change)
    assert found.rope_scaling_factor == 8.0
    assert found.model.scaled_rope
    assert found.model.generation.name == "Llama 3"
    plain = parsed(VERSION_4)
    assert plain.rope_scaling_factor is None
    assert not plain.model.scaled_rope
    assert plain.model.generation.name == "Llama 1, Llama 2 and Code Llama"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"vocab_size": 128256}, "Llama 3"),
        ({"rope_theta": 500000.0}, "Llama 1, Llama 2 and Code Llama"),
    ],
)
def test_llama_3_itself_is_known_by_its_vocabulary_and_not_by_its_theta(change, name):
    """Llama 2 was trained on with Llama 3's rope_theta, and its ranks would be split otherwise."""
    found = parsed(VERSION_4 | change)
    assert found.model.generation.name == name
    assert found.rope_scaling_factor is None


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"", "empty"),
        (b"[]", "not a JSON object"),
        (b'{"vocab_size": 1, "vocab_size": 2}', "twice"),
        (b'{"rms_norm_eps": NaN}', "NaN"),
        (b"<html>", "HTML"),
        (b"{" + b" " * (1 << 20), "too large"),
    ],
)
def test_what_is_not_a_config_is_named(tmp_path, content, fact):
    (tmp_path / "config.json").write_bytes(content)
    with refused(ConfigError, "config.json", fact):
        read_config(tmp_path / "config.json")


def test_a_missing_file_is_one():
    with refused(ConfigError, "config.json", "No such file", "comes with the weights"):
        read_config(PATH)
