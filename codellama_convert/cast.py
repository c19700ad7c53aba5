"""Own the change of an element type, and what it may lose; know nothing of files.

torch's kernels do the work, and torch is imported only here, only when a dtype changes.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from codellama_convert.errors import CastError
from codellama_convert.tensors import Dtype

if TYPE_CHECKING:
    import torch

_SIGNED: dict[int, np.dtype[Any]] = {2: np.dtype("<i2"), 4: np.dtype("<i4")}


@dataclass(frozen=True, slots=True)
class CastLoss:
    """What a cast lost in one tensor.

    Attributes:
        name: The tensor.
        n_became_zero: Values that were not zero before.
    """

    name: str
    n_became_zero: int


class Mover(Protocol):
    """Moves elements from the rows that were read to the rows that are written."""

    def move(self, source: npt.NDArray[Any], target: npt.NDArray[Any], *, name: str) -> None:
        """Copy `source` to `target`, of one shape; both hold elements as unsigned integers."""

    def losses(self) -> tuple[CastLoss, ...]:
        """List what was lost so far, by tensor."""

    def close(self) -> None:
        """Give back what was taken from the process."""


class KeepBits:
    """Moves elements as they are; NaN payloads and the sign of zero stay."""

    def move(self, source: npt.NDArray[Any], target: npt.NDArray[Any], *, name: str) -> None:
        """Copy `source` to `target`.

        Args:
            source: Elements as unsigned integers, any strides.
            target: The same shape.
            name: Not used.
        """
        del name
        np.copyto(target, source)

    def losses(self) -> tuple[CastLoss, ...]:
        """Nothing is ever lost."""
        return ()

    def close(self) -> None:
        """Nothing was taken."""


class Cast:
    """Moves elements into another dtype, rounding to nearest, ties to even."""

    def __init__(self, source: Dtype, target: Dtype) -> None:
        """Prepare a cast; imports torch.

        Args:
            source: Dtype of what is read.
            target: Dtype of what is written.
        """
        import torch  # noqa: PLC0415 - half a second and 200 MB, for who casts only

        # The workers are the parallelism; torch's own threads would fight them for the cores.
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(1)
        self._torch = torch
        self._source, self._target = source, target
        self._lock = threading.Lock()
        self._became_zero: dict[str, int] = {}

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
        if self._target.max_finite < self._source.max_finite and _has_infinity(
            target, self._target
        ):
            self._refuse_overflow(before, after, name)
        if self._target.min_positive > self._source.min_positive:
            lost = _count_nonzero(source) - _count_nonzero(target)
            if lost:
                with self._lock:
                    self._became_zero[name] = self._became_zero.get(name, 0) + lost

    def _refuse_overflow(self, before: torch.Tensor, after: torch.Tensor, name: str) -> None:
        torch = self._torch
        overflowed = torch.isinf(after) & torch.isfinite(before)
        count = int(torch.count_nonzero(overflowed))
        if count:
            largest = float(before[overflowed].float().abs().max())
            wider = "float32" if self._target.code == "BF16" else "bfloat16 or float32"
            raise CastError(
                f"{name}: {count} values exceed the {self._target.name} range (max abs "
                f"{largest:.4g} > {self._target.max_finite:.6g}) and would become infinite",
                hint=f"use {wider}",
            )

    def losses(self) -> tuple[CastLoss, ...]:
        """List the tensors in which values that were not zero became zero."""
        with self._lock:
            return tuple(CastLoss(name, n) for name, n in sorted(self._became_zero.items()))

    def close(self) -> None:
        """Give torch the threads back that it had."""
        self._torch.set_num_threads(self._threads_before)


def _has_infinity(elements: npt.NDArray[Any], dtype: Dtype) -> bool:
    """Tell whether any element is infinite or NaN, of either sign, by the order of the bits."""
    sign = 1 << (8 * dtype.itemsize - 1)
    largest_negative = int(elements.max())  # the sign makes a negative one the larger integer
    largest_positive = int(elements.view(_SIGNED[dtype.itemsize]).max())
    return max(largest_positive, largest_negative & ~sign) >= dtype.infinity_bits


def _count_nonzero(elements: npt.NDArray[Any]) -> int:
    """Count the elements that are neither 0.0 nor -0.0."""
    sign = 1 << (8 * elements.itemsize - 1)
    return (
        elements.size
        - int(np.count_nonzero(elements == 0))
        - int(np.count_nonzero(elements == sign))
    )


def open_mover(source: Dtype, target: Dtype) -> Mover:
    """Choose how elements are moved.

    Args:
        source: Dtype of what is read.
        target: Dtype of what is written.

    Returns:
        A mover that threads may share.
    """
    return KeepBits() if source == target else Cast(source, target)
