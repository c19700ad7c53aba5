"""Ranks that do not belong together are refused before the first byte."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from codellama_convert.convert.run import convert_checkpoint
from codellama_convert.errors import ConvertError
from tests.convert.bits import assert_same_bits
from tests.convert.noted import write_ranks
from tests.witness.checkpoints import (
    GQA,
    MHA,
    expected_state_dict,
    random_model,
    read_output,
    save_checkpoint,
    split_ranks,
)


def rewrite_rank(folder: Path, number: int, changes: dict[str, torch.Tensor | None]) -> None:
    path = folder / f"consolidated.{number:02d}.pth"
    rank = torch.load(path) | changes
    torch.save({name: tensor for name, tensor in rank.items() if tensor is not None}, path)


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"norm.weight": None}, ["'norm.weight'", "missing"]),
        ({"rope.inv": torch.zeros(3)}, ["'rope.inv'", "(3,)"]),
        (
            {"layers.1.attention.wk.weight": torch.zeros(15, 64)},
            ["'layers.1.attention.wk.weight'", "(15, 64)", "(16, 64)"],
        ),
        (
            {"layers.1.attention.wk.weight": torch.zeros(16, 64, dtype=torch.float16)},
            ["'layers.1.attention.wk.weight'", "float16", "float32"],
        ),
        ({"layers.0.ffn_norm.weight": torch.full((64,), 9.0)}, ["'layers.0.ffn_norm.weight'"]),
    ],
)
def test_a_rank_that_no_rule_explains_is_refused_before_the_first_byte(tmp_path, changes, facts):
    save_checkpoint(tmp_path / "in", GQA, random_model(GQA, torch.float32), n_ranks=2)
    rewrite_rank(tmp_path / "in", 1, changes)
    with pytest.raises(ConvertError) as caught:
        convert_checkpoint(tmp_path / "in", tmp_path / "out")
    for fact in ["consolidated.01.pth", *facts]:
        assert fact in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_bits_of_a_copy_that_differs_are_written_from_the_sign_down(tmp_path):
    """9.0 is 0x4110 in bfloat16; the bytes were printed as they lie in the file, 1041."""
    state = random_model(GQA)
    state["norm.weight"] = torch.ones(GQA.dim, dtype=torch.bfloat16)
    save_checkpoint(tmp_path / "in", GQA, state, n_ranks=2)
    rewrite_rank(tmp_path / "in", 1, {"norm.weight": torch.full((64,), 9.0).bfloat16()})
    with pytest.raises(ConvertError, match=r"element 0 \(bits 4110, there 3f80\)"):
        convert_checkpoint(tmp_path / "in", tmp_path / "out")


def test_a_rank_that_was_only_saved_again_is_accepted(tmp_path):
    state = random_model(GQA, torch.float32)
    save_checkpoint(tmp_path / "in", GQA, state, n_ranks=2)
    rewrite_rank(tmp_path / "in", 1, {})
    convert_checkpoint(tmp_path / "in", tmp_path / "out")
    assert_same_bits(read_output(tmp_path / "out"), expected_state_dict(state, GQA))


def test_swapped_ranks_give_another_model(tmp_path):
    """The negative control of the rank order: nothing in the files tells it, only their names."""
    state = random_model(GQA, torch.float32)
    save_checkpoint(tmp_path / "in", GQA, state, n_ranks=2)
    first, second = split_ranks(state, 2)
    torch.save(second, tmp_path / "in" / "consolidated.00.pth")
    torch.save(first, tmp_path / "in" / "consolidated.01.pth")
    convert_checkpoint(tmp_path / "in", tmp_path / "out")
    with pytest.raises(AssertionError):
        assert_same_bits(read_output(tmp_path / "out"), expected_state_dict(state, GQA))


SAME_FOLDER = "same model directory"
EMBEDDING = "tok_embeddings.weight"
MERGE = "merge the ranks into one consolidated.00.pth"


def refusal_of(source: Path, output: Path) -> str:
    with pytest.raises(ConvertError) as caught:
        convert_checkpoint(source, output)
    assert not output.exists()
    assert SAME_FOLDER not in str(caught.value)
    return str(caught.value)


def test_an_embedding_of_which_each_rank_has_a_copy_is_told(tmp_path):
    """The files were said to be of two models."""
    whole = random_model(GQA)[EMBEDDING]
    ranks = [rank | {EMBEDDING: whole.clone()} for rank in split_ranks(random_model(GQA), 2)]
    told = refusal_of(write_ranks(tmp_path / "in", ranks, GQA), tmp_path / "out")
    for fact in (EMBEDDING, str((GQA.vocab, GQA.dim)), "each may have a copy", MERGE):
        assert fact in told


@pytest.mark.parametrize(
    ("name", "split", "fact"),
    [
        ("layers.0.attention.wo.weight", 0, "its rows are split over the ranks"),
        ("layers.0.attention.wv.weight", 1, "its columns are split over the ranks"),
        ("layers.1.feed_forward.w2.weight", None, "each of the 2 ranks has all of it"),
        ("output.weight", None, "each of the 2 ranks has all of it"),
    ],
)
def test_a_tensor_that_is_split_otherwise_is_told(tmp_path, name, split, fact):
    state = random_model(GQA)
    ranks = split_ranks(state, 2)
    for number, rank in enumerate(ranks):
        whole = state[name]
        rank[name] = (whole if split is None else whole.chunk(2, split)[number]).clone()
    told = refusal_of(write_ranks(tmp_path / "in", ranks, GQA), tmp_path / "out")
    for one in (repr(name), "expected", fact, MERGE):
        assert one in told


def test_key_and_value_heads_that_ranks_share_are_told(tmp_path):
    """Two heads on four ranks: other programs give each rank a copy of one."""
    shape = replace(GQA, n_kv_heads=2)
    state = random_model(shape)
    ranks = split_ranks(state, 4)
    head = shape.dim // shape.n_heads
    for number, rank in enumerate(ranks):
        for name in [name for name in rank if name.endswith(("wk.weight", "wv.weight"))]:
            rows = state[name][number // 2 * head : (number // 2 + 1) * head]
            rank[name] = rows.clone()
    told = refusal_of(write_ranks(tmp_path / "in", ranks, shape), tmp_path / "out")
    for fact in (
        f"{tmp_path / 'in'}: 2 key and value heads",
        "over 4 ranks",
        "a copy of a head",
        MERGE,
    ):
        assert fact in told


@pytest.mark.parametrize("tied", [False, True])
def test_rows_that_two_ranks_cannot_share_are_told(tmp_path, tied):
    """The embedding's columns are split, so without a head any number of rows is right."""
    shape = replace(GQA, vocab=GQA.vocab + 1)
    state = random_model(shape)
    head = state.pop("output.weight")
    ranks = split_ranks(state, 2)
    for rank, rows in zip(ranks, head.chunk(2), strict=True):
        if not tied:
            rank["output.weight"] = rows.clone()
    source = write_ranks(tmp_path / "in", ranks, shape)
    if tied:
        report = convert_checkpoint(source, tmp_path / "out")
        assert any("tie_word_embeddings is true" in note for note in report.notes)
        found = read_output(tmp_path / "out")["model.embed_tokens.weight"]
        assert_same_bits({"embedding": found}, {"embedding": state[EMBEDDING]})
        return
    told = refusal_of(source, tmp_path / "out")
    for fact in (
        f"{shape.vocab} rows of the head",
        "over 2 ranks",
        "padded",
        "merge them into one",
    ):
        assert fact in told


@pytest.mark.parametrize("prefix", ["model_", "llama/", "decoder:"])
def test_a_prefix_without_a_dot_is_told(tmp_path, prefix):
    state = {prefix + name: tensor for name, tensor in random_model(MHA).items()}
    told = refusal_of(write_ranks(tmp_path / "in", [state]), tmp_path / "out")
    query = "layers.0.attention.wq.weight"
    for fact in (
        f"{query!r} is missing, but there is {prefix + query!r}",
        f"remove {prefix!r} from",
    ):
        assert fact in told


def test_a_file_of_none_of_metas_names_is_told(tmp_path):
    state = {"wte.weight": torch.zeros(8, 8), "h.0.attn.bias": torch.zeros(8)}
    told = refusal_of(write_ranks(tmp_path / "in", [state]), tmp_path / "out")
    assert "none of Meta's names, but 'wte.weight', 'h.0.attn.bias'" in told


@pytest.mark.parametrize("rope", ["top", "inner", None])
def test_the_rotary_buffer_is_dropped_wherever_it_is(tmp_path, rope):
    state = random_model(MHA, torch.bfloat16)
    save_checkpoint(tmp_path / "in", MHA, state, rope=rope)
    report = convert_checkpoint(tmp_path / "in", tmp_path / "out")
    assert len(report.dropped) == {"top": 1, "inner": 2, None: 0}[rope]
    assert_same_bits(read_output(tmp_path / "out"), expected_state_dict(state, MHA))
