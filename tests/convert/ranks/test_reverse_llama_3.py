"""The way back of Llama 3: ranks as Meta's own program for it reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from codellama_convert import Options, convert_checkpoint, reverse_checkpoint, verify_output
from codellama_convert.errors import ConfigError
from codellama_convert.plan.ranks.job import plan_reverse
from codellama_convert.plan.ranks.options import ReverseOptions
from tests.refusals import refused
from tests.witness.checkpoints import Shape, State, random_model
from tests.witness.llama3_ranks import (
    EMBEDDING,
    HEAD,
    HEADS_OF_64,
    HEADS_OF_128,
    SIXTEEN,
    llama_3_ranks,
    save_llama_3,
)
from tests.witness.ranks import in_metas_order, rank_differences


def reversed_ranks(source: Path, output: Path, n_ranks: int | None) -> Path:
    """Write ranks of a folder of either side, and verify them both ways."""
    options = ReverseOptions(n_ranks=n_ranks, skip_tokenizer=True)
    reverse_checkpoint(source, output, options=options)
    assert verify_output(output, plan_reverse(source, options)).problems == ()
    assert verify_output(output).problems == ()
    return output


def hugging_face(source: Path, factor: float | None = None) -> Path:
    output = source.with_name(f"{source.name}-hf")
    options = Options(skip_tokenizer=True, rope_scaling_factor=factor)
    convert_checkpoint(source, output, options=options)
    return output


def params_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "params.json").read_text(encoding="utf-8"))
    return found


def ranks_as_written(state: State, n_ranks: int, shape: Shape) -> list[State]:
    return [in_metas_order(rank) for rank in llama_3_ranks(state, n_ranks, shape)]


@pytest.mark.parametrize("from_metas", [False, True], ids=["hugging_face", "meta"])
@pytest.mark.parametrize(
    ("shape", "n_sources", "n_ranks"),
    [(HEADS_OF_128, 1, 2), (HEADS_OF_128, 2, 1), (SIXTEEN, 16, 8), (SIXTEEN, 2, 4)],
)
def test_ranks_are_split_as_llama_3s_are(
    tmp_path: Path, shape: Shape, n_sources: int, n_ranks: int, *, from_metas: bool
) -> None:
    """The embedding's columns were split, which Meta's program joins into another matrix."""
    state = random_model(shape, special_values=True)
    source = save_llama_3(tmp_path / "in", shape, state, n_sources)
    if not from_metas:
        source = hugging_face(source)
    output = reversed_ranks(source, tmp_path / "out", n_ranks)
    assert rank_differences(output, ranks_as_written(state, n_ranks, shape)) == []
    said = params_of(output)
    assert (said["use_scaled_rope"], said["rope_theta"]) == (True, 500000.0)
    assert (said["n_kv_heads"], said["vocab_size"]) == (shape.n_kv_heads, 320)


def test_no_rank_has_frequencies_which_metas_program_refuses(tmp_path: Path) -> None:
    source = hugging_face(save_llama_3(tmp_path / "in", HEADS_OF_128, n_ranks=2))
    for ranks in (1, 2):
        output = reversed_ranks(source, tmp_path / f"out-{ranks}", ranks)
        for path in output.glob("*.pth"):
            assert not [name for name in torch.load(path, weights_only=True) if "rope" in name]


def test_ranks_come_back_byte_for_byte(tmp_path: Path) -> None:
    source = save_llama_3(tmp_path / "in", HEADS_OF_128, n_ranks=2)
    output = reversed_ranks(hugging_face(source), tmp_path / "out", None)
    for name in ("consolidated.00.pth", "consolidated.01.pth", "params.json"):
        assert (output / name).read_bytes() == (source / name).read_bytes()


def shares_storage(path: Path) -> bool:
    rank = torch.load(path, weights_only=True)
    return bool(rank[HEAD].data_ptr() == rank[EMBEDDING].data_ptr())


@pytest.mark.parametrize("from_metas", [False, True], ids=["hugging_face", "meta"])
@pytest.mark.parametrize("n_ranks", [1, 2])
def test_a_tied_head_is_a_second_name_of_the_embedding_in_every_rank(
    tmp_path: Path, n_ranks: int, *, from_metas: bool
) -> None:
    """It was written twice: a 1B of Meta's has 2.5 GB, and the one that was written 3.0 GB."""
    state = random_model(HEADS_OF_128)
    state |= {HEAD: state[EMBEDDING]}
    source = save_llama_3(tmp_path / "in", HEADS_OF_128, state, 3 - n_ranks, tied="copy")
    if not from_metas:
        source = hugging_face(source)
    output = reversed_ranks(source, tmp_path / "out", n_ranks)
    assert rank_differences(output, ranks_as_written(state, n_ranks, HEADS_OF_128)) == []
    for path in output.glob("*.pth"):
        assert shares_storage(path)
        rank = torch.load(path, weights_only=True)
        torch.save(rank, tmp_path / "of_torch.pth")
        assert abs(path.stat().st_size - (tmp_path / "of_torch.pth").stat().st_size) < 20_000
    (output / "conversion.json").unlink()
    options = ReverseOptions(skip_tokenizer=True)
    assert verify_output(output, plan_reverse(source, options)).problems == ()


def test_verify_finds_a_head_that_is_written_twice(tmp_path: Path) -> None:
    """The negative control of the test above: the same numbers, in a storage of their own."""
    state = random_model(HEADS_OF_64)
    state |= {HEAD: state[EMBEDDING]}
    source = hugging_face(save_llama_3(tmp_path / "in", HEADS_OF_64, state, tied="copy"))
    output = reversed_ranks(source, tmp_path / "out", 1)
    path = output / "consolidated.00.pth"
    rank = torch.load(path, weights_only=True)
    torch.save(rank | {HEAD: rank[HEAD].clone()}, path)
    problems = verify_output(output, plan_reverse(source, ReverseOptions(skip_tokenizer=True)))
    assert any(path.name in one and "laid out" in one for one in problems.problems)
    assert verify_output(output).problems != ()


def test_a_head_of_its_own_is_written_as_one(tmp_path: Path) -> None:
    source = hugging_face(save_llama_3(tmp_path / "in", HEADS_OF_64))
    output = reversed_ranks(source, tmp_path / "out", 1)
    assert not shares_storage(output / "consolidated.00.pth")


def test_ranks_with_a_tied_head_come_back_byte_for_byte(tmp_path: Path) -> None:
    """How they were saved was not recorded, and a note said that the record cannot be used."""
    state = random_model(HEADS_OF_128)
    state |= {HEAD: state[EMBEDDING]}
    source = save_llama_3(tmp_path / "in", HEADS_OF_128, state, 2, tied="view")
    for path in source.glob("*.pth"):  # as `state_dict()` of a module has them: two tensors
        rank = torch.load(path, weights_only=True)
        torch.save(rank | {HEAD: rank[EMBEDDING].detach()}, path)
        assert shares_storage(path)
    output = reversed_ranks(hugging_face(source), tmp_path / "out", None)
    for name in ("consolidated.00.pth", "consolidated.01.pth", "params.json"):
        assert (output / name).read_bytes() == (source / name).read_bytes()


def test_a_record_that_says_nothing_of_the_ranks_is_not_said_to_be_damaged(tmp_path: Path) -> None:
    """A head with the embedding's bits in a storage of its own is written once."""
    state = random_model(HEADS_OF_64)
    state |= {HEAD: state[EMBEDDING]}
    source = hugging_face(save_llama_3(tmp_path / "in", HEADS_OF_64, state, tied="copy"))
    notes = plan_reverse(source, ReverseOptions(skip_tokenizer=True)).notes
    assert not any("cannot be used" in note for note in notes)
    assert any(
        note
        == "conversion.json does not say how the ranks were saved: they are laid out as PyTorch "
        "1.13 writes them"
        for note in notes
    )


def test_llama_3_itself_is_not_said_to_be_scaled(tmp_path: Path) -> None:
    """Its own code does not know the key, and stops at it."""
    source = hugging_face(save_llama_3(tmp_path / "in", HEADS_OF_64, scaled=False))
    (source / "conversion.json").unlink()
    output = reversed_ranks(source, tmp_path / "out", 1)
    assert "use_scaled_rope" not in params_of(output)
    assert params_of(output)["rope_theta"] == 500000.0


def test_a_factor_that_params_json_cannot_say_is_a_note(tmp_path: Path) -> None:
    usual, other = (
        plan_reverse(
            hugging_face(save_llama_3(tmp_path / f"in-{factor}", HEADS_OF_64), factor),
            ReverseOptions(skip_tokenizer=True),
        )
        for factor in (8.0, 32.0)
    )
    assert not any("scales" in note for note in usual.notes)
    assert any("by 32" in note and "uses 8" in note for note in other.notes)


def test_more_ranks_than_heads_are_refused(tmp_path: Path) -> None:
    """Meta's program repeats heads when it loads; they are never written twice."""
    source = hugging_face(save_llama_3(tmp_path / "in", SIXTEEN, n_ranks=16))
    with refused(ConfigError, "8 key and value heads", "16 ranks", "--ranks may be 1, 2, 4 or 8"):
        plan_reverse(source, ReverseOptions(n_ranks=16, skip_tokenizer=True))
