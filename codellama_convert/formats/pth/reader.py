"""Own what a .pth file says about its tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from codellama_convert.errors import CheckpointError
from codellama_convert.formats.pth.checked import CheckedTensors, check_tensors
from codellama_convert.formats.pth.declared import Choose, Declared, read_declared, take_all
from codellama_convert.formats.pth.pickle_names import METAS_FILES_HINT
from codellama_convert.formats.pth.saved_rank import Container
from codellama_convert.formats.stored_tensor import Storage, StoredTensor
from codellama_convert.formats.zip_directory import DAMAGED_HINT, TORCHSCRIPT, TORCHSCRIPT_HINT
from codellama_convert.formats.zip_reader import Archive, read_archive, read_entry
from codellama_convert.storage.input_file import InputFile

# 70B in 8 ranks has 120 kB a rank; the cap bounds what a forged one costs to hold.
_MAX_PICKLE_BYTES = 2 << 20
_MAX_SMALL_RECORD_BYTES = 1 << 16
_MAX_VECTOR_REACH_BYTES = 1 << 20

# torch.save has written 3 since 1.6; source: torch's caffe2/serialize/versions.h.
_FORMAT_VERSIONS = frozenset(str(version).encode() for version in range(1, 11))


@dataclass(frozen=True, slots=True)
class RankIndex:
    """What one `consolidated.NN.pth` holds; picklable, and free of open files.

    Attributes:
        path: The file.
        n_bytes: Its size.
        inode: Device and inode.
        mtime_ns: Time of its last change.
        tensors: By Meta's name, in the file's order.
        storages: By name; also those that no tensor of `tensors` uses are checked when read.
        directory_sha256: Of the zip directory, which holds every size and CRC-32.
        pickle_sha256: Of what says which tensor lies where.
        has_sums: Whether every storage has a CRC-32.
        root: The zip's root folder; torch calls it after the file that it writes.
        dropped: Shapes of tensors that were left out unseen, by name.
        notes: What was taken off the names, or passed over.
        container: What the pickle holds its tensors in.
        location: The device that the first of them was saved from.
    """

    path: Path
    n_bytes: int
    inode: tuple[int, int]
    mtime_ns: int
    tensors: Mapping[str, StoredTensor]
    storages: Mapping[str, Storage]
    directory_sha256: str
    pickle_sha256: str
    has_sums: bool
    root: str = ""
    dropped: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    container: Container = "dict"
    location: str = "cpu"

    @property
    def fingerprint(self) -> list[Any]:
        """What distinguishes the file from others, as plain values.

        Its zip directory holds the CRC-32 of all it has, so no weight is read for this.
        """
        told: list[Any] = [self.n_bytes, self.directory_sha256, self.pickle_sha256]
        if not self.has_sums:
            told.append(self.mtime_ns)  # a directory without sums does not change with the weights
        return told


PickleCache = dict[bytes, CheckedTensors]


def read_rank(
    path: Path, *, choose: Choose = take_all, cache: PickleCache | None = None
) -> RankIndex:
    """Read which tensors a .pth file holds, and where their bytes lie.

    Args:
        path: The file.
        choose: Chooses the tensors, and their names, among all that the pickle holds.
        cache: By the pickle's bytes, what it says: the ranks of one model often have the same.

    Returns:
        The index; of the data, only the small records are read.

    Raises:
        CheckpointError: If the file is damaged, hostile or of another kind.
    """
    with InputFile(path) as file:
        archive = read_archive(file)
        _require_known_format(file, archive)
        _require_little_endian(file, archive)
        if "constants.pkl" in archive.entries:
            raise CheckpointError(TORCHSCRIPT, path=path, hint=TORCHSCRIPT_HINT)
        if "data.pkl" not in archive.entries:
            raise CheckpointError(
                "is a zip archive, but not one that torch.save wrote",
                path=path,
                hint=METAS_FILES_HINT,
            )
        pickled = read_entry(file, archive.entries["data.pkl"], _MAX_PICKLE_BYTES)
        known = None if cache is None else cache.get(pickled)
        checked = None if known is None else known.as_in(archive)
        if checked is None:
            declared = _declared_in(path, pickled, choose) if known is None else known.declared
            checked = check_tensors(path, archive, declared)
            if cache is not None:
                cache[pickled] = checked
        return RankIndex(
            path=path,
            n_bytes=file.n_bytes,
            inode=file.inode,
            mtime_ns=file.mtime_ns,
            tensors=checked.tensors,
            storages=checked.storages,
            directory_sha256=archive.directory_sha256,
            pickle_sha256=hashlib.sha256(pickled).hexdigest(),
            has_sums=all(archive.entries[name].crc is not None for name in checked.storages),
            root=archive.root,
            dropped=checked.declared.dropped,
            notes=checked.declared.notes,
            container=checked.declared.container,
            location=checked.declared.location,
        )


def _declared_in(path: Path, pickled: bytes, choose: Choose) -> Declared:
    container, entries = read_declared(path, pickled)
    return replace(choose(path, entries), container=container)


def read_vector(file: InputFile, tensor: StoredTensor) -> bytes:
    """Read a vector whole, such as the weight of a norm; its CRC-32 is not checked.

    Args:
        file: The open rank.
        tensor: One of its tensors, of one dimension.

    Returns:
        Its bytes.

    Raises:
        CheckpointError: If the file ends before, or cannot be read.
    """
    first, end = tensor.extent
    itemsize = tensor.dtype.itemsize
    if end - first > max(_MAX_VECTOR_REACH_BYTES, tensor.shape[0] * itemsize):
        step = tensor.strides[0] * itemsize
        starts = range(tensor.storage.offset + first, tensor.storage.offset + end, step)
        return b"".join(file.read_exact(start, itemsize) for start in starts)
    reach = file.read_exact(tensor.storage.offset + first, end - first)
    elements = memoryview(reach).cast("H" if itemsize == 2 else "I")
    return elements[:: tensor.strides[0] or 1].tobytes()


def _require_known_format(file: InputFile, archive: Archive) -> None:
    # The other records of a later writer (.format_version, .storage_alignment, serialization_id)
    # only tell torch where a storage lies, which every local header says too, or name the file.
    for name in (".data/version", "version"):
        entry = archive.entries.get(name)
        if entry is None:
            continue
        version = read_entry(file, entry, _MAX_SMALL_RECORD_BYTES).strip()
        if version not in _FORMAT_VERSIONS:
            raise CheckpointError(
                f"format version {version[:16]!r} is not known (1 to {len(_FORMAT_VERSIONS)})",
                path=file.path,
                hint=DAMAGED_HINT,
            )


def _require_little_endian(file: InputFile, archive: Archive) -> None:
    entry = archive.entries.get("byteorder")
    if entry is None:  # before PyTorch 2.1
        return
    byteorder = read_entry(file, entry, _MAX_SMALL_RECORD_BYTES)
    if byteorder != b"little":
        raise CheckpointError(
            f"byteorder {byteorder[:16]!r} is not supported (little-endian only)",
            path=file.path,
            hint="load and re-save it with torch.save on a little-endian machine",
        )
