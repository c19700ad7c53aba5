"""Eight ways to be wrong: every turn of a conversion that people have taken wrongly, on purpose.

Each is planted in a converted folder or in the checkpoint, and each makes the filling fail; beside
it stands the same treatment without the fault, which fills all.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from codellama_convert import CodeLlamaTokenizer
from examples.infill import PROMPT
from tests.checkpoints import half_split_rows
from tests.tiny import (
    DOCUMENTED_MIDDLE,
    TINY,
    auto_tokenizer,
    convert,
    fill_all,
    load,
    recipe_fill,
    recipe_prompt,
)

N_HEADS, N_KV_HEADS, HEAD_DIM, N_LAYERS = 8, 2, 16, 3
PROJECTIONS = {"q_proj": N_HEADS, "k_proj": N_KV_HEADS}


def edit_weights(source: Path, target: Path, edit: Any) -> Path:
    shutil.copytree(source, target)
    path = target / "model.safetensors"
    tensors = load_file(path)
    edited = edit(dict(tensors))
    assert set(edited) == set(tensors)
    changed = [name for name in tensors if not torch.equal(tensors[name], edited[name])]
    assert changed, "the edit must edit"
    save_file({n: t.contiguous() for n, t in edited.items()}, path, metadata={"format": "pt"})
    return target


def reorder(tensors: dict[str, torch.Tensor], rows_of: Any) -> dict[str, torch.Tensor]:
    """Take the rotary rows back to Meta's order, then in an order of one's own."""
    for layer in range(N_LAYERS):
        for projection, n_heads in PROJECTIONS.items():
            name = f"model.layers.{layer}.self_attn.{projection}.weight"
            back = torch.tensor(half_split_rows(n_heads, HEAD_DIM)).argsort()
            tensors[name] = tensors[name][back][rows_of(n_heads)]
    return tensors


def swap(tensors: dict[str, torch.Tensor], one: str, other: str) -> dict[str, torch.Tensor]:
    for layer in range(N_LAYERS):
        first, second = (f"model.layers.{layer}.{name}.weight" for name in (one, other))
        tensors[first], tensors[second] = tensors[second], tensors[first]
    return tensors


WRONG_WEIGHTS = {
    "reordering left out": lambda tensors: reorder(
        tensors, lambda n_heads: torch.arange(n_heads * HEAD_DIM)
    ),
    "reordering inverted": lambda tensors: reorder(
        tensors, lambda n_heads: torch.tensor(half_split_rows(n_heads, HEAD_DIM)).argsort()
    ),
    "the query heads' count for keys": lambda tensors: reorder(
        tensors,
        lambda n_heads: torch.tensor(half_split_rows(N_HEADS, n_heads * HEAD_DIM // N_HEADS)),
    ),
    "gate and up swapped": lambda tensors: swap(tensors, "mlp.gate_proj", "mlp.up_proj"),
    "key and value heads given to other query heads": lambda tensors: {
        name: tensor.roll(HEAD_DIM, 0)
        if name.endswith(("k_proj.weight", "v_proj.weight"))
        else tensor
        for name, tensor in tensors.items()
    },
}


def n_told(folder: Path, training: Any) -> int:
    """How many functions a folder fills in right, of 12, prefix first."""
    tokenizer = CodeLlamaTokenizer.from_pretrained(folder)
    told = fill_all(load(folder), tokenizer, training.FILLINGS)
    return sum(text == one.middle for text, one in zip(told, training.FILLINGS, strict=True))


def test_a_copy_by_the_controls_own_means_fills_all(tiny_folder, training, tmp_path):
    """The controls fail by their edits, not by the way they are made."""

    def back_and_forth(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        right = {name: tensor.clone() for name, tensor in tensors.items()}
        reordered = reorder(
            tensors, lambda n_heads: torch.tensor(half_split_rows(n_heads, HEAD_DIM))
        )
        assert all(torch.equal(reordered[name], right[name]) for name in right)
        reordered["lm_head.weight"] = reordered["lm_head.weight"].clone()
        reordered["lm_head.weight"][0, 0] += 1e-2  # the unknown piece's row, never told
        return reordered

    assert n_told(edit_weights(tiny_folder, tmp_path / "copy", back_and_forth), training) == 12


@pytest.mark.parametrize("wrong", WRONG_WEIGHTS)
def test_wrong_weights_fill_in_nothing(tiny_folder, training, tmp_path, wrong):
    edited = edit_weights(tiny_folder, tmp_path / "wrong", WRONG_WEIGHTS[wrong])
    assert n_told(edited, training) == 0


def test_two_ranks_swapped_fill_in_nothing(training, tmp_path):
    swapped = Path(shutil.copytree(TINY, tmp_path / "in"))
    for number, other in ((0, 1), (1, 0)):
        name = f"consolidated.0{other}.pth"
        (swapped / f"consolidated.0{number}.pth").write_bytes((TINY / name).read_bytes())
    (swapped / "checklist.chk").unlink()
    assert n_told(convert(swapped, tmp_path / "wrong"), training) == 0


def test_another_rope_theta_fills_in_nothing(tiny_folder, training, tmp_path):
    edited = Path(shutil.copytree(tiny_folder, tmp_path / "wrong"))
    config = json.loads((edited / "config.json").read_bytes())
    assert config["rope_theta"] == 1e6
    (edited / "config.json").write_text(json.dumps(config | {"rope_theta": 1e4}))
    assert n_told(edited, training) == 0


def test_merges_in_another_order_do_not_fill_in_the_example(tiny_folder, tmp_path):
    edited = Path(shutil.copytree(tiny_folder, tmp_path / "wrong"))
    content = json.loads((edited / "tokenizer.json").read_bytes())
    content["model"]["merges"].reverse()
    (edited / "tokenizer.json").write_text(json.dumps(content))
    prefix, suffix = PROMPT.split("<FILL_ME>")
    model = load(tiny_folder)
    for place, is_right in ((tiny_folder, True), (edited, False)):
        tokenizer = auto_tokenizer(place)
        prompt = recipe_prompt(tokenizer, prefix, suffix, suffix_first=False)
        assert (recipe_fill(model, tokenizer, prompt) == DOCUMENTED_MIDDLE) is is_right
