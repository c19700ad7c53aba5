"""Own the comparison of a stored head with the embedding that it is said to be."""

from __future__ import annotations

from pathlib import Path

from codellama_convert.errors import LayoutError
from codellama_convert.formats.stored_tensor import StoredTensor
from codellama_convert.storage.input_file import InputFile

_PIECE_BYTES = 1 << 20


def require_same_bytes(
    path: Path, one: StoredTensor, other_path: Path, other: StoredTensor
) -> None:
    """Refuse two tensors that should be one, and differ.

    A loader that ties them takes the first for both, and loses the second.

    Args:
        path: The file of the first.
        one: The first.
        other_path: The file of the second.
        other: The second.

    Raises:
        LayoutError: If they differ.
    """
    if (one.shape, one.dtype) == (other.shape, other.dtype):
        n_bytes = one.storage.n_bytes
        with InputFile(path) as first, InputFile(other_path) as second:
            if all(
                first.read_exact(one.storage.offset + at, min(_PIECE_BYTES, n_bytes - at))
                == second.read_exact(other.storage.offset + at, min(_PIECE_BYTES, n_bytes - at))
                for at in range(0, n_bytes, _PIECE_BYTES)
            ):
                return
    raise LayoutError(
        f"tensor {other.name!r} differs from {one.name!r}, and config.json says with "
        "tie_word_embeddings that they are one",
        path=other_path,
        hint="set tie_word_embeddings to false if the head was trained, or remove the head",
    )
