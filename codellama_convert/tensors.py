"""Own what a tensor is before its bytes are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, Protocol

DtypeCode = Literal["BF16", "F16", "F32"]


@dataclass(frozen=True, slots=True)
class Dtype:
    """One element type.

    Attributes:
        code: The safetensors spelling.
        name: The spelling of torch, numpy and config.json.
        short: The usual abbreviation on a command line.
        storage: torch's storage class in a .pth file.
        itemsize: Bytes per element.
        max_finite: The largest finite value.
        min_positive: The smallest positive value, a subnormal one.
        infinity_bits: The bits of positive infinity; larger ones, without the sign, are NaN.
    """

    code: DtypeCode
    name: str
    short: str
    storage: str
    itemsize: int
    max_finite: float
    min_positive: float
    infinity_bits: int

    @property
    def quiet_nan_bits(self) -> int:
        """The bits of the plain NaN: of infinity, and the highest of the significand."""
        lowest_of_exponent = self.infinity_bits & -self.infinity_bits
        return self.infinity_bits | lowest_of_exponent >> 1


# Codes: the safetensors format's list. Largest values: IEEE 754 binary16 and binary32; bfloat16 is
# binary32 with the lower 16 bits of the significand cut off.
BFLOAT16 = Dtype(
    "BF16", "bfloat16", "bf16", "BFloat16Storage", 2,
    (2.0 - 2.0**-7) * 2.0**127, 2.0**-133, 0x7F80,
)  # fmt: skip
FLOAT16 = Dtype(
    "F16", "float16", "fp16", "HalfStorage", 2,
    65504.0, 2.0**-24, 0x7C00,
)  # fmt: skip
FLOAT32 = Dtype(
    "F32", "float32", "fp32", "FloatStorage", 4,
    (2.0 - 2.0**-23) * 2.0**127, 2.0**-149, 0x7F800000,
)  # fmt: skip
DTYPES: tuple[Dtype, ...] = (BFLOAT16, FLOAT16, FLOAT32)
_ALIASES = {"half": "float16", "float": "float32"}  # torch's


class TorchDtype(Protocol):
    """torch.dtype, without importing torch: it is known by its name."""

    @property
    def is_floating_point(self) -> bool:
        """Whether it is one of floating-point numbers."""


DtypeLike = Dtype | str | TorchDtype


def as_dtype(value: DtypeLike) -> Dtype:
    """Find the dtype that a caller means.

    Args:
        value: A row of `DTYPES`, a name for `dtype_named`, or torch's dtype.

    Returns:
        The row of `DTYPES`.

    Raises:
        ValueError: If no row has that name.
    """
    return value if isinstance(value, Dtype) else dtype_named(str(value))


def dtype_named(name: str) -> Dtype:
    """Find a dtype by its safetensors code, its torch name or its abbreviation.

    Args:
        name: One of "BF16", "bfloat16", "bf16" and the like, in any case ("half", "float" too).

    Returns:
        The row of `DTYPES`.

    Raises:
        ValueError: If no row has that name.
    """
    wanted = name.lower().removeprefix("torch.")
    wanted = _ALIASES.get(wanted, wanted)
    for dtype in DTYPES:
        if wanted in {dtype.code.lower(), dtype.name, dtype.short}:
            return dtype
    raise ValueError(f"unknown dtype {name!r}; known dtypes: {', '.join(d.name for d in DTYPES)}")


def rows_and_columns(shape: Sequence[int]) -> tuple[int, int]:
    """Count a tensor's rows and columns.

    Args:
        shape: Elements along each dimension, of which there are two at most.

    Returns:
        Both; a vector has one column, and a scalar one row.
    """
    n_rows, n_columns = (*shape, 1, 1)[:2]
    return n_rows, n_columns


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor's name, element type and shape.

    Attributes:
        name: The name it is stored under.
        dtype: A row of `DTYPES`.
        shape: Elements along each dimension; () is a scalar.
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...]

    @property
    def n_rows(self) -> int:
        """Its rows."""
        return rows_and_columns(self.shape)[0]

    @property
    def n_columns(self) -> int:
        """Its columns; a vector has one."""
        return rows_and_columns(self.shape)[1]

    @property
    def n_elements(self) -> int:
        """Elements in all."""
        return prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Bytes in all."""
        return self.n_elements * self.dtype.itemsize
