"""Own the rotary reordering and its inverse, and the frequencies that Meta's files hold.

Meta rotates rows (2i, 2i + 1) of a head together ("interleaved"); Hugging Face rotates rows
(i, i + head_dim / 2) ("half-split"). The same weights in the other order give the same model.
"""

from __future__ import annotations

import struct
from typing import Any


def to_half_split(rows: Any, head_dim: int) -> Any:
    """Reorder rotary rows from Meta's interleaved pairs to Hugging Face's two halves.

    Args:
        rows: A numpy array or torch tensor of shape (n_heads * head_dim, n_columns); whole heads.
        head_dim: Rows per head, even.

    Returns:
        A view (no copy where `rows` is contiguous) of shape
        (n_heads, 2, head_dim / 2, n_columns): read in order, it is the half-split order.
        `to_interleaved` undoes it.

    Raises:
        ValueError: If `rows` does not hold whole heads, or `head_dim` is odd.

    Source:
        meta-llama/codellama llama/model.py `apply_rotary_emb`; transformers `rotate_half`.
    """
    n_heads = whole_heads(rows.shape[0], head_dim)
    return rows.reshape(n_heads, head_dim // 2, 2, -1).swapaxes(1, 2)


def to_interleaved(rows: Any, head_dim: int) -> Any:
    """Reorder rotary rows from Hugging Face's two halves to Meta's interleaved pairs.

    Args:
        rows: A numpy array or torch tensor of shape (n_heads * head_dim, n_columns); whole heads.
        head_dim: Rows per head, even.

    Returns:
        A view of shape (n_heads, head_dim / 2, 2, n_columns): read in order, it is the
        interleaved order. `to_half_split` undoes it.

    Raises:
        ValueError: If `rows` does not hold whole heads, or `head_dim` is odd.

    Source:
        The inverse of `to_half_split`.
    """
    n_heads = whole_heads(rows.shape[0], head_dim)
    return rows.reshape(n_heads, 2, head_dim // 2, -1).swapaxes(1, 2)


def whole_heads(n_rows: int, head_dim: int) -> int:
    """Count the heads in `n_rows` rows.

    Args:
        n_rows: Rows in all.
        head_dim: Rows per head.

    Returns:
        The number of heads.

    Raises:
        ValueError: If `head_dim` is odd or not positive, or `n_rows` is not a multiple of it.
    """
    if head_dim <= 0 or head_dim % 2 or n_rows % head_dim:
        raise ValueError(f"{n_rows} rows are not whole heads of an even head_dim {head_dim}")
    return n_rows // head_dim


def rope_freqs(theta: float, head_dim: int) -> tuple[float, ...]:
    """Compute the rotary frequencies, as float32 numbers.

    Args:
        theta: Their base.
        head_dim: Rows per head, even.

    Returns:
        head_dim / 2 numbers. In bfloat16 and float16 they are those of every build of torch; in
        float32 its vectorised kernels may differ in the last bit.

    Source:
        meta-llama/codellama llama/model.py `precompute_freqs_cis`:
        1.0 / (theta ** (arange(0, head_dim, 2).float() / head_dim)).
    """
    exponents = (_float32(number / head_dim) for number in range(0, head_dim, 2))
    return tuple(_float32(1.0 / _float32(theta**exponent)) for exponent in exponents)


def _float32(number: float) -> float:
    """Round a number to the nearest float32."""
    (rounded,) = struct.unpack("<f", struct.pack("<f", number))
    return float(rounded)
