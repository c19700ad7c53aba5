"""A head that is the embedding: written as transformers expects it, and verified."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from codellama_convert import Options, convert_checkpoint, plan_conversion, verify_output
from codellama_convert.errors import LayoutError
from tests.convert.bits import assert_same_bits
from tests.convert.noted import assert_converted_with_note, write_ranks
from tests.refusals import refused
from tests.witness.checkpoints import (
    GQA,
    MHA,
    State,
    expected_state_dict,
    random_model,
    read_output,
    split_ranks,
)

HEAD, EMBEDDING = "output.weight", "tok_embeddings.weight"
HF_HEAD = "lm_head.weight"


def without_head(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name != HEAD}


def tied_model() -> State:
    state = random_model(MHA)
    return state | {HEAD: state[EMBEDDING]}


def expected_of(state: State) -> State:
    return {n: t for n, t in expected_state_dict(state, MHA).items() if n != HF_HEAD}


@pytest.mark.parametrize("kept", [True, False], ids=["shared", "absent"])
def test_a_head_that_is_the_embedding_is_tied(tmp_path: Path, *, kept: bool) -> None:
    """It was missing, or written a second time with a config.json that says they differ."""
    state = tied_model()
    source = write_ranks(tmp_path / "in", [state if kept else without_head(state)])
    facts = (HEAD, "embedding itself" if kept else "missing", "tie_word_embeddings is true")
    assert_converted_with_note(source, tmp_path / "out", expected_of(state), *facts)
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["tie_word_embeddings"] is True


def test_transformers_ties_them_too(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    state = tied_model()
    convert_checkpoint(write_ranks(tmp_path / "in", [state]), tmp_path / "out")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    assert torch.equal(model.lm_head.weight.view(torch.int16), state[EMBEDDING].view(torch.int16))


def test_ranks_without_a_head_are_tied(tmp_path: Path) -> None:
    state = random_model(GQA)
    ranks = split_ranks(without_head(state), 2)
    convert_checkpoint(write_ranks(tmp_path / "in", ranks, GQA), tmp_path / "out")
    expected = expected_state_dict(state, GQA)
    del expected[HF_HEAD]
    assert_same_bits(read_output(tmp_path / "out"), expected)


def test_a_head_that_one_rank_lacks_is_missing(tmp_path: Path) -> None:
    first, second = split_ranks(random_model(GQA), 2)
    for number, ranks in enumerate(([first, without_head(second)], [without_head(first), second])):
        source = write_ranks(tmp_path / f"in-{number}", ranks, GQA)
        with refused(LayoutError, f"consolidated.0{1 - number}.pth", f"{HEAD!r} is missing"):
            convert_checkpoint(source, tmp_path / "out")


def test_equal_tensors_of_two_storages_are_not_tied(tmp_path: Path) -> None:
    """Only their place says that they are one: values may have come to be equal."""
    state = tied_model()
    state[HEAD] = state[HEAD].clone()
    convert_checkpoint(write_ranks(tmp_path / "in", [state]), tmp_path / "out")
    assert_same_bits(read_output(tmp_path / "out"), expected_state_dict(state, MHA))
    assert '"tie_word_embeddings": false' in (tmp_path / "out" / "config.json").read_text()


def test_verify_finds_a_head_that_does_not_belong_and_a_wrong_flag(tmp_path: Path) -> None:
    source = write_ranks(tmp_path / "in", [tied_model()])
    convert_checkpoint(source, tmp_path / "out")
    job = plan_conversion(source, Options())
    config = tmp_path / "out" / "config.json"
    content = config.read_text(encoding="utf-8")
    config.write_text(
        content.replace('_embeddings": true', '_embeddings": false'), encoding="utf-8"
    )
    problems = "\n".join(verify_output(tmp_path / "out", job).problems)
    assert "tie_word_embeddings" in problems
    config.write_text(content, encoding="utf-8")
    weights = tmp_path / "out" / "model.safetensors"
    tensors = load_file(weights)
    save_file(
        tensors | {HF_HEAD: torch.ones(320, 32, dtype=torch.bfloat16)}, weights, {"format": "pt"}
    )
    problems = "\n".join(verify_output(tmp_path / "out", job).problems)
    assert f"tensor '{HF_HEAD}' does not belong to this model" in problems
