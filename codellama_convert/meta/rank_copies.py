"""Own the comparison of ranks with each other: files that are copies, and tensors that must be."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from codellama_convert.errors import LayoutError
from codellama_convert.formats.pth.reader import RankIndex, read_vector
from codellama_convert.model.tensor_table import TensorLayout
from codellama_convert.storage.input_file import InputFile


def refuse_copied_ranks(ranks: Sequence[RankIndex]) -> None:
    """Refuse two ranks of the same content, which a copied or twice downloaded file is."""
    contents = [_storages_in(rank) for rank in ranks]
    counts = Counter(contents)
    seen: dict[tuple[int, int] | bytes, RankIndex] = {}
    for rank, content in zip(ranks, contents, strict=True):
        twin = seen.setdefault(rank.inode, rank)
        if twin is not rank:
            raise LayoutError(
                f"is the same file as {twin.path.name}", path=rank.path, hint="download it again"
            )
        if not rank.has_sums:
            continue  # without checksums, equal sizes prove nothing
        # Ranks that were saved as views have the same storages, and other places in them.
        places = _places_in(rank) if counts[content] > 1 else b""
        first = seen.setdefault(content + places, rank)
        if first is not rank:
            raise LayoutError(
                f"holds the same weights as {first.path.name}: one rank was copied over another",
                path=rank.path,
                hint="download it again",
            )


def _storages_in(rank: RankIndex) -> bytes:
    return _digest([(one.name, one.n_bytes, one.crc) for one in rank.storages.values()])


def _places_in(rank: RankIndex) -> bytes:
    return _digest([(name, tensor.place) for name, tensor in rank.tensors.items()])


def _digest(values: list[Any]) -> bytes:
    # To hold what 16 ranks of 405B say would take 3 MB.
    return hashlib.sha256(repr(values).encode()).digest()


def compare_copies(layout: Sequence[TensorLayout], ranks: Sequence[RankIndex]) -> None:
    """Compare the tensors that every rank has a copy of, bit for bit, with rank 0's."""
    if len(ranks) == 1:
        return
    replicated = [tensor for tensor in layout if tensor.meta.is_copied]
    with ExitStack() as stack:  # all at once, so that of one tensor two copies are in memory
        (first, *others) = (stack.enter_context(InputFile(rank.path)) for rank in ranks)
        for tensor in replicated:
            name = tensor.meta.name
            content = read_vector(first, ranks[0].tensors[name])
            for rank, file in zip(ranks[1:], others, strict=True):
                found = read_vector(file, rank.tensors[name])
                if found != content:
                    raise _unequal_copy(rank, name, found, content, of=ranks[0])


def read_copy(rank: RankIndex, name: str) -> bytes:
    """Read a small tensor of a rank whole.

    Args:
        rank: The rank.
        name: The tensor's; it is a vector.

    Returns:
        Its bytes.

    Raises:
        CheckpointError: If it cannot be read.
    """
    with InputFile(rank.path) as file:
        return read_vector(file, rank.tensors[name])


def _unequal_copy(
    rank: RankIndex, name: str, found: bytes, content: bytes, *, of: RankIndex
) -> LayoutError:
    itemsize = rank.tensors[name].dtype.itemsize
    at = next(i for i, pair in enumerate(zip(content, found, strict=True)) if pair[0] != pair[1])
    element = at // itemsize
    where = slice(element * itemsize, (element + 1) * itemsize)
    # Files are little-endian, and bits are written from the sign down, as verify writes them.
    bits, others = (one[where][::-1].hex() for one in (found, content))
    return LayoutError(
        f"tensor {name!r} differs from that of {of.path.name} at element {element} (bits {bits}, "
        f"there {others}); every rank must have the same copy",
        path=rank.path,
        hint="the files belong to different models, or one is corrupt",
    )
