"""Own the casts of 16-bit elements: what each of the 65,536 becomes is known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import numpy as np
import numpy.typing as npt

from codellama_convert.convert.value_counts import Tally, ValueCounts, overflow
from codellama_convert.tensors import BFLOAT16, FLOAT16, FLOAT32, Dtype

Elements = npt.NDArray[Any]

# What may be odd about an element that is cast.
_ORDINARY, _NONFINITE, _BECOMES_ZERO, _OVERFLOWS = range(4)
_CHUNK_ELEMENTS = 1 << 17  # with what is calculated of them, they stay in the processor's cache
_NEIGHBOURS = 8  # elements that are looked at together: as many truth values as a uint64 has bytes
# Any, as numpy's types misspell "contig".
_OPERANDS: Any = [["readonly", "contig"], ["writeonly", "contig"]]


class TableCast:
    """Moves 16-bit elements into another dtype, rounding to nearest, ties to even.

    A NaN becomes the quiet NaN of its sign, as in every cast of this program.
    """

    keeps_bits = False

    def __init__(self, source: Dtype, target: Dtype) -> None:
        """Prepare a cast.

        Args:
            source: Dtype of what is read, of 16 bits.
            target: Dtype of what is written.
        """
        self._source, self._target = source, target
        self._table = cast_table(source, target)
        self._oddities = _oddities(source, target, self._table)
        self._cast = _CASTS[source, target]
        self._tally = Tally()

    def move(self, source: Elements, target: Elements, *, name: str) -> None:
        """Cast `source` into `target`.

        Args:
            source: Elements of the source dtype as unsigned integers, any strides.
            target: The same shape, elements of the target dtype.
            name: The tensor, for messages.

        Raises:
            CastError: If a finite value would become infinite.
        """
        chunks = np.nditer(
            [source, target],
            ["buffered", "external_loop"],
            _OPERANDS,
            order="C",
            buffersize=_CHUNK_ELEMENTS,
        )
        overflowing: list[Elements] = []
        with chunks:
            for before, after in chunks:
                may_be_odd = self._cast(before, after, self._table)
                if may_be_odd.size:
                    overflowing += self._count(may_be_odd, name)
        if overflowing:
            values = np.abs(_numbers(np.concatenate(overflowing), self._source))
            raise overflow(name, values.size, float(values.max()), self._target)

    def _count(self, elements: Elements, name: str) -> list[Elements]:
        """Count what is odd about some elements; return those that overflow, if any do."""
        oddities = self._oddities.take(elements)
        counts = np.bincount(oddities, minlength=4)
        if counts[_NONFINITE] or counts[_BECOMES_ZERO]:
            self._tally.add(
                name,
                became_zero=int(counts[_BECOMES_ZERO]),
                nonfinite=int(counts[_NONFINITE]),
            )
        return [elements[oddities == _OVERFLOWS]] if counts[_OVERFLOWS] else []

    def counts(self, names: Container[str]) -> ValueCounts:
        """Report in which of these tensors values became zero, or were no numbers before."""
        return self._tally.counts(names)

    def close(self) -> None:
        """Nothing was taken."""


def cast_table(source: Dtype, target: Dtype) -> Elements:
    """Calculate what each element becomes.

    Args:
        source: A dtype of 16 bits.
        target: Another dtype.

    Returns:
        65,536 elements of the target dtype as unsigned integers, by the bits of the source's.
    """
    bits = np.arange(1 << 16, dtype=np.uint16)
    numbers = _numbers(bits, source)
    wide = numbers.view(np.uint32)
    if target == FLOAT32:
        table = wide.copy()
    elif target == BFLOAT16:
        # To nearest, ties to even: add just less than half, and the last bit that stays.
        table = ((wide + 0x7FFF + (wide >> 16 & 1)) >> 16).astype(np.uint16)
    else:
        with np.errstate(all="ignore"):  # what overflows is refused where it occurs
            table = numbers.astype(np.float16).view(np.uint16)
    sign = (bits >> 15).astype(table.dtype) << (8 * target.itemsize - 1)
    nan = np.isnan(numbers)
    table[nan] = (sign | table.dtype.type(target.quiet_nan_bits))[nan]
    return table


def _numbers(bits: Elements, dtype: Dtype) -> npt.NDArray[np.float32]:
    """Return the float32 numbers that some 16 bits stand for: all of them have one."""
    if dtype == BFLOAT16:
        return (bits.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(all="ignore"):  # of signalling NaNs
        return bits.view(np.float16).astype(np.float32)


def _oddities(source: Dtype, target: Dtype, table: Elements) -> npt.NDArray[np.uint8]:
    """Say of each element what is odd about its cast."""
    before = np.arange(1 << 16, dtype=np.uint16) & 0x7FFF
    after = table & table.dtype.type((1 << (8 * target.itemsize - 1)) - 1)
    oddities = np.full(1 << 16, _ORDINARY, np.uint8)
    oddities[(after >= target.infinity_bits)] = _OVERFLOWS
    oddities[(before >= source.infinity_bits)] = _NONFINITE
    oddities[(after == 0) & (before != 0)] = _BECOMES_ZERO
    return oddities


def _look_up(before: Elements, after: Elements, table: Elements) -> Elements:
    """Cast float16, of which nothing overflows or becomes zero; return infinities and NaNs."""
    table.take(before, out=after, mode="clip")  # no index is beyond the table: check none
    return before[(before & 0x7FFF) >= FLOAT16.infinity_bits]


def _widen(before: Elements, after: Elements, table: Elements) -> Elements:
    """Cast bfloat16 to float32, whose upper half it is; return infinities and NaNs."""
    np.copyto(after, before)
    np.left_shift(after, 16, out=after)
    odd = np.flatnonzero((before & 0x7FFF) >= BFLOAT16.infinity_bits)
    if odd.size:
        after[odd] = table.take(before[odd])
    return before[odd]


def _narrow(before: Elements, after: Elements, table: Elements) -> Elements:
    """Cast bfloat16 to float16: another exponent, where the number is a normal one of both.

    The significand of bfloat16 is the shorter one, so nothing is rounded there. The others, a few
    of a thousand weights, are looked up and returned with their neighbours: some overflow, become
    zero or are no numbers.
    """
    if before.size % _NEIGHBOURS:  # the end of a tensor of a rare shape
        table.take(before, out=after, mode="clip")
        return before
    smallest, beyond = 0x3880, 0x4780  # the bits of 2**-14 and 2**16
    distance = before & 0x7FFF
    distance -= smallest
    is_odd = distance >= beyond - smallest
    # 7 bits of significand become 10, so 8 distances are added to the bits of 2**-14 and the sign.
    # `before` has both the sign and one distance; numpy adds and multiplies faster than it shifts.
    distance *= 7
    distance += before
    np.subtract(distance, smallest - 0x0400, out=after)
    odd = np.flatnonzero(is_odd.view(np.uint64) != 0)  # the eights that hold one
    if odd.size == 0:
        return before[:0]
    found = before.reshape(-1, _NEIGHBOURS).take(odd, axis=0)
    after.reshape(-1, _NEIGHBOURS)[odd] = table.take(found)
    return found.reshape(-1)


# Each casts some elements, by a table where it must, and returns those that may be odd.
_CASTS: dict[tuple[Dtype, Dtype], Callable[[Elements, Elements, Elements], Elements]] = {
    (BFLOAT16, FLOAT16): _narrow,
    (BFLOAT16, FLOAT32): _widen,
    (FLOAT16, BFLOAT16): _look_up,
    (FLOAT16, FLOAT32): _look_up,
}
