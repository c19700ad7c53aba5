"""What the first rank's tensors show of a model, and which files they say are missing."""

from __future__ import annotations

import pytest

from codellama_convert.errors import LayoutError
from codellama_convert.formats.pth.reader import RankIndex
from codellama_convert.meta.rank_tensors import Measured, measure
from codellama_convert.model.generations import LLAMA_2, LLAMA_3
from tests.meta.indexed_ranks import (
    GATE,
    QUERY,
    SAME_FOLDER,
    SHAPE,
    rank_of,
    with_tensor,
    without_tensor,
)
from tests.refusals import refused
from tests.witness.checkpoints import meta_shapes


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


def test_of_many_missing_ranks_eight_are_named() -> None:
    """As a line to copy; of 16 ranks, 15 are missing."""
    hint = "; download " + ", ".join(f"consolidated.0{number}.pth" for number in range(1, 9))
    sizes = {"tok_embeddings.weight": (6, 16), QUERY: (1, 16), GATE: (4, 16)}
    with pytest.raises(LayoutError) as caught:
        measure([rank_of(sizes)], hidden_size=16)
    assert str(caught.value).endswith(f"16 ranks, but 1 was found{hint}")


def test_a_rank_too_many_is_of_another_model() -> None:
    """A whole query says that the model has one rank, and nothing is to be downloaded."""
    fact = "8 rows, so the checkpoint has 1 rank, but 2 were found; move the files of another model"
    with refused(LayoutError, "consolidated.00.pth", repr(QUERY), fact):
        measure(ranks_of(2, (8, 8)), hidden_size=8)


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["wte"], "'wte'; "),
        (["wte", "h", "ln"], "'wte', 'h', 'ln'; "),
        (["wte", "h", "ln", "b", "c"], "'wte', 'h', 'ln' and 2 more; "),
    ],
)
def test_a_file_of_other_names_is_told_which_models_are_read(names: list[str], shown: str) -> None:
    """None of its tensors has a name of Meta's, so the file is of another model."""
    facts = (f"none of Meta's names, but {shown}", "Llama 1, Llama 2, Code Llama and Llama 3")
    with refused(LayoutError, "consolidated.00.pth", "is missing; ", *facts):
        measure([rank_of(dict.fromkeys(names, (6, 8)))], hidden_size=8)


def test_a_name_with_a_prefix_is_the_one_to_take_it_off() -> None:
    """A tensor of Meta's is missing, and there is one whose name only begins otherwise."""
    rank = rank_of({f"lm_{name}": shape for name, shape in meta_shapes(SHAPE).items()})
    facts = (f"{QUERY!r} is missing, but there is 'lm_{QUERY}'", "remove 'lm_' from the names")
    with refused(LayoutError, "consolidated.00.pth", *facts):
        measure([rank], hidden_size=8)


def test_a_file_without_tensors_is_called_that() -> None:
    """It was said to have "none of Meta's names, but nothing"."""
    with refused(LayoutError, "consolidated.00.pth", "the file holds no tensors", SAME_FOLDER):
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
        facts = (repr(name), f"{shape}, not a matrix", SAME_FOLDER)
        with refused(LayoutError, "consolidated.00.pth", *facts):
            measure([with_tensor(name, shape)], hidden_size=8)
    measure([rank_of(meta_shapes(SHAPE))], hidden_size=8)
