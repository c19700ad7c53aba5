"""What a strided view says about where its elements lie."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codellama_convert.formats.stored_tensor import Storage, StoredTensor, elements_are_distinct
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
