"""Own what is counted about the values that are moved, and the refusal of those that overflow."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass

from codellama_convert.errors import CastError
from codellama_convert.tensors import Dtype


@dataclass(frozen=True, slots=True)
class ValueCounts:
    """Values that a user should know about, by tensor; a tensor without any is left out.

    Attributes:
        became_zero: How many values a cast made zero that were not zero before.
        nonfinite: How many infinities and NaNs the checkpoint holds; they are kept.
    """

    became_zero: dict[str, int]
    nonfinite: dict[str, int]


class Tally:
    """Counts as they are found, from several threads."""

    def __init__(self) -> None:
        """Start with nothing counted."""
        self._lock = threading.Lock()
        self._became_zero: Counter[str] = Counter()
        self._nonfinite: Counter[str] = Counter()

    def add(self, name: str, *, became_zero: int = 0, nonfinite: int = 0) -> None:
        """Add to a tensor's counts."""
        with self._lock:
            self._became_zero[name] += became_zero
            self._nonfinite[name] += nonfinite

    def counts(self, names: Container[str]) -> ValueCounts:
        """Return what was counted in some tensors, in the order of their names."""
        with self._lock:
            return ValueCounts(
                *(
                    {name: n for name, n in sorted(counted.items()) if n and name in names}
                    for counted in (self._became_zero, self._nonfinite)
                )
            )


def overflow(name: str, count: int, largest: float, target: Dtype) -> CastError:
    """Say that finite values of a tensor would become infinite.

    Args:
        name: The tensor.
        count: How many values.
        largest: The largest magnitude of them.
        target: What they were to be cast to.
    """
    wider = "float32" if target.code == "BF16" else "bfloat16 or float32"
    what = "1 value exceeds" if count == 1 else f"{count} values exceed"
    return CastError(
        f"tensor {name!r}: {what} the {target.name} range (max abs {largest:.4g} > "
        f"{target.max_finite:.6g}) and would become infinite",
        hint=f"use {wider}",
    )
