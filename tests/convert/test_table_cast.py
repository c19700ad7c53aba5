"""What becomes of each of the 65,536 elements of 16 bits: torch's cast, and the plain NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codellama_convert.convert.table_cast import TableCast, cast_table
from codellama_convert.errors import CastError
from codellama_convert.tensors import BFLOAT16, FLOAT16, FLOAT32, Dtype

PAIRS = [(BFLOAT16, FLOAT16), (BFLOAT16, FLOAT32), (FLOAT16, BFLOAT16), (FLOAT16, FLOAT32)]
ALL = np.arange(1 << 16, dtype=np.uint16)
UNSIGNED = {2: np.uint16, 4: np.uint32}
PLAIN_NAN = {"BF16": 0x7FC0, "F16": 0x7E00, "F32": 0x7FC00000}


def as_torch(bits: np.ndarray, dtype: Dtype) -> torch.Tensor:
    signed = bits.view(np.int16 if dtype.itemsize == 2 else np.int32)
    return torch.from_numpy(signed.copy()).view(getattr(torch, dtype.name))


def of_torch(bits: np.ndarray, source: Dtype, target: Dtype) -> np.ndarray:
    """Cast with torch, then make each NaN the plain one of its sign."""
    values = as_torch(bits, source)
    signed = values.to(getattr(torch, target.name)).view(
        torch.int16 if target.itemsize == 2 else torch.int32
    )
    found = signed.numpy().view(UNSIGNED[target.itemsize]).copy()
    nan = values.isnan().numpy()
    sign = np.where(bits[nan] >> 15 == 1, 1 << (8 * target.itemsize - 1), 0)
    found[nan] = sign | PLAIN_NAN[target.code]
    return found


def moved(bits: np.ndarray, source: Dtype, target: Dtype) -> np.ndarray:
    cast = TableCast(source, target)
    after = np.empty(bits.shape, UNSIGNED[target.itemsize])
    cast.move(bits, after, name="w")
    return after


def stays_finite(source: Dtype, target: Dtype) -> np.ndarray:
    """Choose the elements whose cast is not refused, by torch."""
    values = as_torch(ALL, source)
    cast = values.to(getattr(torch, target.name))
    return ALL[(~(cast.isinf() & values.isfinite())).numpy()]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_every_element_becomes_what_torch_makes_of_it(source: Dtype, target: Dtype) -> None:
    assert (cast_table(source, target) == of_torch(ALL, source, target)).all()
    bits = stays_finite(source, target)
    assert len(bits) > 36_000
    assert (moved(bits, source, target) == of_torch(bits, source, target)).all()


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_lone_element_is_cast_like_one_among_many(source: Dtype, target: Dtype) -> None:
    """torch's kernels leave another NaN of one element than of eight."""
    for bits in (0x0001, 0x8000, 0x3C01, 0x7F81, 0xFFFF, 0x7FC5, 0xFC01):
        one = np.array([bits], np.uint16)
        many = np.full(1000, bits, np.uint16)
        if source == BFLOAT16 and target == FLOAT16 and 0x4780 <= bits & 0x7FFF < 0x7F80:
            continue
        expected = of_torch(one, source, target)
        assert (moved(one, source, target) == expected).all()
        assert (moved(many, source, target) == expected).all()


@pytest.mark.parametrize(
    ("source", "target", "before", "after"),
    [
        (BFLOAT16, FLOAT16, 0x3F80, 0x3C00),  # 1
        (BFLOAT16, FLOAT16, 0xBF81, 0xBC08),  # -(1 + 2**-7)
        (BFLOAT16, FLOAT16, 0x3880, 0x0400),  # 2**-14, the smallest normal one
        (BFLOAT16, FLOAT16, 0x387F, 0x03FC),  # the largest below it, exact as a subnormal one
        (BFLOAT16, FLOAT16, 0x387D, 0x03F4),
        (BFLOAT16, FLOAT16, 0x3400, 0x0002),  # 2**-23
        (BFLOAT16, FLOAT16, 0x33C0, 0x0002),  # 1.5 * 2**-24: a tie, to the even one
        (BFLOAT16, FLOAT16, 0x3300, 0x0000),  # 2**-25: a tie, to zero
        (BFLOAT16, FLOAT16, 0x3301, 0x0001),
        (BFLOAT16, FLOAT16, 0x477F, 0x7BF8),  # 65280, the largest that fits
        (BFLOAT16, FLOAT16, 0x8000, 0x8000),  # -0
        (BFLOAT16, FLOAT16, 0xFF80, 0xFC00),  # -infinity
        (BFLOAT16, FLOAT16, 0xFF81, 0xFE00),  # a signalling NaN
        (BFLOAT16, FLOAT32, 0x0001, 0x00010000),
        (BFLOAT16, FLOAT32, 0x7F80, 0x7F800000),
        (BFLOAT16, FLOAT32, 0xFFA5, 0xFFC00000),
        (FLOAT16, BFLOAT16, 0x3C04, 0x3F80),  # 1 + 2**-8: a tie, to the even one
        (FLOAT16, BFLOAT16, 0x3C0C, 0x3F82),  # 1 + 3 * 2**-8: likewise, upwards
        (FLOAT16, BFLOAT16, 0x3C05, 0x3F81),
        (FLOAT16, BFLOAT16, 0x7BFF, 0x4780),  # 65504 becomes 65536
        (FLOAT16, BFLOAT16, 0x0001, 0x3380),  # 2**-24 is a normal one there
        (FLOAT16, FLOAT32, 0x0001, 0x33800000),
        (FLOAT16, FLOAT32, 0x7C01, 0x7FC00000),
    ],
)  # fmt: skip
def test_an_element_by_hand(source: Dtype, target: Dtype, before: int, after: int) -> None:
    assert moved(np.array([before], np.uint16), source, target).tolist() == [after]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_columns_heads_and_many_rows_are_cast_in_place(source: Dtype, target: Dtype) -> None:
    """A rank's columns go into some columns of a tile, rotary rows into another order."""
    bits = np.resize(stays_finite(source, target), (64, 4099))
    expected = of_torch(bits.reshape(-1), source, target).reshape(bits.shape)
    whole = np.full((64, 9000), 0xABCD, UNSIGNED[target.itemsize])
    TableCast(source, target).move(bits, whole[:, 11 : 11 + 4099], name="w")
    assert (whole[:, 11 : 11 + 4099] == expected).all()
    assert (whole[:, :11] == 0xABCD).all()
    assert (whole[:, 11 + 4099 :] == 0xABCD).all()
    in_heads = [rows.reshape(4, 8, 2, -1).swapaxes(1, 2) for rows in (bits, expected)]
    found = np.empty(in_heads[0].shape, UNSIGNED[target.itemsize])
    TableCast(source, target).move(in_heads[0], found, name="w")
    assert (found == in_heads[1]).all()


@pytest.mark.parametrize("size", [1, 7, 8, 9, 17, 131_071, 131_073, 131_080])
def test_what_is_odd_is_seen_at_the_end_of_a_tensor_of_any_size(size: int) -> None:
    """Elements are looked at by eights, and taken a hundred thousand at a time."""
    cast = TableCast(BFLOAT16, FLOAT16)
    bits = np.full(size, 0xBF81, np.uint16)
    bits[-1] = 0x3300
    after = np.full(size, 0xABCD, np.uint16)
    cast.move(bits, after, name="w")
    assert (after[:-1] == 0xBC08).all()
    assert after[-1] == 0
    assert cast.counts({"w"}).became_zero == {"w": 1}


def test_what_is_odd_is_counted_once_in_each_tensor() -> None:
    cast = TableCast(BFLOAT16, FLOAT16)
    bits = np.full((3, 50_000), 0x3F80, np.uint16)
    bits[0, :4] = [0x0001, 0x8001, 0x3300, 0x3301]  # the last one is not zero in float16
    bits[2, -3:] = [0x7F80, 0xFF80, 0xFFC1]
    bits[1, :2] = [0x0000, 0x8000]  # zero before
    cast.move(bits, np.empty_like(bits), name="w")
    cast.move(bits[:1], np.empty_like(bits[:1]), name="w")
    cast.move(bits[1:2], np.empty_like(bits[1:2]), name="ordinary")
    counts = cast.counts({"w", "ordinary"})
    assert counts.became_zero == {"w": 6}
    assert counts.nonfinite == {"w": 3}
    assert cast.counts({"ordinary"}).nonfinite == {}


@pytest.mark.parametrize("target", [BFLOAT16, FLOAT32])
def test_of_float16_only_infinities_and_nans_are_odd(target: Dtype) -> None:
    cast = TableCast(FLOAT16, target)
    cast.move(ALL, np.empty(ALL.shape, UNSIGNED[target.itemsize]), name="w")
    assert cast.counts({"w"}).nonfinite == {"w": 2048}
    assert cast.counts({"w"}).became_zero == {}


def test_values_that_would_become_infinite_are_counted_over_the_whole_tile() -> None:
    bits = np.full((4, 50_000), 0x3F80, np.uint16)
    bits[0, 7], bits[3, -1], bits[2, 5] = 0x4780, 0xC7C3, 0x7F80
    with pytest.raises(CastError) as caught:
        moved(bits, BFLOAT16, FLOAT16)
    for fact in ("'w'", "2 values exceed", "9.984e+04 > 65504", "float16"):
        assert fact in str(caught.value)
    bits[0, 7], bits[3, -1] = 0x477F, 0xC77F
    assert moved(bits, BFLOAT16, FLOAT16)[3, -1] == 0xFBF8
