"""Own the check of a tensor that a pickle declares.

Every number is checked, in Python's unbounded integers, against the size of the record that it
speaks of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from codellama_convert.errors import CheckpointError, shown
from codellama_convert.formats.pth.declared import Declared, kind_of
from codellama_convert.formats.pth.pickle_beside import Inert
from codellama_convert.formats.pth.pickle_names import (
    METAS_FILES_HINT,
    DeclaredStorage,
    OtherTensor,
    View,
)
from codellama_convert.formats.pth.same_pickle import SameStorages, SameTensors
from codellama_convert.formats.pth.views import refuse_costly_views, refuse_wrong_view
from codellama_convert.formats.stored_tensor import Storage, StoredTensor
from codellama_convert.formats.zip_directory import DAMAGED_HINT
from codellama_convert.formats.zip_reader import Archive

_MAX_DIMENSIONS = 8  # a model has 2; torch.save allows more
_MAX_NAME_LENGTH = 256


@dataclass(frozen=True, slots=True)
class CheckedTensors:
    """The tensors of a file, of which every number was checked.

    Attributes:
        declared: What they were declared as.
        tensors: By name.
        storages: By record, those that they use.
        numbers: The place of each of these in their order.
    """

    declared: Declared
    tensors: Mapping[str, StoredTensor]
    storages: Mapping[str, Storage]
    numbers: Mapping[str, int]

    def as_in(self, archive: Archive) -> CheckedTensors | None:
        """Find the same tensors in another file, whose pickle is the same to the byte.

        Args:
            archive: That file's zip entries.

        Returns:
            The tensors; None where a record has another size, on which the checks depend.
        """
        for name, known in self.storages.items():
            entry = archive.entries.get(name)
            if entry is None or entry.n_bytes != known.n_bytes:
                return None
        storages = SameStorages(self.storages, self.numbers, archive)
        return replace(self, tensors=SameTensors(self.tensors, storages), storages=storages)


def check_tensors(path: Path, archive: Archive, declared: Declared) -> CheckedTensors:
    """Turn what a pickle declares into tensors of which every number was checked.

    Args:
        path: The file, for messages.
        archive: Its zip entries.
        declared: What was chosen of its pickle.

    Returns:
        The tensors.

    Raises:
        CheckpointError: If one is no plain tensor or contradicts its record, or all of them would
            take too many readings.
    """
    storages: dict[str, Storage] = {}
    tensors = {
        name: check_tensor(path, archive, storages, name, value)
        for name, value in declared.entries.items()
    }
    refuse_costly_views(path, tensors.values())
    numbers = {name: number for number, name in enumerate(storages)}
    return CheckedTensors(declared, tensors, storages, numbers)


def check_tensor(
    path: Path, archive: Archive, storages: dict[str, Storage], name: Any, value: Any
) -> StoredTensor:
    """Turn a declared tensor into one whose every number was checked.

    Args:
        path: The file, for messages.
        archive: Its zip entries.
        storages: By record, those that tensors before this one use; gets this one's.
        name: The key before it; it need not be a text.
        value: What the pickle declares.

    Returns:
        The tensor, and where it lies.

    Raises:
        CheckpointError: If it is no plain tensor, or contradicts its record.
    """
    if type(name) is not str:
        raise CheckpointError(
            f"the dict key {shown(name)} is not a tensor's name", path=path, hint=METAS_FILES_HINT
        )
    if len(name) > _MAX_NAME_LENGTH:
        raise CheckpointError(
            f"a tensor's name has {len(name)} characters", path=path, hint=METAS_FILES_HINT
        )
    if type(value) is OtherTensor:
        raise CheckpointError(
            f"entry {name!r} is {value.what}; expected plain bfloat16, float16 or float32",
            path=path,
            hint=value.hint,
        )
    if type(value) is not View:
        raise CheckpointError(
            f"entry {name!r} is {kind_of(value)}; expected Meta's flat layout of tensors",
            path=path,
            hint=METAS_FILES_HINT,
        )
    _refuse_extras(path, name, value)
    storage = _checked_storage(path, archive, storages, name, value.storage)
    shape, strides, offset = value.shape, value.strides, value.storage_offset
    numbers_are_plain = (
        type(shape) is tuple
        and type(strides) is tuple
        and len(shape) == len(strides) <= _MAX_DIMENSIONS
        and all(type(n) is int and n >= 0 for n in (*shape, *strides, offset))
    )
    if not numbers_are_plain:
        raise CheckpointError(
            f"tensor {name!r}: negative or invalid shape, stride or storage offset{_large_in(value)}",
            path=path,
            hint=DAMAGED_HINT,
        )
    tensor = StoredTensor(name, shape, strides, offset, storage)
    refuse_wrong_view(path, tensor)
    return tensor


def _large_in(view: View) -> str:
    """Name an integer that was too large to be read among a view's numbers."""
    shape, strides = (n if type(n) is tuple else () for n in (view.shape, view.strides))
    large = (n for n in (*shape, *strides, view.storage_offset) if type(n) is Inert)
    return next((f" ({n.what})" for n in large), "")


def _refuse_extras(path: Path, name: str, view: View) -> None:
    """Refuse a tensor to which torch would apply more than its place in the storage."""
    for extra in view.extras:
        content = extra.content
        if content is not None:
            raise CheckpointError(
                f"tensor {name!r}: the argument {extra.argument} of {extra.function} holds "
                f"{content}, which torch applies to the tensor; expected nothing there",
                path=path,
                hint="load it with torch and save tensor.detach().resolve_neg() of each tensor",
            )


def _checked_storage(
    path: Path,
    archive: Archive,
    storages: dict[str, Storage],
    name: str,
    declared: DeclaredStorage,
) -> Storage:
    if isinstance(declared.dtype, str):
        raise CheckpointError(
            f"tensor {name!r} has an unsupported dtype ({declared.dtype}); "
            "expected bfloat16, float16 or float32",
            path=path,
            hint=METAS_FILES_HINT,
        )
    record = f"data/{declared.key}"
    entry = archive.entries.get(record)
    if entry is None:
        raise CheckpointError(
            f"tensor {name!r}: storage record {record} is missing", path=path, hint=DAMAGED_HINT
        )
    dtype = declared.dtype
    if declared.n_elements * dtype.itemsize != entry.n_bytes:
        raise CheckpointError(
            f"tensor {name!r}: storage size mismatch: data.pkl says {declared.n_elements} x "
            f"{dtype.itemsize} bytes, the record {record} holds {entry.n_bytes}",
            path=path,
            hint=DAMAGED_HINT,
        )
    known = storages.get(record)
    if known is None:
        known = storages[record] = Storage(record, dtype, entry.offset, entry.n_bytes, entry.crc)
    elif known.dtype != dtype:
        raise CheckpointError(
            f"tensor {name!r}: storage {record} is declared both {known.dtype.name} and "
            f"{dtype.name}",
            path=path,
            hint=DAMAGED_HINT,
        )
    return known
