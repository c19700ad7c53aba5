"""Own the comparison of a stored head with the embedding that it is said to be."""

from __future__ import annotations

import numpy as np

from codellama_convert.errors import LayoutError
from codellama_convert.formats.source_sums import TensorFile
from codellama_convert.formats.tensor_reader import TensorReader
from codellama_convert.storage.blocks import aligned_buffer
from codellama_convert.tensors import rows_and_columns

_BAND_BYTES = 1 << 20


def require_same(file: TensorFile, name: str, other_file: TensorFile, other_name: str) -> None:
    """Refuse two tensors that should be one, and differ.

    A loader that ties them takes the first for both, and loses the second.

    Args:
        file: What holds the first.
        name: The first.
        other_file: What holds the second.
        other_name: The second.

    Raises:
        LayoutError: If they differ.
    """
    one, other = file.tensors[name], other_file.tensors[other_name]
    if file.path == other_file.path and one.place == other.place:
        return
    if (one.shape, one.dtype) == (other.shape, other.dtype):
        with TensorReader(file, [name]) as first, TensorReader(other_file, [other_name]) as second:
            if _are_equal(first, name, second, other_name):
                return
    raise LayoutError(
        f"tensor {other_name!r} differs from {name!r}, and config.json says with "
        "tie_word_embeddings that they are one",
        path=other_file.path,
        hint="set tie_word_embeddings to false if the head was trained, or remove the head",
    )


def _are_equal(first: TensorReader, name: str, second: TensorReader, other_name: str) -> bool:
    """Compare two matrices of one shape and dtype, band by band."""
    tensor = first.index.tensors[name]
    n_rows, n_columns = rows_and_columns(tensor.shape)
    row_bytes = n_columns * tensor.dtype.itemsize
    at_once = max(1, _BAND_BYTES // row_bytes)
    buffers = [aligned_buffer(at_once * row_bytes) for _ in range(2)]
    for row in range(0, n_rows, at_once):
        n = min(at_once, n_rows - row)
        one, _ = first.read_rows(name, row, n, buffers[0])
        other, _ = second.read_rows(other_name, row, n, buffers[1])
        if not np.array_equal(one, other):  # as integers: a NaN equals itself
            return False
    return True
