"""Own the Hugging Face folders that tests read, written with the safetensors library alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from codellama_convert.hugging_face.folder import HuggingFaceCheckpoint
from tests.witness.checkpoints import GQA, Shape, State, expected_state_dict, random_model

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
THETA = 1000000.0


def weights(shape: Shape = GQA, dtype: torch.dtype = torch.bfloat16) -> State:
    """Make a model's tensors under Hugging Face's names, in the order of its state dict."""
    state = expected_state_dict(random_model(shape, dtype), shape)
    return {name: tensor.contiguous() for name, tensor in state.items()}


def split(state: State, n_files: int) -> list[State]:
    """Deal tensors out like cards, which no program's split does."""
    return [dict(list(state.items())[i::n_files]) for i in range(n_files)]


def config(shape: Shape = GQA, **change: Any) -> dict[str, Any]:
    """Spell config.json as transformers 4 does; a change to None takes the key out."""
    content = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": shape.dim, "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.n_layers, "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads, "rms_norm_eps": 1e-05, "rope_theta": THETA,
        "vocab_size": shape.vocab, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
        "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2,
    } | change  # fmt: skip
    return {key: value for key, value in content.items() if value is not None}


def write_folder(
    folder: Path,
    files: Sequence[Mapping[str, torch.Tensor]],
    *,
    index: bool | None = None,
    **change: Any,
) -> Path:
    """Write config.json and one file, or several and their index.

    Args:
        folder: Made here.
        files: What each of them holds.
        index: Whether an index is written; by default where there are several files.
        change: Of config.json.
    """
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(**change)), encoding="utf-8")
    n = len(files)
    names = (
        [SINGLE] if n == 1 else [f"model-{i:05d}-of-{n:05d}.safetensors" for i in range(1, n + 1)]
    )
    for name, state in zip(names, files, strict=True):
        save_file(dict(state), folder / name, metadata={"format": "pt"})
    if n > 1 if index is None else index:
        write_index(
            folder, {t: name for name, state in zip(names, files, strict=True) for t in state}
        )
    return folder


def write_index(folder: Path, weight_map: Mapping[str, Any]) -> None:
    content = {"metadata": {"total_size": 0}, "weight_map": dict(weight_map)}
    (folder / INDEX).write_text(json.dumps(content), encoding="utf-8")


def names_in(checkpoint: HuggingFaceCheckpoint, number: int) -> list[str]:
    """Name the model's tensors that lie in a file."""
    return [tensor.spec.name for tensor in checkpoint.tensors if tensor.file == number]
