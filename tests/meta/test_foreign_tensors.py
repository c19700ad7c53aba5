"""Files of other models say so by their tensors' names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from codellama_convert.errors import LayoutError
from codellama_convert.formats.pth.reader import read_rank
from codellama_convert.meta.foreign_tensors import FOREIGN_TENSORS
from codellama_convert.meta.state_dict import find_state_dict
from tests.refusals import refused
from tests.witness.checkpoints import MHA, expected_state_dict, random_model

STATE = random_model(MHA)
MATRIX = torch.ones(8, 4)
TRAINED = "merge the adapter into its model"


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("layers.0.attention.wq.lora_a.weight", ("LoRA", TRAINED)),
        ("base_model.model.lora_B.default.weight", ("LoRA", TRAINED)),
        ("layers.0.adapter_query.weight", ("adapter", TRAINED)),
        ("layers.0.feed_forward.experts.0.w1.weight", ("mixture of experts", "Mixtral")),
        ("layers.0.feed_forward.gate.weight", ("mixture of experts", "Mixtral")),
        ("layers.0.feed_forward.router_DE.weight", ("mixture of experts",)),
        ("text_model.cross_attention_layers.0.attention.wq.weight", ("images", "Llama 3.2 Vision")),
        ("vision_model.vision_encoder.conv1.weight", ("images", "Llama 3.2 Vision")),
        ("layers.0.attention.wq.qweight", ("quantised", "bfloat16")),
        ("layers.0.feed_forward.w1.scales", ("quantised",)),
        ("layers.0.attention.wqkv.weight", ("gpt-fast",)),
        ("transformer.wte.weight", ("litgpt", "Meta's files")),
        ("transformer.h.0.attn.qkv.weight", ("litgpt", "Meta's files")),
        ("model.layers.0.self_attn.q_proj.weight", ("Hugging Face's names already",)),
    ],
)
def test_a_tensor_of_another_model_is_called_by_its_kind(
    tmp_path: Path, name: str, facts: tuple[str, ...]
) -> None:
    """All of them were a missing tensor, or one that does not belong to a Llama model."""
    path = tmp_path / "consolidated.00.pth"
    torch.save(STATE, path)
    assert list(read_rank(path, choose=find_state_dict).tensors) == list(STATE)
    entries = STATE | {name: MATRIX}
    for saved in (entries, {"model": entries}):
        torch.save(saved, path)
        with refused(LayoutError, path.name, repr(name), "(8, 4)", *facts):
            read_rank(path, choose=find_state_dict)
    torch.save({f"module.{key}": value for key, value in entries.items()}, path)
    with refused(LayoutError, path.name, repr(f"module.{name}"), *facts):
        read_rank(path, choose=find_state_dict)


def test_hugging_faces_names_are_told_with_the_tensor_and_its_shape(tmp_path: Path) -> None:
    """The file of a Hugging Face folder, renamed: a tensor of Meta's was said to be missing."""
    torch.save(expected_state_dict(STATE, MHA), tmp_path / "consolidated.00.pth")
    facts = ("consolidated.00.pth", "'model.embed_tokens.weight'", "(320, 32)", "Hugging Face")
    with refused(LayoutError, *facts):
        read_rank(tmp_path / "consolidated.00.pth", choose=find_state_dict)


def test_no_name_of_metas_is_anothers() -> None:
    names = [*STATE, "rope.freqs", "layers.0.attention.inner_attention.rope.freqs"]
    for row in FOREIGN_TENSORS:
        assert not list(filter(row.pattern.search, names)), row.what
        assert not re.search(r"\.$", row.what)
