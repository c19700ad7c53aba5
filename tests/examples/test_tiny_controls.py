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
from tests.witness.checkpoints import half_split_rows
from tests.witness.tiny import (
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
    """How many gaps a folder fills in right: of 24, twelve functions in both orders."""
    tokenizer, model = CodeLlamaTokenizer.from_pretrained(folder), load(folder)
    return sum(
        text == one.middle
        for suffix_first in (False, True)
        for text, one in zip(
            fill_all(model, tokenizer, training.FILLINGS, suffix_first=suffix_first),
            training.FILLINGS,
            strict=True,
        )
    )


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

    assert n_told(edit_weights(tiny_folder, tmp_path / "copy", back_and_forth), training) == 24


@pytest.mark.parametrize("wrong", WRONG_WEIGHTS)
def test_wrong_weights_fill_in_nothing(tiny_folder, training, tmp_path, wrong):
    edited = edit_weights(tiny_folder, tmp_path / "wrong", WRONG_WEIGHTS[wrong])
    assert n_told(edited, training) == 0


@pytest.mark.parametrize("swapped", [False, True])
def test_two_ranks_swapped_fill_in_nothing(training, tmp_path, swapped):
    source = Path(shutil.copytree(TINY, tmp_path / "in"))
    (source / "checklist.chk").unlink()
    for number in (0, 1):
        other = 1 - number if swapped else number
        shutil.copy(TINY / f"consolidated.0{other}.pth", source / f"consolidated.0{number}.pth")
    assert n_told(convert(source, tmp_path / "out"), training) == (0 if swapped else 24)


@pytest.mark.parametrize(("rope_theta", "n_right"), [(1e6, 24), (1e4, 0)])
def test_another_rope_theta_fills_in_nothing(tiny_folder, training, tmp_path, rope_theta, n_right):
    edited = Path(shutil.copytree(tiny_folder, tmp_path / "out"))
    config = json.loads((edited / "config.json").read_bytes())
    assert config["rope_theta"] == 1e6
    (edited / "config.json").write_text(json.dumps(config | {"rope_theta": rope_theta}))
    assert n_told(edited, training) == n_right


def by_id(merges: list[Any], vocabulary: dict[str, int]) -> list[Any]:
    """As transformers 5 does with a bare tokenizer.model: by id, where Meta's go by score."""
    pieces = [one.split(" ") if isinstance(one, str) else one for one in merges]
    return [
        merge
        for _, merge in sorted(
            zip(pieces, merges, strict=True), key=lambda pair: vocabulary["".join(pair[0])]
        )
    ]


@pytest.mark.parametrize(
    ("order", "least", "most"),
    [
        (lambda merges, _: merges, 24, 24),
        (lambda merges, _: merges[::-1], 0, 6),
        (by_id, 0, 16),
    ],
    ids=["as they are", "reversed", "by id"],
)
def test_merges_in_another_order_do_not_fill_in_the_example(
    tiny_folder, training, tmp_path, order, least, most
):
    """Short prompts may come out the same by luck; the documented one does in neither order."""
    edited = Path(shutil.copytree(tiny_folder, tmp_path / "out"))
    content = json.loads((edited / "tokenizer.json").read_bytes())
    content["model"]["merges"] = order(content["model"]["merges"], content["model"]["vocab"])
    (edited / "tokenizer.json").write_text(json.dumps(content))
    tokenizer, model = auto_tokenizer(edited), load(tiny_folder)
    right = []
    for suffix_first in (False, True):
        prompts = [
            recipe_prompt(tokenizer, one.prefix, one.suffix, suffix_first=suffix_first)
            for one in training.FILLINGS
        ]
        told = recipe_fill(model, tokenizer, prompts)
        assert (told[0] == DOCUMENTED_MIDDLE) is (least == 24)
        right += [text == one.middle for text, one in zip(told, training.FILLINGS, strict=True)]
    assert least <= sum(right) <= most
