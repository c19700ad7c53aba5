"""The table against the ranks: what is wrong, in which file, and what to do about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from codellama_convert.errors import LayoutError
from codellama_convert.formats.pth.reader import RankIndex, Storage, StoredTensor
from codellama_convert.meta.rank_tensors import Measured, check_ranks, measure, require_layers
from codellama_convert.model.config import ModelConfig
from codellama_convert.model.generations import LLAMA_2, LLAMA_3
from codellama_convert.model.tensor_table import build_layout
from codellama_convert.tensors import BFLOAT16, FLOAT16, Dtype
from tests.refusals import refused
from tests.witness.checkpoints import Shape, meta_shapes

# Four heads of two rows, two of them for keys and values.
SHAPE = Shape(dim=8, n_layers=1, n_heads=4, n_kv_heads=2, hidden=12, vocab=6)
CONFIG = ModelConfig(
    hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, rms_norm_eps=1e-5, rope_theta=1e4, vocab_size=6,
)  # fmt: skip
SAME_FOLDER = "same model directory"  # what to do
QUERY = "layers.0.attention.wq.weight"
GATE = "layers.0.feed_forward.w1.weight"
# What one of two ranks holds of it.
HALF: dict[str, tuple[int, ...]] = {
    "tok_embeddings.weight": (6, 4), QUERY: (4, 8), "layers.0.attention.wk.weight": (2, 8),
    "layers.0.attention.wv.weight": (2, 8), "layers.0.attention.wo.weight": (8, 4), GATE: (6, 8),
    "layers.0.feed_forward.w2.weight": (8, 6), "layers.0.feed_forward.w3.weight": (6, 8),
    "layers.0.attention_norm.weight": (8,), "layers.0.ffn_norm.weight": (8,),
    "norm.weight": (8,), "output.weight": (3, 8),
}  # fmt: skip


def rank_of(shapes: dict[str, tuple[int, ...]], name: str = "consolidated.00.pth") -> RankIndex:
    """Index a file that holds contiguous bfloat16 tensors of these shapes."""
    return RankIndex(
        path=Path(name),
        n_bytes=1,
        inode=(0, 0),
        mtime_ns=0,
        tensors={name: tensor(name, shape) for name, shape in shapes.items()},
        storages={},
        directory_sha256="",
        pickle_sha256="",
    )


def tensor(name: str, shape: tuple[int, ...], dtype: Dtype = BFLOAT16) -> StoredTensor:
    strides = (shape[1], 1) if len(shape) == 2 else (1,) * len(shape)
    return StoredTensor(name, shape, strides, 0, Storage("data/0", dtype, 0, 1, None))


def with_tensor(name: str, shape: tuple[int, ...]) -> RankIndex:
    return rank_of({**meta_shapes(SHAPE), name: shape})


def without_tensor(name: str) -> RankIndex:
    return rank_of({n: shape for n, shape in meta_shapes(SHAPE).items() if n != name})


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


# --- measuring ------------------------------------------------------------------------------------


def ranks_of(n_ranks: int, query: tuple[int, int]) -> list[RankIndex]:
    sizes = {"tok_embeddings.weight": (6, 8 // n_ranks), QUERY: query, GATE: (4, 8)}
    return [rank_of(sizes, f"consolidated.{rank:02d}.pth") for rank in range(n_ranks)]


def test_feed_forward_rows_are_added_up_and_vocabulary_rows_are_not() -> None:
    assert measure(ranks_of(2, (4, 8)), hidden_size=8) == Measured(8, 6, LLAMA_2)
    assert measure(ranks_of(1, (8, 8)), hidden_size=8) == Measured(4, 6, None)


def test_an_embedding_that_is_split_as_the_head_is_that_of_llama_3() -> None:
    """It was refused as split by its rows; of one rank nothing is guessed."""
    sizes = {"tok_embeddings.weight": (6, 8), QUERY: (4, 8), GATE: (4, 8)}
    two = [rank_of(sizes | {"output.weight": (6, 8)}, f"consolidated.0{n}.pth") for n in (0, 1)]
    assert measure(two, hidden_size=8) == Measured(8, 12, LLAMA_3)
    one = rank_of(sizes | {"output.weight": (6, 8), QUERY: (8, 8)})
    assert measure([one], hidden_size=8) == Measured(4, 6, None)
    for head in ({"output.weight": (3, 8)}, {}):
        copies = [rank_of(sizes | head, f"consolidated.0{n}.pth") for n in (0, 1)]
        facts = ("(6, 8)", "each may have a copy; merge the ranks into one")
        with refused(LayoutError, "consolidated.00.pth", *facts):
            measure(copies, hidden_size=8)


def test_a_missing_rank_shows_in_the_rows_of_the_query() -> None:
    facts = (
        repr(QUERY),
        "2 rows",
        "4 ranks",
        "2 were found",
        "; download consolidated.02.pth, consolidated.03.pth",
    )
    with refused(LayoutError, "consolidated.00.pth", *facts):
        measure(ranks_of(2, (2, 8)), hidden_size=8)


def test_the_rank_that_is_missing_is_not_named_as_metas_where_the_others_are_not() -> None:
    """Beside 000.pth, "download consolidated.01.pth" asked for a file that there never was."""
    with refused(LayoutError, "000.pth", "2 ranks", "1 was found", "; put the others beside it"):
        measure([rank_of(meta_shapes(SHAPE) | {QUERY: (4, 8)}, "000.pth")], hidden_size=8)


def test_a_file_of_other_names_is_told_which_models_are_read() -> None:
    """None of its tensors has a name of Meta's, so the file is of another model."""
    facts = ("none of Meta's names, but 'wte.weight'; ", "Llama 1, Llama 2, Code Llama and Llama 3")
    with refused(LayoutError, "consolidated.00.pth", "is missing; ", *facts):
        measure([rank_of({"wte.weight": (6, 8)})], hidden_size=8)


def test_a_file_without_tensors_is_called_that() -> None:
    """It was said to have "none of Meta's names, but nothing"."""
    with refused(LayoutError, "consolidated.00.pth", "is missing; the file holds no tensors"):
        measure([rank_of({})], hidden_size=8)


@pytest.mark.parametrize("query", [(3, 8), (4, 9), (8, 4)])
def test_a_query_that_no_number_of_ranks_explains_is_left_to_the_table(query) -> None:
    """A wrong shape is told as such, not as a missing rank."""
    assert measure(ranks_of(1, query), hidden_size=8) == Measured(4, 6, None)


@pytest.mark.parametrize("name", ["tok_embeddings.weight", QUERY, GATE])
def test_a_tensor_that_is_measured_must_be_a_matrix(name: str) -> None:
    with refused(LayoutError, "consolidated.00.pth", f"{name!r} is missing", SAME_FOLDER):
        measure([without_tensor(name)], hidden_size=8)
    for shape in ((8,), (0, 8), (8, 0), (2, 2, 2)):
        with refused(LayoutError, "consolidated.00.pth", repr(name), f"{shape}, not a matrix"):
            measure([with_tensor(name, shape)], hidden_size=8)
    measure([rank_of(meta_shapes(SHAPE))], hidden_size=8)
