"""Own the comparison of what the ranks hold with what the table of tensors says they must.

A checkpoint's sizes that params.json may leave out are measured here, on the tensors themselves.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from codellama_convert.errors import LayoutError, and_others, listed, shown
from codellama_convert.formats.pth.reader import RankIndex
from codellama_convert.formats.stored_tensor import StoredTensor
from codellama_convert.meta.rank_names import is_meta_name
from codellama_convert.meta.state_dict import head_size_of, is_meta_tensor
from codellama_convert.model.config import SAME_FOLDER_HINT
from codellama_convert.model.foreign_params import SUPPORTED_HINT
from codellama_convert.model.generations import LLAMA_2, LLAMA_3, Generation
from codellama_convert.model.tensor_table import (
    DROPPED_SUFFIX,
    MERGE_HINT,
    TensorLayout,
    meta_name_of,
    rules_in_order,
)

_LAYER = re.compile(r"^layers\.[0-9]+\.")


@dataclass(frozen=True, slots=True)
class Measured:
    """What the tensors show of a model.

    Attributes:
        intermediate_size: Width of the feed-forward network.
        vocab_size: Rows of the embedding.
        generation: Whose code such ranks are for; None where there is one rank, which shows nothing.
    """

    intermediate_size: int
    vocab_size: int
    generation: Generation | None


def measure(ranks: Sequence[RankIndex], *, hidden_size: int) -> Measured:
    """Measure what params.json may leave out or get wrong, and the number of ranks.

    Args:
        ranks: All of them.
        hidden_size: From params.json.

    Returns:
        The sizes.

    Raises:
        LayoutError: If a tensor that is measured is missing or not a matrix, or ranks are missing.
    """
    query, gate, embedding = (
        _matrix(ranks[0], meta_name_of(role)) for role in ("query", "gate", "embedding")
    )
    if query.shape[1] == hidden_size and hidden_size % query.shape[0] == 0:
        n_expected = hidden_size // query.shape[0]
        if n_expected != len(ranks):
            hint = "move the files of another model away"
            if len(ranks) < n_expected:
                missing = range(len(ranks), n_expected)
                hint = "download " + ", ".join(f"consolidated.{n:02d}.pth" for n in missing[:8])
                if not is_meta_name(ranks[0].path.name):
                    hint = "put the others beside it"
            ranks_expected = f"{n_expected} rank" if n_expected == 1 else f"{n_expected} ranks"
            raise LayoutError(
                f"tensor {query.name!r} has {query.shape[0]} rows, so the checkpoint has "
                f"{ranks_expected}, but {len(ranks)} {'was' if len(ranks) == 1 else 'were'} found",
                path=ranks[0].path,
                hint=hint,
            )
    intermediate_size, n_rows = gate.shape[0] * len(ranks), embedding.shape[0]
    if len(ranks) == 1:
        return Measured(intermediate_size, n_rows, None)
    if embedding.shape[1] != hidden_size:
        return Measured(intermediate_size, n_rows, LLAMA_2)
    head = ranks[0].tensors.get(meta_name_of("head"))
    # A head is split by its rows: beside one of fewer, the embedding has all of them.
    if head is None or head.shape != embedding.shape:
        raise _whole_columns(embedding, ranks)
    return Measured(intermediate_size, n_rows * len(ranks), LLAMA_3)


def _whole_columns(embedding: StoredTensor, ranks: Sequence[RankIndex]) -> LayoutError:
    """Say that the embedding is split neither by its columns nor as the head is."""
    return LayoutError(
        f"tensor {embedding.name!r} has shape {embedding.shape}, all of the {embedding.shape[1]} "
        f"columns: {len(ranks)} ranks of Llama 1, 2 or Code Llama split its columns, and those of "
        "Llama 3 its rows, as they split the head's; here each may have a copy",
        path=ranks[0].path,
        hint=MERGE_HINT,
    )


def _matrix(rank: RankIndex, name: str) -> StoredTensor:
    tensor = rank.tensors.get(name)
    if tensor is None:
        raise _missing(rank, name)
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise LayoutError(
            f"tensor {name!r} has shape {tensor.shape}, not a matrix",
            path=rank.path,
            hint=SAME_FOLDER_HINT,
        )
    return tensor


def _missing(rank: RankIndex, name: str) -> LayoutError:
    """Say that a tensor is missing, and which one may be it under another name."""
    if not rank.tensors:
        return LayoutError(
            f"tensor {name!r} is missing; the file holds no tensors",
            path=rank.path,
            hint=SAME_FOLDER_HINT,
        )
    others = (one for one in rank.tensors if not is_meta_tensor(one))
    alike = next((one for one in others if one.endswith(name)), None)
    if alike is not None:
        return LayoutError(
            f"tensor {name!r} is missing, but there is {alike!r}",
            path=rank.path,
            hint=f"remove {alike.removesuffix(name)!r} from the names of its tensors and save it again",
        )
    if not any(map(is_meta_tensor, rank.tensors)):
        found = listed([shown(one) for one in rank.tensors], 3)
        return LayoutError(
            f"tensor {name!r} is missing; the file has none of Meta's names, but {found}",
            path=rank.path,
            hint=SUPPORTED_HINT,
        )
    return LayoutError(
        f"tensor {name!r} is missing",
        path=rank.path,
        hint=SAME_FOLDER_HINT,
    )


def is_tied(ranks: Sequence[RankIndex]) -> bool:
    """Return whether the head is the embedding: no rank has one, or it is the same view."""
    head, embedding = meta_name_of("head"), meta_name_of("embedding")
    if not any(head in rank.tensors for rank in ranks):
        return True
    return all(
        head in rank.tensors and rank.tensors[head].place == rank.tensors[embedding].place
        for rank in ranks
    )


def with_dtypes(layout: Sequence[TensorLayout], rank: RankIndex) -> tuple[TensorLayout, ...]:
    """Give each tensor the dtype that it has in a rank."""
    return tuple(
        replace(tensor, spec=replace(tensor.spec, dtype=rank.tensors[tensor.meta.name].dtype))
        for tensor in layout
    )


def require_layers(rank: RankIndex, n_layers: int, *, tied: bool = False) -> None:
    """Look that a rank has every tensor, before the table is spelled out for every layer.

    Args:
        rank: The first one.
        n_layers: From params.json, which may claim millions.
        tied: Whether the head may be missing.

    Raises:
        LayoutError: If a tensor is missing.
    """
    for rule, layer in rules_in_order(n_layers, tied=tied):
        name = rule.meta_name.format(layer=layer)
        if name not in rank.tensors:
            raise _missing(rank, name)


def check_ranks(layout: Sequence[TensorLayout], ranks: Sequence[RankIndex]) -> tuple[str, ...]:
    """Hold every tensor of every rank against the layout.

    Args:
        layout: What the model needs.
        ranks: What was found.

    Returns:
        The names that are dropped, as rank 0 has them.

    Raises:
        LayoutError: If a tensor is missing, extra, of another shape or of another dtype.
    """
    names = {tensor.meta.name for tensor in layout}
    known = names | {meta_name_of("head")}  # a tied one is not in the layout
    shapes = [tensor.meta.part_shape for tensor in layout]
    for rank in ranks:
        for tensor, shape in zip(layout, shapes, strict=True):
            _check_part(tensor, shape, rank)
        unknown = [n for n in rank.tensors if n not in known and not n.endswith(DROPPED_SUFFIX)]
        if unknown:
            raise _unknown(rank, unknown, names)
    dropped = tuple(name for name in ranks[0].tensors if name not in names)
    beside = {name: ranks[0].tensors[name].shape for name in dropped}
    _compare_head_size(layout, ranks[0].path, {**ranks[0].dropped, **beside})
    return (*ranks[0].dropped, *dropped)


def _unknown(rank: RankIndex, unknown: Sequence[str], names: Container[str]) -> LayoutError:
    """Say what a tensor is that the table does not have: of a layer too many, or of another model."""
    name, others = unknown[0], and_others(unknown)
    if _LAYER.sub("layers.0.", name) in names:
        return LayoutError(
            f"tensor {name!r}{others} belongs to a layer beyond the n_layers of params.json",
            path=rank.path,
            hint=SAME_FOLDER_HINT,
        )
    return LayoutError(
        f"tensor {name!r} of shape {rank.tensors[name].shape} does not belong to a Llama model"
        + others,
        path=rank.path,
        hint=SUPPORTED_HINT,
    )


def _compare_head_size(
    layout: Sequence[TensorLayout], path: Path, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare the heads with the buffers of the rotary angles and of the caches.

    Without grouped heads no weight's shape shows a wrong `n_heads`, and the rows would be reordered
    wrongly.
    """
    head_dim = next(tensor.head_dim for tensor in layout if tensor.head_dim is not None)
    for name, shape in shapes.items():
        shown = head_size_of(name, shape)
        if shown not in (None, head_dim):
            raise LayoutError(
                f"tensor {name!r} has shape {shape}, which means heads of {shown}, not of {head_dim}",
                path=path,
                hint=SAME_FOLDER_HINT,
            )


def _other_split(tensor: TensorLayout, shape: tuple[int, ...]) -> str:
    """Say how the ranks split a tensor that Meta's split in another way; empty where that is open."""
    whole, n_ranks = tensor.meta.shape, len(tensor.meta.files)
    if n_ranks > 1 and shape == whole:
        return f": each of the {n_ranks} ranks has all of it"
    for dimension, what in enumerate(("rows", "columns")[: len(whole)]):
        other = [*whole]
        other[dimension] //= n_ranks
        if dimension != tensor.meta.split and n_ranks > 1 and shape == tuple(other):
            return f": its {what} are split over the ranks, which Meta does not do"
    return ""


def _check_part(tensor: TensorLayout, shape: tuple[int, ...], rank: RankIndex) -> None:
    found = rank.tensors.get(tensor.meta.name)
    if found is None:
        raise _missing(rank, tensor.meta.name)
    if found.shape != shape:
        cause = _other_split(tensor, found.shape)
        raise LayoutError(
            f"tensor {tensor.meta.name!r} has shape {found.shape}, expected {shape}{cause}",
            path=rank.path,
            hint=MERGE_HINT if cause else SAME_FOLDER_HINT,
        )
    if found.dtype != tensor.spec.dtype:
        raise LayoutError(
            f"tensor {tensor.meta.name!r} is {found.dtype.name}, but {tensor.spec.dtype.name} in "
            "the first rank",
            path=rank.path,
            hint=SAME_FOLDER_HINT,
        )
