"""The table against the ranks: what is wrong, in which file, and what to do about it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from codellama_convert.errors import LayoutError
from codellama_convert.formats.pth.reader import RankIndex
from codellama_convert.formats.stored_tensor import Storage
from codellama_convert.meta.rank_tensors import check_ranks, is_tied, require_layers, with_dtypes
from codellama_convert.model.tensor_table import build_layout
from codellama_convert.tensors import BFLOAT16, FLOAT16
from tests.meta.indexed_ranks import (
    CONFIG,
    GATE,
    QUERY,
    SAME_FOLDER,
    SHAPE,
    rank_of,
    tensor,
    with_tensor,
    without_tensor,
)
from tests.refusals import refused
from tests.witness.checkpoints import meta_shapes

# What one of two ranks holds of the same model.
HALF: dict[str, tuple[int, ...]] = {
    "tok_embeddings.weight": (6, 4), QUERY: (4, 8), "layers.0.attention.wk.weight": (2, 8),
    "layers.0.attention.wv.weight": (2, 8), "layers.0.attention.wo.weight": (8, 4), GATE: (6, 8),
    "layers.0.feed_forward.w2.weight": (8, 6), "layers.0.feed_forward.w3.weight": (6, 8),
    "layers.0.attention_norm.weight": (8,), "layers.0.ffn_norm.weight": (8,),
    "norm.weight": (8,), "output.weight": (3, 8),
}  # fmt: skip


def check(*ranks: RankIndex) -> tuple[str, ...]:
    """Hold ranks against what the model needs."""
    return check_ranks(build_layout(CONFIG, n_ranks=len(ranks), dtype=BFLOAT16), ranks)


# --- one rank against the table -------------------------------------------------------------------


def test_the_right_tensors_are_accepted_and_the_rotary_buffer_is_dropped() -> None:
    assert check(rank_of(meta_shapes(SHAPE))) == ()
    for name in ("rope.freqs", "layers.0.attention.inner_attention.rope.freqs"):
        assert check(with_tensor(name, (1,))) == (name,)


@pytest.mark.parametrize("name", meta_shapes(SHAPE))
def test_each_tensor_is_missed(name: str) -> None:
    facts = ("consolidated.00.pth", f"{name!r} is missing", SAME_FOLDER)
    with refused(LayoutError, *facts):
        check(without_tensor(name))
    with refused(LayoutError, *facts):
        require_layers(without_tensor(name), 1)
    require_layers(rank_of(meta_shapes(SHAPE)), 1)


def test_another_shape_is_told_beside_the_right_one() -> None:
    with refused(
        LayoutError, "consolidated.00.pth", repr(GATE), "(13, 8), expected (12, 8)", SAME_FOLDER
    ):
        check(with_tensor(GATE, (13, 8)))


@pytest.mark.parametrize(
    ("shape", "cause", "hint"),
    [
        ((12, 8), ": each of the 2 ranks has all of it; ", "merge the ranks into one"),
        ((12, 4), ": its columns are split over the ranks, which ", "merge the ranks into one"),
        ((7, 8), "; ", SAME_FOLDER),  # neither: a wrong shape, and no word of a split
        ((6, 4), "; ", SAME_FOLDER),
    ],
)
def test_another_split_is_told_from_a_wrong_shape(
    shape: tuple[int, int], cause: str, hint: str
) -> None:
    """Of a matrix of which each of two ranks should hold six of the twelve rows."""
    first, second = (rank_of(HALF, f"consolidated.0{number}.pth") for number in (0, 1))
    assert check(first, second) == ()
    wrong = rank_of(HALF | {GATE: shape}, "consolidated.01.pth")
    fact = f"{GATE!r} has shape {shape}, expected (6, 8){cause}"
    with refused(LayoutError, "consolidated.01.pth", fact, hint):
        check(first, wrong)


def test_another_dtype_than_in_the_first_rank_is_told_beside_it() -> None:
    rank = rank_of(meta_shapes(SHAPE))
    mixed = replace(rank, tensors=rank.tensors | {GATE: tensor(GATE, (12, 8), FLOAT16)})
    facts = (
        "is float16",
        "bfloat16 in the first rank",
        SAME_FOLDER,
    )
    with refused(LayoutError, "consolidated.00.pth", repr(GATE), *facts):
        check(mixed)


@pytest.mark.parametrize(
    ("extra", "more"),
    [
        ({"bias": (3,)}, "model; "),
        ({"bias": (3,), "b": (1,)}, "model (and 1 other); "),
        ({"bias": (3,), "b": (1,), "c": (1,)}, "model (and 2 others); "),
    ],
)
def test_tensors_that_no_rule_explains_are_counted(
    extra: dict[str, tuple[int, ...]], more: str
) -> None:
    with refused(
        LayoutError,
        "consolidated.00.pth",
        "'bias'",
        "(3,)",
        f"{more}Llama 1, Llama 2, Code Llama and Llama 3",
    ):
        check(rank_of(meta_shapes(SHAPE) | extra))


def test_a_layer_too_many_is_told_as_that() -> None:
    """It was said not to belong to a Llama model."""
    more = {"layers.7.attention.wq.weight": (4, 4), "layers.7.ffn_norm.weight": (4,)}
    facts = ("'layers.7.attention.wq.weight' (and 1 other)", "beyond the n_layers of params.json")
    with refused(LayoutError, "consolidated.00.pth", *facts, SAME_FOLDER):
        check(rank_of(meta_shapes(SHAPE) | more))


def test_heads_of_another_size_than_the_rotary_buffers_are_refused() -> None:
    """Without grouped heads nothing else tells a wrong `n_heads`."""
    facts = ("'rope.freqs'", "(2,)", "heads of 4, not of 2", SAME_FOLDER)
    with refused(LayoutError, "consolidated.00.pth", *facts):
        check(with_tensor("rope.freqs", (2,)))


# --- a tied head ----------------------------------------------------------------------------------


def elsewhere(rank: RankIndex, name: str) -> RankIndex:
    """Put a tensor of a rank into a record of its own; all others are views of one."""
    moved = replace(rank.tensors[name], storage=Storage("data/1", BFLOAT16, 64, 1, None))
    return replace(rank, tensors=rank.tensors | {name: moved})


def test_a_head_is_tied_where_it_is_the_embedding_in_every_rank() -> None:
    """Or where no rank has one; the same shape in another place is a head of its own."""
    same, none = rank_of(meta_shapes(SHAPE)), without_tensor("output.weight")
    other = elsewhere(same, "output.weight")
    for ranks in ([same], [same, same], [none], [none, none]):
        assert is_tied(ranks)
    for ranks in ([other], [same, other], [other, same], [same, none], [none, same]):
        assert not is_tied(ranks)


def test_a_head_that_is_the_embedding_is_dropped_where_it_is_tied() -> None:
    """The layout of a tied model has no row for it, and its name is still one of Meta's."""
    tied = build_layout(replace(CONFIG, tie_word_embeddings=True), n_ranks=1, dtype=BFLOAT16)
    assert check_ranks(tied, [rank_of(meta_shapes(SHAPE))]) == ("output.weight",)
    assert check_ranks(tied, [without_tensor("output.weight")]) == ()


# --- dtypes ---------------------------------------------------------------------------------------


def test_each_tensor_gets_the_dtype_that_it_has_in_the_rank() -> None:
    """A rank may have several; the table is spelled out with one."""
    rank = rank_of(meta_shapes(SHAPE))
    rank = replace(rank, tensors=rank.tensors | {GATE: tensor(GATE, (12, 8), FLOAT16)})
    layout = with_dtypes(build_layout(CONFIG, n_ranks=1, dtype=BFLOAT16), rank)
    dtypes = {one.meta.name: one.spec.dtype for one in layout}
    assert dtypes.pop(GATE) == FLOAT16
    assert set(dtypes.values()) == {BFLOAT16}
