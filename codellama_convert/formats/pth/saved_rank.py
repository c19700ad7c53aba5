"""Own what is passed to torch.save for one rank: a flat dict of contiguous views of storages."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from codellama_convert.errors import CheckpointError, shown
from codellama_convert.tensors import Dtype, TensorSpec

Container = Literal["dict", "OrderedDict"]

# A folder in a zip archive. torch names it after the file, or "archive" if that is not ASCII.
_ROOT = re.compile(r"[ -.0-\[\]-~]{1,255}")
_LOCATION = re.compile(r"[a-z]{1,16}(:[0-9]{1,3})?")
_MAX_STORAGES = 19_990  # as many as our reader takes, with the small records
_RECORD_HINT = "it comes from the record of an earlier conversion, or from the caller"


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """What a pickle says of one tensor, whose elements lie in order without gaps.

    Attributes:
        spec: Its name, dtype and shape.
        storage: The number of its storage, from 0, in order of first use.
        storage_offset: Elements of the storage before its first one.
    """

    spec: TensorSpec
    storage: int
    storage_offset: int = 0

    @property
    def strides(self) -> tuple[int, ...]:
        """Elements to step along each dimension, as torch counts them."""
        strides: list[int] = []
        step = 1
        for size in reversed(self.spec.shape):
            strides.insert(0, step)
            step *= max(size, 1)
        return tuple(strides)


@dataclass(frozen=True, slots=True)
class SavedRank:
    """What is passed to torch.save.

    Attributes:
        tensors: In the dict's order.
        storage_elements: Elements of each storage.
        root: The folder inside the zip, such as "consolidated.00".
        container: What holds the tensors.
        location: The device that they were saved from, such as "cpu" or "cuda:0".
    """

    tensors: tuple[SavedTensor, ...]
    storage_elements: tuple[int, ...]
    root: str
    container: Container = "dict"
    location: str = "cpu"

    def is_one(self, name: str, other: str) -> bool:
        """Report whether two of its tensors are the same one: of one shape, in one place."""
        pair = [one for one in self.tensors if one.spec.name in (name, other)]
        places = {(one.spec.shape, one.storage, one.storage_offset) for one in pair}
        return len(pair) == 2 and len(places) == 1


def own_storages(
    specs: Iterable[TensorSpec], *, root: str, second_names: Mapping[str, str] | None = None
) -> SavedRank:
    """Give every tensor a storage of its own, the usual case.

    Args:
        specs: The tensors, in the dict's order.
        root: The folder inside the zip.
        second_names: Names that stand for an earlier tensor once more, each with that tensor's name.

    Returns:
        The rank, a plain dict saved from the CPU.
    """
    numbers: dict[str, int] = {}
    tensors, sizes = [], []
    for spec in specs:
        name = (second_names or {}).get(spec.name, spec.name)
        if name not in numbers:
            numbers[name] = len(numbers)
            sizes.append(spec.n_elements)
        tensors.append(SavedTensor(spec, numbers[name]))
    return SavedRank(tuple(tensors), tuple(sizes), root)


def spare_spans(rank: SavedRank, names: Collection[str]) -> tuple[tuple[int, int, int], ...]:
    """Find what the storages of a rank hold besides some of its tensors.

    Args:
        rank: What is saved, checked by `storage_dtypes`.
        names: Those tensors.

    Returns:
        The number of a storage, a first byte and the end behind the last one, in order.

    Raises:
        ValueError: If two of the tensors overlap.
    """
    itemsizes = [dtype.itemsize for dtype in storage_dtypes(rank)]
    covered = sorted(
        (tensor.storage, tensor.storage_offset, tensor.storage_offset + tensor.spec.n_elements)
        for tensor in rank.tensors
        if tensor.spec.name in names
    )
    ends = [(number, n, n) for number, n in enumerate(rank.storage_elements)]
    spare, at = [], (0, 0)
    for storage, first, end in sorted([*covered, *ends]):
        reached = at[1] if storage == at[0] else 0
        if first < reached:
            raise ValueError("tensors overlap")
        if first > reached:
            itemsize = itemsizes[storage]
            spare.append((storage, reached * itemsize, first * itemsize))
        at = storage, end
    return tuple(spare)


def storage_dtypes(rank: SavedRank) -> tuple[Dtype, ...]:
    """Check that torch.save could have written a rank, and find what its storages hold.

    Args:
        rank: What is saved.

    Returns:
        The dtype of each storage.

    Raises:
        CheckpointError: If the root, the container or the location is not one that torch writes,
            if a name occurs twice, or if tensors and storages contradict each other.
    """
    _require_known_words(rank)
    if len(rank.storage_elements) > _MAX_STORAGES:
        raise CheckpointError(
            f"the rank has {len(rank.storage_elements)} storages; expected at most {_MAX_STORAGES}",
            hint=_RECORD_HINT,
        )
    dtypes: list[Dtype] = []
    names: set[str] = set()
    for tensor in rank.tensors:
        name = tensor.spec.name
        if name in names:
            raise CheckpointError(f"tensor {shown(name)} occurs twice in one rank")
        names.add(name)
        if tensor.storage == len(dtypes) < len(rank.storage_elements):
            dtypes.append(tensor.spec.dtype)
        _require_inside_storage(rank, tensor, dtypes)
    if not dtypes or len(dtypes) != len(rank.storage_elements):
        raise CheckpointError(
            f"the rank has {len(rank.storage_elements)} storages, of which its tensors use "
            f"{len(dtypes)}; expected one or more, each of them used",
            hint=_RECORD_HINT,
        )
    return tuple(dtypes)


def _require_known_words(rank: SavedRank) -> None:
    if not _ROOT.fullmatch(rank.root) or rank.root in {".", ".."}:
        raise CheckpointError(
            f"{shown(rank.root)} cannot be the folder inside a .pth file; expected 1 to 255 "
            "printable ASCII characters without slashes",
            hint=_RECORD_HINT,
        )
    if not _LOCATION.fullmatch(rank.location):
        raise CheckpointError(
            f"{shown(rank.location)} is not a device that tensors are saved from; expected a name "
            "such as 'cpu' or 'cuda:0'",
            hint=_RECORD_HINT,
        )
    if rank.container not in get_args(Container):
        raise CheckpointError(
            f"tensors cannot be saved in a {shown(rank.container)}; expected one of "
            f"{', '.join(get_args(Container))}",
            hint=_RECORD_HINT,
        )


def _require_inside_storage(rank: SavedRank, tensor: SavedTensor, dtypes: list[Dtype]) -> None:
    spec = tensor.spec
    if not 0 <= tensor.storage < len(dtypes):
        raise CheckpointError(
            f"tensor {shown(spec.name)} is in storage {tensor.storage}; expected at most "
            f"{min(len(dtypes), len(rank.storage_elements) - 1)}, as storages are numbered in "
            "order of first use",
            hint=_RECORD_HINT,
        )
    dtype, n_elements = dtypes[tensor.storage], rank.storage_elements[tensor.storage]
    if spec.dtype != dtype:
        raise CheckpointError(
            f"tensor {shown(spec.name)} has dtype {spec.dtype.name}, but storage {tensor.storage} "
            f"holds {dtype.name}",
            hint=_RECORD_HINT,
        )
    # torch writes an empty record in another form, which no model needs.
    if n_elements < 1 or min(spec.shape, default=1) < 1:
        raise CheckpointError(
            f"tensor {shown(spec.name)} of shape {spec.shape}, in a storage of {n_elements} "
            "elements, is empty; expected at least one element",
            hint="leave it out",
        )
    end = tensor.storage_offset + spec.n_elements
    if tensor.storage_offset < 0 or end > n_elements:
        raise CheckpointError(
            f"tensor {shown(spec.name)} has the elements {tensor.storage_offset} to {end} of "
            f"storage {tensor.storage}, which has {n_elements}",
            hint=_RECORD_HINT,
        )
