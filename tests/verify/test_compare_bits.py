"""Tensors are compared eight bytes at once where they lie so, and element by element elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from codellama_convert.verify.tensor import _are_equal, _wide

# Bytes of an element, rows, columns, first byte in a page, whether eight bytes at once will do.
LAYOUTS = [
    (2, 6, 8, 0, True),
    (2, 6, 8, 8, True),
    (2, 6, 8, 2, False),  # no 8 bytes of it lie at a multiple of 8
    (2, 6, 7, 0, False),  # 8 bytes would reach into the next row
    (2, 32, 1, 0, False),  # a vector has one column
    (4, 6, 2, 0, True),
    (4, 6, 2, 4, False),
    (4, 6, 3, 0, False),
]


@pytest.mark.parametrize(("itemsize", "n_rows", "n_columns", "first", "is_wide"), LAYOUTS)
def test_every_flipped_bit_is_seen(itemsize, n_rows, n_columns, first, is_wide) -> None:
    n_bytes = itemsize * n_rows * n_columns
    page = np.arange(4096, dtype=np.uint64).view(np.uint8)  # an allocation is a multiple of 16
    start = -page.__array_interface__["data"][0] % 64 + first
    raw = page[start : start + n_bytes]
    found, expected = (
        one.view(f"<u{itemsize}").reshape(n_rows, n_columns) for one in (raw, raw.copy())
    )
    assert (_wide(found) is not None) == is_wide
    assert _are_equal(found, expected)
    for bit in range(8 * n_bytes):
        raw[bit // 8] ^= 1 << bit % 8
        assert not _are_equal(found, expected)
        raw[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("n_columns", [4, 8, 6])
def test_rows_in_another_order_and_some_of_the_columns_are_compared_as_they_stand(
    n_columns,
) -> None:
    whole = np.arange(16 * 24, dtype=np.uint16).reshape(16, 24)
    expected = np.array([whole[[0, 2, 1, 3]][:, :n_columns], whole[[4, 6, 5, 7]][:, :n_columns]])
    reordered = whole[:8, :n_columns].reshape(2, 2, 2, n_columns).swapaxes(1, 2)
    assert _are_equal(reordered, expected.reshape(reordered.shape))
    assert not _are_equal(
        whole[:8, :n_columns].reshape(reordered.shape), expected.reshape(reordered.shape)
    )
    expected[1, 3, n_columns - 1] += 1
    assert not _are_equal(reordered, expected.reshape(reordered.shape))


def test_minus_zero_is_not_zero_and_a_nan_equals_itself() -> None:
    bits = np.array([[0x0000, 0x8000, 0x7FC0, 0x7F81]], np.uint16)
    assert _are_equal(bits, bits.copy())
    assert not _are_equal(bits, np.array([[0x8000, 0x0000, 0x7FC0, 0x7F81]], np.uint16))
    assert not _are_equal(bits, np.array([[0x0000, 0x8000, 0x7FC0, 0x7F82]], np.uint16))
