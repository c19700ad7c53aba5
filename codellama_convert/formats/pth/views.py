"""Own what is refused of the views that a rank's tensors are: impossible ones, and costly ones."""

from __future__ import annotations

from collections.abc import Collection
from math import prod
from pathlib import Path

from codellama_convert.errors import CheckpointError
from codellama_convert.formats.stored_tensor import StoredTensor, elements_are_distinct
from codellama_convert.formats.zip_directory import DAMAGED_HINT

# Meta's files need one piece a tensor and each byte once. A rank of 70B whose matrices are all
# transposed needs a piece for each 2 KiB; one whose queries, keys and values interleave in one
# storage is read three times. Within these limits any small file is fine.
_MAX_PIECES = 1 << 17
_BYTES_PER_PIECE = 1 << 10
_MAX_READ_BYTES = 64 << 20
_MAX_READS_PER_BYTE = 8

_CONTIGUOUS_HINT = "re-save it with .contiguous()"


def refuse_wrong_view(path: Path, tensor: StoredTensor) -> None:
    """Refuse a view that leaves its storage, or has an element of it twice.

    Args:
        path: The file, for the message.
        tensor: One of its tensors.

    Raises:
        CheckpointError: If it is such a view.
    """
    n_elements = prod(tensor.shape)
    _, end = tensor.extent
    if n_elements and end > tensor.storage.n_bytes:
        raise CheckpointError(
            f"tensor {tensor.name!r}: the view is out of bounds of its storage "
            f"{tensor.storage.name}",
            path=path,
            hint=DAMAGED_HINT,
        )
    is_larger = n_elements * tensor.dtype.itemsize > tensor.storage.n_bytes
    if is_larger or not elements_are_distinct(tensor.shape, tensor.strides):
        raise CheckpointError(
            f"tensor {tensor.name!r}: shape {tensor.shape} is larger than its storage (an expanded "
            "view)",
            path=path,
            hint=_CONTIGUOUS_HINT,
        )


def refuse_costly_views(path: Path, tensors: Collection[StoredTensor]) -> None:
    """Refuse a file that only millions of tiny reads could put together, or the same bytes again.

    All tensors are counted together: a file may have thousands.

    Args:
        path: The file, for the message.
        tensors: All of its tensors.

    Raises:
        CheckpointError: If they cost too much.
    """
    stored_bytes = sum({tensor.storage.name: tensor.storage.n_bytes for tensor in tensors}.values())
    n_pieces = sum(tensor.n_pieces for tensor in tensors if not tensor.row_major)
    if n_pieces > max(_MAX_PIECES, stored_bytes // _BYTES_PER_PIECE):
        worst = max(tensors, key=lambda tensor: tensor.n_pieces)
        raise CheckpointError(
            f"its tensors lie in {n_pieces} pieces, {worst.name!r} of shape {worst.shape} with "
            f"strides {worst.strides} in {worst.n_pieces} of them",
            path=path,
            hint=_CONTIGUOUS_HINT,
        )
    read_bytes = sum(tensor.read_bytes for tensor in tensors)
    if read_bytes > max(_MAX_READ_BYTES, _MAX_READS_PER_BYTE * stored_bytes):
        worst = max(tensors, key=lambda tensor: tensor.read_bytes)
        raise CheckpointError(
            f"{read_bytes} bytes would be read for its tensors, which are views of {stored_bytes} "
            f"bytes; most of them ({worst.read_bytes}) for {worst.name!r} of shape {worst.shape} with "
            f"strides {worst.strides}",
            path=path,
            hint=_CONTIGUOUS_HINT,
        )
