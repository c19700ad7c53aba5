"""Where a side has a tensor, and what lies between two sides; spelled by hand and counted."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from codellama_convert.model.placement import (
    Move,
    Part,
    Placement,
    in_one_file,
    in_pairs,
    moves,
    parts_read,
)
from codellama_convert.model.tensor_table import build_layout
from codellama_convert.tensors import BFLOAT16
from tests.model.test_tensor_table import CONFIG, SHAPE
from tests.witness.checkpoints import meta_shapes


def cut(source: Placement, target: Placement, most_rows: int) -> list[Move]:
    return [*moves(source.sources, target.parts, most_rows)]


def parts_of(meta_name: str, n_ranks: int) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    layout = build_layout(CONFIG, n_ranks=n_ranks, dtype=BFLOAT16)
    (tensor,) = [t for t in layout if t.meta.name == meta_name]
    return tensor.meta.parts, tensor.meta.sources


def test_ranks_split_the_rows_the_columns_or_hold_copies() -> None:
    """Four modules decided this for themselves; the table's answer is spelled here by hand."""
    rows = (Part(0, range(6), range(8)), Part(1, range(6, 12), range(8)))
    assert parts_of("layers.0.feed_forward.w1.weight", 2) == (rows, rows)
    columns = (Part(0, range(8), range(6)), Part(1, range(8), range(6, 12)))
    assert parts_of("layers.0.feed_forward.w2.weight", 2) == (columns, columns)
    copies = (Part(0, range(8), range(1)), Part(1, range(8), range(1)))
    assert parts_of("norm.weight", 2) == (copies, copies[:1])


@pytest.mark.parametrize("name", meta_shapes(SHAPE))
@pytest.mark.parametrize("n_ranks", [1, 2])
def test_the_sources_hold_every_element_once(name: str, n_ranks: int) -> None:
    n_rows, n_columns = (*meta_shapes(SHAPE)[name], 1)[:2]
    parts, sources = parts_of(name, n_ranks)
    assert [part.file for part in parts] == list(range(n_ranks))
    held = [(row, column) for part in sources for row in part.rows for column in part.columns]
    assert sorted(held) == [(row, column) for row in range(n_rows) for column in range(n_columns)]


def test_bands_are_cut_where_either_side_cuts_rows_and_where_they_are_full() -> None:
    three, two = (Placement("w", (6, 2), range(n), 0) for n in (3, 2))
    whole = range(2)
    assert cut(three, two, 9) == [
        Move(range(2), (Part(0, range(2), whole),), (Part(0, range(3), whole),)),
        Move(range(2, 3), (Part(1, range(2, 4), whole),), (Part(0, range(3), whole),)),
        Move(range(3, 4), (Part(1, range(2, 4), whole),), (Part(1, range(3, 6), whole),)),
        Move(range(4, 6), (Part(2, range(4, 6), whole),), (Part(1, range(3, 6), whole),)),
    ]
    bands = cut(in_one_file("w", (5, 2), 7), in_one_file("v", (5, 2)), 2)
    assert [(move.rows, move.sources[0].file) for move in bands] == [
        (range(2), 7), (range(2, 4), 7), (range(4, 5), 7)
    ]  # fmt: skip


def test_one_file_alone_gets_its_rows_or_columns_and_needs_the_parts_that_hold_them() -> None:
    w, six = in_one_file("w", (6, 4)), range(6)
    last_rows = Placement("w", (6, 4), range(3), 0, only=2)
    assert cut(w, last_rows, 9) == [
        Move(range(4, 6), (Part(0, six, range(4)),), (Part(2, range(4, 6), range(4)),))
    ]
    assert parts_read(w, last_rows) == {Part(0, six, range(4)): range(4, 6)}
    last_columns = Placement("w", (6, 4), range(2), 1, only=1)
    four = Placement("w", (6, 4), range(4), 1)
    holding = (Part(2, six, range(2, 3)), Part(3, six, range(3, 4)))
    assert cut(four, last_columns, 9) == [Move(six, holding, (Part(1, six, range(2, 4)),))]
    assert parts_read(four, last_columns) == dict.fromkeys(holding, six)
    assert [*parts_read(four, replace(last_columns, only=None))] == [*four.parts]


def test_of_copies_the_first_file_alone_holds_each_element() -> None:
    copies = Placement("v", (4,), range(3), None)
    assert [replace(copies, only=n).sources for n in range(3)] == [copies.parts[:1], (), ()]
    assert [replace(copies, only=n).parts for n in range(3)] == [(one,) for one in copies.parts]
    rows = replace(copies, split=0, shape=(6,))
    assert [replace(rows, only=n).sources for n in range(3)] == [(one,) for one in rows.parts]


def test_pairs_of_rotary_rows_lie_side_by_side_or_in_the_two_halves_of_their_head() -> None:
    """Two heads of four rows, of three columns; the second file has the second head."""
    parts = (Part(5, range(4), range(3)), Part(6, range(4, 8), range(3)))
    left, right = range(3), range(3, 6)
    assert [*in_pairs(parts, 4, interleaved=True)] == [
        Part(5, range(2), range(6)),
        Part(6, range(2, 4), range(6)),
    ]
    assert [*in_pairs(parts, 4, interleaved=False)] == [
        Part(5, range(2), left, first=0),
        Part(5, range(2), right, first=6),
        Part(6, range(2, 4), left, first=0),
        Part(6, range(2, 4), right, first=6),
    ]
    (whole,) = in_one_file("w", (8, 3)).parts
    assert [(one.first, one.rows) for one in in_pairs([whole], 4, interleaved=False)] == [
        (0, range(2)), (6, range(2)), (12, range(2, 4)), (18, range(2, 4))
    ]  # fmt: skip
    assert Part(0, range(2, 4), range(3), first=12).elements_before(3) == 15


@pytest.mark.parametrize("split", [0, 1, None])
@pytest.mark.parametrize(("n_before", "n_after"), [*product([1, 2, 4, 8], repeat=2)])
def test_every_pair_of_rank_counts_moves_each_element_to_each_place(
    n_before: int, n_after: int, split: int | None
) -> None:
    """Counted element by element: each is read once, and each place of the target is written once."""
    before, after = (Placement("w", (8, 16), range(n), split) for n in (n_before, n_after))
    read, written = [], []
    for move in cut(before, after, 3):
        for row in move.rows:
            read += [(row, column) for part in move.sources for column in part.columns]
            written += [
                (part.file, row, column) for part in move.targets for column in part.columns
            ]
            assert all(row in part.rows for part in (*move.sources, *move.targets))
    every = list(product(range(8), range(16)))
    assert sorted(read) == every
    if split is None:
        assert sorted(written) == [(file, *one) for file in range(n_after) for one in every]
    else:
        size = (8, 16)[split] // n_after
        assert sorted(written) == sorted((one[split] // size, *one) for one in every)
