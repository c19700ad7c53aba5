"""Own the comparison of two stored tensors, bit for bit."""

from __future__ import annotations

import numpy as np

from codellama_convert.formats.source_sums import TensorFile
from codellama_convert.formats.tensor_reader import TensorReader
from codellama_convert.storage.buffers import aligned_buffer
from codellama_convert.tensors import rows_and_columns

_BAND_BYTES = 1 << 20


def same_bits(file: TensorFile, name: str, other_file: TensorFile, other_name: str) -> bool:
    """Read two tensors band by band, and report whether they are equal.

    Args:
        file: What holds the first.
        name: The first.
        other_file: What holds the second.
        other_name: The second.

    Returns:
        Whether shape, dtype and every bit are the same.

    Raises:
        CheckpointError: If a file cannot be read.
    """
    one, other = file.tensors[name], other_file.tensors[other_name]
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    n_rows, n_columns = rows_and_columns(one.shape)
    row_bytes = n_columns * one.dtype.itemsize
    at_once = max(1, _BAND_BYTES // row_bytes)
    buffers = [aligned_buffer(at_once * row_bytes) for _ in range(2)]
    with TensorReader(file, [name]) as first, TensorReader(other_file, [other_name]) as second:
        for row in range(0, n_rows, at_once):
            n = min(at_once, n_rows - row)
            rows, _ = first.read_rows(name, row, n, buffers[0])
            its, _ = second.read_rows(other_name, row, n, buffers[1])
            if not np.array_equal(rows, its):  # as integers: a NaN equals itself
                return False
    return True
