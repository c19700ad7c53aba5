"""Own config.json and generation_config.json: their keys, and how JSON is written beside a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from codellama_convert.hugging_face.rope_settings import SCALING
from codellama_convert.model.config import ModelConfig
from codellama_convert.model.generations import LLAMA_3
from codellama_convert.tensors import Dtype

# The first that scales frequencies as Llama 3.1 does. Without a version, or with one between 4.57.2
# and 5, transformers 4.57.6 takes a large vocabulary for Mistral's, and advises
# fix_mistral_regex=True, which breaks it.
_TRANSFORMERS_VERSION = "4.43.0"


def config_json(
    config: ModelConfig,
    *,
    dtype: Dtype,
    max_position_embeddings: int,
    rope_scaling_factor: float | None = None,
    bos_token_id: int,
    eos_token_ids: Sequence[int],
) -> bytes:
    """Write config.json in the spelling that transformers 4.x and 5.x both read.

    5.x writes `dtype` and `rope_parameters` instead of `torch_dtype` and a top-level `rope_theta`,
    but reads both; 4.x reads these alone, and without them takes a rope_theta of 10000 in silence.

    Args:
        config: The model.
        dtype: Of the written tensors.
        max_position_embeddings: Context length.
        rope_scaling_factor: By which the lowest rotary frequencies are divided, as Llama 3.1 does
            it; None where they are not scaled.
        bos_token_id: What begins a text.
        eos_token_ids: What end a text.

    Returns:
        The file's bytes.

    Source:
        codellama/CodeLlama-7b-hf config.json, as first published; that of
        meta-llama/Llama-3.1-8B-Instruct.
    """
    scaling: dict[str, Any] | None = None
    if rope_scaling_factor is not None:
        scaling = {"factor": rope_scaling_factor, "rope_type": "llama3", **SCALING}
    content: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": bos_token_id,
        "eos_token_id": _one_or_list(eos_token_ids),
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
        "rope_scaling": scaling,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": dtype.name,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }
    if config.generation == LLAMA_3:
        content["transformers_version"] = _TRANSFORMERS_VERSION
    return json_bytes(content)


def generation_config_json(*, bos_token_id: int, stop_token_ids: Sequence[int]) -> bytes:
    """Write generation_config.json: where a text begins and ends, and no sampling defaults.

    Args:
        bos_token_id: What begins a text.
        stop_token_ids: Where generation stops.

    Returns:
        The file's bytes.
    """
    return json_bytes({"bos_token_id": bos_token_id, "eos_token_id": _one_or_list(stop_token_ids)})


def _one_or_list(ids: Sequence[int]) -> int | list[int]:
    return ids[0] if len(ids) == 1 else list(ids)


def json_bytes(content: Any) -> bytes:
    """Write JSON as the files beside a model are written: sorted, indented, one final newline."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
