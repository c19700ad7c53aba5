"""Elements as bits: what a cast makes of them, spelled with numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[Any]  # unsigned integers of the element's width


@dataclass(frozen=True)
class Kind:
    """An element type.

    Attributes:
        name: As config.json spells it.
        code: As safetensors spells it.
        storage: As torch's pickles spell it.
        unsigned: Integers of the same width.
        infinity: The bits of plus infinity.
        quiet: The bits of the quiet NaN without a sign.
    """

    name: str
    code: str
    storage: str
    unsigned: type[np.unsignedinteger[Any]]
    infinity: int
    quiet: int

    @property
    def width(self) -> int:
        return np.dtype(self.unsigned).itemsize

    @property
    def sign(self) -> int:
        return 1 << (8 * self.width - 1)


BFLOAT16 = Kind("bfloat16", "BF16", "BFloat16Storage", np.uint16, 0x7F80, 0x7FC0)
FLOAT16 = Kind("float16", "F16", "HalfStorage", np.uint16, 0x7C00, 0x7E00)
FLOAT32 = Kind("float32", "F32", "FloatStorage", np.uint32, 0x7F800000, 0x7FC00000)
KINDS = (BFLOAT16, FLOAT16, FLOAT32)


@dataclass(frozen=True)
class Moved:
    """A tensor's elements as they must be written.

    Attributes:
        bits: The elements.
        became_zero: How many were not zero before.
        nonfinite: How many are infinite or not a number.
        overflowed: How many finite values became infinite: such a cast is refused.
    """

    bits: Bits
    became_zero: int
    nonfinite: int
    overflowed: int


def move(bits: Bits, source: Kind, target: Kind) -> Moved:
    """Cast elements, to nearest and ties to even; without a cast, every bit stays."""
    values = _values(bits, source)
    moved = bits if source == target else _cast(values, target)
    magnitude = moved & ~moved.dtype.type(target.sign)
    lost = (magnitude == 0) & (values != 0)
    infinite = (magnitude == target.infinity) & np.isfinite(values)
    return Moved(
        moved,
        became_zero=int(np.count_nonzero(lost)),
        nonfinite=int(np.count_nonzero(magnitude >= target.infinity)),
        overflowed=int(np.count_nonzero(infinite)),
    )


def _values(bits: Bits, kind: Kind) -> npt.NDArray[np.float32]:
    if kind == BFLOAT16:
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(np.float16 if kind == FLOAT16 else np.float32).astype(np.float32)


def _cast(values: npt.NDArray[np.float32], target: Kind) -> Bits:
    wide = values.view(np.uint32)
    if target == FLOAT16:
        with np.errstate(over="ignore"):
            cast: Bits = values.astype(np.float16).view(np.uint16)
    elif target == BFLOAT16:
        half = wide.astype(np.uint64) + 0x7FFF + ((wide >> 16) & 1)
        cast = (half >> 16).astype(np.uint16)
    else:
        cast = wide.copy()
    not_a_number = np.isnan(values)
    signs = (wide[not_a_number] >> 31).astype(target.unsigned) << (8 * target.width - 1)
    cast[not_a_number] = signs | target.unsigned(target.quiet)
    return cast
