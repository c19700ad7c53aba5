"""What is no Llama's folder, or no whole one, is refused by its kind."""

from __future__ import annotations

import pytest
import torch

from codellama_convert.errors import CheckpointError, LayoutError
from codellama_convert.hugging_face.folder import open_folder
from tests.hugging_face.folders import (
    HEAD,
    Q_PROJ,
    SINGLE,
    write_folder,
)
from tests.refusals import refused

ONE = torch.ones(4, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("more", "facts"),
    [
        ({"model.layers.0.self_attn.q_proj.bias": ONE}, ["q_proj.bias' is a bias", "no biases"]),
        ({"model.layers.0.mlp.up_proj.qweight": ONE.to(torch.int32)}, ["up_proj.qweight'", "quantised"]),
        ({"model.layers.0.mlp.up_proj.scales": ONE}, ["up_proj.scales'", "quantised", "before quantisation"]),
        ({"model.layers.0.mlp.up_proj.weight.absmax": ONE}, ["absmax'", "quantised"]),
        ({"model.layers.0.mlp.up_proj.SCB": ONE.float()}, ["SCB'", "quantised"]),
        ({Q_PROJ: torch.zeros(64, 64).to(torch.float8_e4m3fn)}, [f"{Q_PROJ!r} is F8_E4M3", "quantised"]),
        ({Q_PROJ: torch.zeros(64, 64, dtype=torch.int8)}, [f"{Q_PROJ!r} is I8", "quantised"]),
        ({Q_PROJ: torch.zeros(64, 64, dtype=torch.float64)}, [f"{Q_PROJ!r} is F64", "bfloat16, float16"]),
        ({"model.layers.0.self_attn.q_proj.lora_A.weight": ONE}, ["lora_A", "adapter", "merge"]),
        ({"model.layers.0.self_attn.q_proj.base_layer.weight": ONE}, ["base_layer", "adapter", "merge"]),
        ({"model.layers.0.mlp.experts.0.w1.weight": ONE}, ["mixture of experts"]),
        ({"model.layers.0.self_attn.q_norm.weight": ONE}, ["q_norm.weight' normalises queries"]),
        ({"model.layers.2.mlp.up_proj.weight": ONE}, ["layer beyond the num_hidden_layers"]),
        ({"tok_embeddings.weight": ONE}, ["'tok_embeddings.weight' has Meta's name"]),
        ({"score.weight": ONE, "value.weight": ONE.clone()}, ["'score.weight' does not belong to a Llama model (and 1 other)"]),
        ({Q_PROJ: torch.ones(64, 32, dtype=torch.bfloat16)}, [SINGLE, f"{Q_PROJ!r} has shape (64, 32), expected (64, 64)", "same model"]),
    ],
)  # fmt: skip
def test_tensors_that_no_llama_has_are_refused_by_name(tmp_path, state, more, facts):
    with refused(LayoutError, *facts):
        open_folder(write_folder(tmp_path / "hf", [state | more]))


@pytest.mark.parametrize("prefix", ["base_model.model.", "_orig_mod.", "module."])
def test_the_prefix_of_a_wrapper_is_named(tmp_path, state, prefix):
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    with refused(LayoutError, f"begins with {prefix!r}", "inside the wrapper"):
        open_folder(write_folder(tmp_path / "hf", [wrapped]))


def test_a_model_without_its_head_is_called_that(tmp_path, state):
    bare = {n.removeprefix("model."): t for n, t in state.items() if n != HEAD}
    with refused(LayoutError, "'embed_tokens.weight' is there", "without its head"):
        open_folder(write_folder(tmp_path / "hf", [bare]))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])  # fmt: skip
def test_an_adapter_beside_the_model_is_refused(tmp_path, state, name):
    """transformers would put it on the weights, and the ranks would be another model."""
    folder = write_folder(tmp_path / "hf", [state])
    (folder / name).write_bytes(b"{}")
    with refused(CheckpointError, f"holds {name}", "adapter", "merge"):
        open_folder(folder)


@pytest.mark.parametrize(
    ("names", "facts"),
    [
        (["consolidated.00.pth", "params.json"], ["consolidated.00.pth", "Meta's layout"]),
        (["model.bin", "config.json"], ["model.bin", "save_pretrained"]),
        (["model-q4.gguf"], ["model-q4.gguf", "llama.cpp", "made from"]),
        (["consolidated.safetensors", "params.json"], ["consolidated.safetensors", "Mistral"]),
        (["tf_model.h5"], ["tf_model.h5", "another framework"]),
        (["config.json"], ["neither safetensors files nor pytorch_model.bin", "config.json"]),
    ],
)
def test_a_folder_of_another_kind_is_told_what_it_holds(tmp_path, names, facts):
    for name in names:
        (tmp_path / name).write_bytes(b"{}")
    with refused(CheckpointError, *facts):
        open_folder(tmp_path)
