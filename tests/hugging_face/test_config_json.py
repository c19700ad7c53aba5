"""config.json and generation_config.json: their keys are spelled here by hand."""

from __future__ import annotations

import json

import pytest

from codellama_convert.hugging_face.config_json import config_json, generation_config_json
from codellama_convert.tensors import BFLOAT16
from tests.model.params import CODE_7B, CODE_34B, model


def test_config_json_is_what_both_versions_of_transformers_read():
    config = model(CODE_34B, 22016, 32000)
    written = json.loads(
        config_json(
            config, dtype=BFLOAT16, max_position_embeddings=16384, bos_token_id=3, eos_token_ids=[4]
        )
    )
    assert written == {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 3,
        "eos_token_id": 4,
        "hidden_act": "silu",
        "hidden_size": 8192,
        "initializer_range": 0.02,
        "intermediate_size": 22016,
        "max_position_embeddings": 16384,
        "model_type": "llama",
        "num_attention_heads": 64,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 32000,
    }
    for stop_token_ids, end in (((4,), 4), ((2, 32015), [2, 32015])):
        content = generation_config_json(bos_token_id=3, stop_token_ids=stop_token_ids)
        assert json.loads(content) == {"bos_token_id": 3, "eos_token_id": end}


@pytest.mark.transformers
def test_transformers_reads_the_config(tmp_path):
    from transformers import AutoConfig, GenerationConfig

    config = model(CODE_7B, 11008, 32016)
    content = config_json(
        config, dtype=BFLOAT16, max_position_embeddings=16384, bos_token_id=1, eos_token_ids=[2]
    )
    (tmp_path / "config.json").write_bytes(content)
    generation = generation_config_json(bos_token_id=1, stop_token_ids=(2,))
    (tmp_path / "generation_config.json").write_bytes(generation)
    read = AutoConfig.from_pretrained(tmp_path)
    theta = getattr(read, "rope_theta", None) or read.rope_parameters["rope_theta"]
    assert theta == 1e6
    assert read.max_position_embeddings == 16384
    assert str(getattr(read, "dtype", None) or read.torch_dtype) == "torch.bfloat16"
    generation = GenerationConfig.from_pretrained(tmp_path)
    assert (generation.bos_token_id, generation.eos_token_id) == (1, 2)
    assert not generation.do_sample
