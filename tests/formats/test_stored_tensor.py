"""What a strided view says about where its elements lie."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codellama_convert.formats.stored_tensor import (
    Segment,
    Storage,
    StoredTensor,
    elements_are_distinct,
    segments,
)
from codellama_convert.tensors import BFLOAT16, FLOAT32, Dtype


def view(
    shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, dtype: Dtype = BFLOAT16
) -> StoredTensor:
    return StoredTensor("t", shape, strides, offset, Storage("data/0", dtype, 64, 4096, None))


@pytest.mark.parametrize(
    ("shape", "strides", "steps", "order"),
    [
        ((4, 8), (8, 1), (8, 1), "rows"),
        ((4, 8), (1, 4), (1, 4), "columns"),
        ((3, 2), (1, 3), (1, 3), "columns"),
        ((8,), (3,), (3, 1), "rows"),  # a vector has one column
        ((8,), (1,), (1, 1), "rows"),
        ((1,), (5,), (1, 1), "rows"),
        ((1, 8), (999, 3), (22, 3), "rows"),  # a step to nowhere: behind the row's last element
        ((8, 1), (2, 999), (2, 1), "rows"),
        ((1, 1), (999, 999), (1, 1), "rows"),
        ((2, 3), (3, 2), (3, 2), "scattered"),  # 0 2 4 and 3 5 7
    ],
)
def test_steps_along_one_element_mean_nothing(shape, strides, steps, order):
    assert view(shape, strides).steps == steps
    assert view(shape, strides).order == order


def test_the_bytes_that_a_view_reaches_over_are_told():
    assert view((3, 5), (7, 2), 4).extent == (8, 2 * (4 + 2 * 7 + 4 * 2 + 1))
    assert view((3, 5), (7, 2), 4, FLOAT32).extent == (16, 4 * (4 + 2 * 7 + 4 * 2 + 1))
    assert view((6,), (1,)).extent == (0, 12)


@pytest.mark.parametrize(
    ("shape", "strides", "in_order"),
    [
        ((4, 8), (8, 1), True),
        ((1, 8), (999, 1), True),  # of one row there is no next one
        ((4, 1), (1, 77), True),
        ((2, 3, 4), (12, 4, 1), True),
        ((4, 8), (9, 1), False),
        ((4, 8), (8, 2), False),
        ((4, 8), (1, 4), False),
        ((8,), (2,), False),
    ],
)
def test_elements_in_order_without_gaps_are_seen(shape, strides, in_order):
    assert view(shape, strides).row_major is in_order


def test_the_sum_of_a_storage_is_that_of_a_tensor_only_if_it_fills_it_in_order():
    storage = Storage("data/0", BFLOAT16, 4096, 64, 7)
    assert StoredTensor("t", (4, 8), (8, 1), 0, storage).crc == 7
    for shape, strides, offset in (((4, 8), (8, 1), 1), ((4, 4), (4, 1), 0), ((4, 8), (1, 4), 0)):
        assert StoredTensor("t", shape, strides, offset, storage).crc is None


def test_a_place_tells_views_apart_by_each_of_its_facts():
    assert view((4, 8), (8, 1), 3).place == ("data/0", 3, (4, 8), (8, 1))
    assert view((4, 8), (8, 1)).n_columns == 8
    assert view((8,), (1,)).n_columns == 1


# A piece has up to 1 MiB: 524,288 elements of bfloat16, 262,144 of float32.
@pytest.mark.parametrize(
    ("shape", "strides", "dtype", "segment", "n_pieces", "read_bytes"),
    [
        ((4, 8), (8, 1), BFLOAT16, (4, 8), 1, 64),
        ((0, 5), (7, 2), BFLOAT16, None, 1, 0),
        ((3, 5), (7, 1), BFLOAT16, (3, 5), 1, 2 * (2 * 7 + 4 + 1)),
        # Rows with gaps: three reach over just as many elements as fit, or over one too many.
        ((3, 2), (262_143, 1), BFLOAT16, (3, 2), 1, 2 * 524_288),
        ((3, 2), (262_144, 1), BFLOAT16, (2, 2), 2, 2 * 2 * 262_146),
        ((3, 2), (131_072, 1), BFLOAT16, (3, 2), 1, 2 * 262_146),
        ((3, 2), (131_072, 1), FLOAT32, (2, 2), 2, 2 * 4 * 131_074),
        # A row of which so much lies between the columns: it fits as a whole, or in pieces.
        ((2, 2), (2_000_000, 524_287), BFLOAT16, (1, 2), 2, 2 * 2 * 524_288),
        ((2, 2), (2_000_000, 524_288), BFLOAT16, (1, 1), 4, 4 * 2),
        ((2, 3), (2_000_000, 262_144), BFLOAT16, (1, 2), 4, 4 * 2 * 262_145),
        # Columns.
        ((4, 8), (1, 4), BFLOAT16, (4, 1), 8, 8 * 2 * 4),
        ((3, 2), (262_143, 2_000_000), BFLOAT16, (3, 1), 2, 2 * 2 * 524_287),
        ((3, 2), (262_144, 2_000_000), BFLOAT16, (2, 1), 4, 4 * 2 * 262_145),
        # Neither.
        ((2, 3), (3, 2), BFLOAT16, (1, 1), 6, 6 * 2),
    ],
)
def test_what_is_read_at_once_is_at_most_1_mib(
    shape, strides, dtype, segment, n_pieces, read_bytes
):
    tensor = view(shape, strides, dtype=dtype)
    assert segment is None or tensor.segment == segment
    assert (tensor.n_pieces, tensor.read_bytes) == (n_pieces, read_bytes)


def test_rows_are_cut_into_segments():
    """From the second row on, with five elements before the first: two rows, and the last one."""
    found = list(segments(view((4, 2), (262_144, 1), 5), 1, 3))
    assert found == [
        Segment(262_149, 262_146, (2, 2), (slice(0, 2), slice(0, 2))),
        Segment(786_437, 2, (1, 2), (slice(2, 3), slice(0, 2))),
    ]


def test_a_row_is_cut_where_its_columns_lie_apart():
    assert list(segments(view((2, 3), (2_000_000, 262_144)), 0, 2)) == [
        Segment(0, 262_145, (1, 2), (slice(0, 1), slice(0, 2))),
        Segment(524_288, 1, (1, 1), (slice(0, 1), slice(2, 3))),
        Segment(2_000_000, 262_145, (1, 2), (slice(1, 2), slice(0, 2))),
        Segment(2_524_288, 1, (1, 1), (slice(1, 2), slice(2, 3))),
    ]


dimensions = st.tuples(st.integers(1, 5), st.integers(0, 9))


def places_differ(dims: list[tuple[int, int]]) -> bool:
    """Lay the elements out one by one, and look for two in one place."""
    places = [
        sum(i * step for i, (_, step) in zip(at, dims, strict=True))
        for at in product(*(range(n) for n, _ in dims))
    ]
    return len(set(places)) == len(places)


@given(st.lists(dimensions, min_size=1, max_size=2))
def test_two_elements_in_one_place_are_seen(dims):
    shape, strides = zip(*dims, strict=True)
    assert elements_are_distinct(shape, strides) is places_differ(dims)


@given(st.lists(dimensions, min_size=3, max_size=4))
def test_of_more_dimensions_none_is_called_distinct_that_is_not(dims):
    shape, strides = zip(*dims, strict=True)
    if elements_are_distinct(shape, strides):
        assert places_differ(dims)


@pytest.mark.parametrize(
    ("shape", "strides", "distinct"),
    [
        ((2, 3, 4), (12, 4, 1), True),
        ((2, 3, 4), (1, 2, 6), True),
        ((2, 3, 4), (11, 4, 1), False),  # the last of the first block is the first of the second
        ((2, 3, 4), (12, 3, 1), False),
        ((1, 8), (0, 1), True),
        ((2, 4), (0, 1), False),
        ((4, 2), (1, 0), False),
        ((8,), (0,), False),
        ((1,), (0,), True),
    ],
)
def test_expanded_and_overlapping_views_are_told_from_plain_ones(shape, strides, distinct):
    assert elements_are_distinct(shape, strides) is distinct
