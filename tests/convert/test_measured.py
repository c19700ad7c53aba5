"""Sizes that the tensors tell: rows, ranks and widths that params.json and --model_size do not know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from codellama_convert import ConvertError, Options, convert_checkpoint
from tests.convert.noted import assert_converted_with_note, write_ranks
from tests.refusals import refused
from tests.witness.checkpoints import (
    ABSENT,
    MHA,
    WIDE,
    Shape,
    expected_state_dict,
    random_model,
    read_output,
    save_checkpoint,
    split_ranks,
)


@pytest.mark.parametrize("n_rows", [321, 384])
def test_an_embedding_may_have_more_rows_than_there_are_pieces(tmp_path: Path, n_rows: int) -> None:
    """A fine-tune added a padding token, or rounded its rows up; it was refused."""
    shape = replace(MHA, vocab=n_rows)
    state = random_model(shape)
    source = write_ranks(tmp_path / "in", [state], shape, n_pieces=320)
    facts = (f"embedding has {n_rows} rows", f"{n_rows - 320} more", "ids from 320")
    assert_converted_with_note(source, tmp_path / "out", expected_state_dict(state, shape), *facts)


def test_an_embedding_of_fewer_rows_than_pieces_is_refused(tmp_path: Path) -> None:
    source = write_ranks(tmp_path / "in", [random_model(MHA)], n_pieces=321)
    with refused(ConvertError, "tokenizer.model", "321 pieces", "320 rows", "--tokenizer_model"):
        convert_checkpoint(source, tmp_path / "out")


@pytest.mark.parametrize("n_ranks", [1, 2, 4, 16])
def test_any_number_of_ranks_is_joined(tmp_path: Path, n_ranks: int) -> None:
    """Ranks that somebody merged or split again, up to twice as many as Meta ever released."""
    shape = replace(WIDE, n_kv_heads=16)
    state = random_model(shape)
    source = save_checkpoint(tmp_path / "in", shape, state, n_ranks)
    other = Options(model_size="13B" if n_ranks != 2 else "7B")
    assert_converted_with_note(
        source,
        tmp_path / "out",
        expected_state_dict(state, shape),
        f"--model_size {other.model_size}",
        "converted as it is",
        options=other,
    )


@pytest.mark.parametrize("n_ranks", [2, 4])
def test_ranks_that_are_views_of_the_same_storages_are_not_copies(
    tmp_path: Path, n_ranks: int
) -> None:
    """A script split a model without cloning: each file holds all of it, and other views."""
    state = random_model(WIDE)
    ranks = views_of(state, WIDE, n_ranks)
    source = write_ranks(tmp_path / "in", ranks, WIDE)
    convert_checkpoint(source, tmp_path / "out")
    found, expected = read_output(tmp_path / "out"), expected_state_dict(state, WIDE)
    assert {n: t.view(torch.int16).tolist() for n, t in found.items()} == {
        n: t.view(torch.int16).tolist() for n, t in expected.items()
    }


def views_of(state: dict[str, torch.Tensor], shape: Shape, n_ranks: int) -> list[object]:
    """Give each rank its block of every tensor, without a copy."""
    blocks = []
    sizes = {name: part.shape for name, part in split_ranks(state, n_ranks)[0].items()}
    for rank in range(n_ranks):
        block = {}
        for name, whole in state.items():
            split = [d for d in range(whole.dim()) if sizes[name][d] != whole.shape[d]]
            block[name] = whole.chunk(n_ranks, split[0])[rank] if split else whole
        blocks.append(block)
    return blocks


@pytest.mark.parametrize("as_views", [False, True])
def test_a_rank_that_was_copied_over_another_is_refused(tmp_path: Path, *, as_views: bool) -> None:
    state = random_model(WIDE)
    ranks = views_of(state, WIDE, 2) if as_views else split_ranks(state, 2)
    source = write_ranks(tmp_path / "in", [ranks[1], ranks[1]], WIDE)
    facts = ("consolidated.01.pth", "same weights as consolidated.00.pth", "copied")
    with refused(ConvertError, *facts):
        convert_checkpoint(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("params", "facts"),
    [
        ({"ffn_dim_multiplier": ABSENT, "multiple_of": 32}, ("multiple_of 32", "width of 96", "128")),
        ({"ffn_dim_multiplier": 1.3, "multiple_of": 32}, ("multiplier 1.3", "width of 128", "160")),
        ({"multiple_of": ABSENT}, ("multiple_of 256", "width of 256", "96")),
        ({"multiple_of": None}, ("multiple_of 256", "width of 256", "96")),
        ({"hidden_dim": 128}, ("hidden_dim is 128", "96")),
        ({"vocab_size": 32000}, ("vocab_size is 32000", "320 rows")),
    ],
)  # fmt: skip
def test_params_that_lag_behind_the_tensors_are_a_note(
    tmp_path: Path, params: dict[str, object], facts: tuple[str, ...]
) -> None:
    """A trainer kept another model's params.json: the widths in it were refused."""
    shape = replace(MHA, hidden=int(facts[-1]) if facts[-1].isdigit() else MHA.hidden)
    state = random_model(shape)
    source = write_ranks(tmp_path / "in", [state], shape, params=params)
    assert_converted_with_note(
        source, tmp_path / "out", expected_state_dict(state, shape), "params.json", *facts
    )


@pytest.mark.parametrize("params", [{"hidden_dim": 96}, {"hidden_dim": None}, {"vocab_size": 320}])
def test_params_that_agree_with_the_tensors_are_no_note(
    tmp_path: Path, params: dict[str, object]
) -> None:
    source = write_ranks(tmp_path / "in", [random_model(MHA)], params=params)
    notes = convert_checkpoint(source, tmp_path / "out").notes
    assert not [note for note in notes if "params.json" in note]


@pytest.mark.parametrize(
    ("params", "facts"),
    [
        ({"dim": 64}, ("shape", "(320, 32)", "(320, 64)")),
        ({"n_layers": 3}, ("layers.2.attention.wq.weight", "missing")),
        ({"n_layers": 1}, ("layers.1.attention.wq.weight", "beyond the n_layers")),
        ({"n_heads": 2}, ("rope.freqs", "(4,)", "heads of 8, not of 16")),
        ({"n_kv_heads": 2}, ("layers.0.attention.wk.weight", "(32, 32), expected (16, 32)")),
    ],
)
def test_width_layers_and_heads_stay_checked(
    tmp_path: Path, params: dict[str, object], facts: tuple[str, ...]
) -> None:
    source = save_checkpoint(tmp_path / "in", MHA, params=params)
    with refused(ConvertError, "consolidated.00.pth", *facts):
        convert_checkpoint(source, tmp_path / "out")
