"""Own config.json and generation_config.json: their keys, and how JSON is written beside a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from codellama_convert.model.config import ModelConfig
from codellama_convert.tensors import Dtype


def config_json(
    config: ModelConfig,
    *,
    dtype: Dtype,
    max_position_embeddings: int,
    bos_token_id: int,
    eos_token_id: int,
) -> bytes:
    """Write config.json in the spelling that transformers 4.x and 5.x both read.

    5.x writes `dtype` and `rope_parameters` instead of `torch_dtype` and a top-level `rope_theta`,
    but reads both; 4.x reads these alone, and without them takes a rope_theta of 10000 in silence.

    Args:
        config: The model.
        dtype: Of the written tensors.
        max_position_embeddings: Context length.
        bos_token_id: What begins a text.
        eos_token_id: What ends a text.

    Returns:
        The file's bytes.

    Source:
        codellama/CodeLlama-7b-hf config.json, as first published.
    """
    content: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": max_position_embeddings,
        "model_type": "llama",
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": dtype.name,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }
    return json_bytes(content)


def generation_config_json(*, bos_token_id: int, stop_token_ids: Sequence[int]) -> bytes:
    """Write generation_config.json: where a text begins and ends, and no sampling defaults.

    Args:
        bos_token_id: What begins a text.
        stop_token_ids: Where generation stops.

    Returns:
        The file's bytes.
    """
    stop = stop_token_ids[0] if len(stop_token_ids) == 1 else list(stop_token_ids)
    return json_bytes({"bos_token_id": bos_token_id, "eos_token_id": stop})


def json_bytes(content: Any) -> bytes:
    """Write JSON as the files beside a model are written: sorted, indented, one final newline."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
