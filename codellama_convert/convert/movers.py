"""Own the change of an element type, and what is odd about the values.

torch's kernels cast float32, and torch is imported only here, only for that.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from codellama_convert.convert.table_cast import TableCast
from codellama_convert.convert.value_counts import Tally, ValueCounts, overflow
from codellama_convert.tensors import FLOAT32, Dtype

if TYPE_CHECKING:
    import torch

_SIGNED: dict[int, np.dtype[Any]] = {2: np.dtype("<i2"), 4: np.dtype("<i4")}


class Mover(Protocol):
    """Moves elements from the rows that were read to the rows that are written.

    Attributes:
        keeps_bits: Whether the elements stay what they are.
    """

    keeps_bits: bool

    def move(self, source: npt.NDArray[Any], target: npt.NDArray[Any], *, name: str) -> None:
        """Copy `source` to `target`, of one shape; both hold elements as unsigned integers."""

    def counts(self, names: Container[str]) -> ValueCounts:
        """Report what was odd so far about the values of these tensors."""

    def close(self) -> None:
        """Give back what was taken from the process."""


class KeepBits:
    """Moves elements as they are; NaN payloads and the sign of zero stay."""

    keeps_bits = True

    def __init__(self, dtype: Dtype) -> None:
        """Prepare to move elements of one dtype."""
        self._dtype = dtype
        self._tally = Tally()

    def move(self, source: npt.NDArray[Any], target: npt.NDArray[Any], *, name: str) -> None:
        """Copy `source` to `target`.

        Args:
            source: Elements as unsigned integers, any strides.
            target: The same shape.
            name: The tensor, for the counts.
        """
        np.copyto(target, source)
        if _has_nonfinite(target, self._dtype):
            self._tally.add(name, nonfinite=_count_nonfinite(target, self._dtype))

    def counts(self, names: Container[str]) -> ValueCounts:
        """Report which of these tensors hold infinities or NaNs; no value became zero."""
        return self._tally.counts(names)

    def close(self) -> None:
        """Nothing was taken."""


class TorchCast:
    """Moves float32 elements into another dtype, rounding to nearest, ties to even.

    A NaN becomes the quiet NaN of its sign: what torch's kernels leave of a NaN depends on how many
    elements they get at once, and on the processor.
    """

    keeps_bits = False

    def __init__(self, source: Dtype, target: Dtype) -> None:
        """Prepare a cast; imports torch.

        Args:
            source: Dtype of what is read.
            target: Dtype of what is written.
        """
        import torch  # noqa: PLC0415 - half a second and 200 MB

        # The workers are the parallelism; torch's own threads would fight them for the cores.
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(1)
        self._torch = torch
        self._source, self._target = source, target
        self._tally = Tally()

    def _tensor(self, elements: npt.NDArray[Any], dtype: Dtype) -> torch.Tensor:
        signed = elements.view(_SIGNED[dtype.itemsize])
        wanted: torch.dtype = getattr(self._torch, dtype.name)
        return self._torch.from_numpy(signed).view(wanted)

    def move(self, source: npt.NDArray[Any], target: npt.NDArray[Any], *, name: str) -> None:
        """Cast `source` into `target`.

        Args:
            source: Elements of the source dtype as unsigned integers, any strides.
            target: The same shape, elements of the target dtype.
            name: The tensor, for messages.

        Raises:
            CastError: If a finite value would become infinite.
        """
        before, after = self._tensor(source, self._source), self._tensor(target, self._target)
        after.copy_(before)
        # The checks look at bits through numpy: ten times faster than torch's isinf, no copies.
        if _has_nonfinite(target, self._target):
            if self._target.max_finite < self._source.max_finite:
                self._refuse_overflow(before, after, name)
            _settle_nans(source, target, self._target)
            self._tally.add(name, nonfinite=_count_nonfinite(target, self._target))
        if self._target.min_positive > self._source.min_positive:
            lost = _count_nonzero(source) - _count_nonzero(target)
            self._tally.add(name, became_zero=lost)

    def _refuse_overflow(self, before: torch.Tensor, after: torch.Tensor, name: str) -> None:
        torch = self._torch
        overflowed = torch.isinf(after) & torch.isfinite(before)
        count = int(torch.count_nonzero(overflowed))
        if count:
            largest = float(before[overflowed].float().abs().max())
            raise overflow(name, count, largest, self._target)

    def counts(self, names: Container[str]) -> ValueCounts:
        """Report in which of these tensors values became zero, or were no numbers before."""
        return self._tally.counts(names)

    def close(self) -> None:
        """Give torch the threads back that it had."""
        self._torch.set_num_threads(self._threads_before)


def _has_nonfinite(elements: npt.NDArray[Any], dtype: Dtype) -> bool:
    """Return whether any element is infinite or NaN, of either sign, by the order of the bits."""
    sign = 1 << (8 * dtype.itemsize - 1)
    # The exponent's highest bit is that of numbers from 2 on: most tiles have none, seen at once.
    if not int(np.bitwise_or.reduce(elements, axis=None)) & sign >> 1:
        return False
    largest_negative = int(elements.max())  # the sign makes a negative one the larger integer
    largest_positive = int(elements.view(_SIGNED[dtype.itemsize]).max())
    return max(largest_positive, largest_negative & ~sign) >= dtype.infinity_bits


def _count_nonfinite(elements: npt.NDArray[Any], dtype: Dtype) -> int:
    """Count the elements that are infinite or NaN; slower than asking whether there are any."""
    sign = 1 << (8 * dtype.itemsize - 1)
    return int(np.count_nonzero((elements & ~elements.dtype.type(sign)) >= dtype.infinity_bits))


def _settle_nans(source: npt.NDArray[Any], target: npt.NDArray[Any], target_dtype: Dtype) -> None:
    """Make every NaN of `target` the quiet one with the sign that it has in `source`."""
    sign_place = 8 * target_dtype.itemsize - 1
    nan = (target & target.dtype.type((1 << sign_place) - 1)) > target_dtype.infinity_bits
    signs = (source[nan] >> (8 * source.itemsize - 1)).astype(target.dtype) << sign_place
    target[nan] = signs | target_dtype.quiet_nan_bits


def _count_nonzero(elements: npt.NDArray[Any]) -> int:
    """Count the elements that are neither 0.0 nor -0.0."""
    sign = 1 << (8 * elements.itemsize - 1)
    return (
        elements.size
        - int(np.count_nonzero(elements == 0))
        - int(np.count_nonzero(elements == sign))
    )


class Movers:
    """One mover for each dtype that is read; threads may share them."""

    def __init__(self, sources: Iterable[Dtype], target: Dtype) -> None:
        """Choose how elements are moved.

        Args:
            sources: Dtypes of what is read.
            target: Dtype of what is written.
        """
        self._movers = {source: _mover(source, target) for source in sources}

    def __getitem__(self, source: Dtype) -> Mover:
        """Return the mover of elements of a dtype."""
        return self._movers[source]

    def counts(self, names: Container[str]) -> ValueCounts:
        """Report what was odd so far about the values of these tensors, each moved by one mover."""
        each = [mover.counts(names) for mover in self._movers.values()]
        return ValueCounts(
            became_zero=_joined(one.became_zero for one in each),
            nonfinite=_joined(one.nonfinite for one in each),
        )

    def close(self) -> None:
        """Close them, the last one first: each gives torch back what it found."""
        for mover in reversed(self._movers.values()):
            mover.close()


def _mover(source: Dtype, target: Dtype) -> Mover:
    if source == target:
        return KeepBits(source)
    return TorchCast(source, target) if source == FLOAT32 else TableCast(source, target)


def _joined(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    return dict(sorted(item for one in counts for item in one.items()))
