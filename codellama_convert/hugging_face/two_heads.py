"""Own the comparison of a stored head with the embedding that it is said to be."""

from __future__ import annotations

from codellama_convert.errors import LayoutError
from codellama_convert.formats.same_tensor import same_bits
from codellama_convert.formats.source_sums import TensorFile


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
    if same_bits(file, name, other_file, other_name):
        return
    raise LayoutError(
        f"tensor {other_name!r} differs from {name!r}, but tie_word_embeddings in "
        "config.json says that they are the same",
        path=other_file.path,
        hint="set tie_word_embeddings to false if the head was trained, or remove the head",
    )
