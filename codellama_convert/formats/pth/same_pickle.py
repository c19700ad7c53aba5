"""Own the tensors of a rank whose pickle is that of another: only what differs is held.

The ranks of a model have the same tensors, in storages of the same sizes, at other places and with
other sums. Of 405B in 16 ranks, objects for all of them would take 5 MB.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping

from codellama_convert.formats.stored_tensor import Storage, StoredTensor
from codellama_convert.formats.zip_reader import Archive

_NO_CRC = -1


class SameStorages(Mapping[str, Storage]):
    """The storages of another file, each made when it is asked for."""

    __slots__ = ("_crcs", "_like", "_numbers", "_offsets")

    def __init__(
        self, like: Mapping[str, Storage], numbers: Mapping[str, int], archive: Archive
    ) -> None:
        """Take what all files share, and the entries of another one.

        Args:
            like: The storages of the first file.
            numbers: The place of each of them in that order.
            archive: The other file, whose entries have the same sizes.
        """
        entries = [archive.entries[name] for name in like]
        self._like, self._numbers = like, numbers
        self._offsets = array("q", (entry.offset for entry in entries))
        self._crcs = array("q", (_NO_CRC if one.crc is None else one.crc for one in entries))

    def __getitem__(self, name: str) -> Storage:
        like, number = self._like[name], self._numbers[name]
        crc = self._crcs[number]
        known = None if crc == _NO_CRC else crc
        return Storage(like.name, like.dtype, self._offsets[number], like.n_bytes, known)

    def __iter__(self) -> Iterator[str]:
        return iter(self._like)

    def __len__(self) -> int:
        return len(self._like)


class SameTensors(Mapping[str, StoredTensor]):
    """The tensors of another file, each made when it is asked for."""

    __slots__ = ("_like", "_storages")

    def __init__(self, like: Mapping[str, StoredTensor], storages: Mapping[str, Storage]) -> None:
        """Take the tensors of the first file, and the other one's storages."""
        self._like, self._storages = like, storages

    def __getitem__(self, name: str) -> StoredTensor:
        like = self._like[name]
        storage = self._storages[like.storage.name]
        return StoredTensor(like.name, like.shape, like.strides, like.storage_offset, storage)

    def __contains__(self, name: object) -> bool:
        return name in self._like

    def __iter__(self) -> Iterator[str]:
        return iter(self._like)

    def __len__(self) -> int:
        return len(self._like)
