"""Own what was read of a file's storages: which tensor in which pass, and the CRC-32s of the bytes.

A pass reads each byte of a storage at most once. Tensors that overlap are read in different passes;
which ones follows from the tensors alone, so two runs of one plan agree.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Protocol

from codellama_convert.formats.stored_tensor import Storage, StoredTensor
from codellama_convert.storage.checksums import CrcLedger, SourceSums


class TensorFile(Protocol):
    """What was read of a file before its tensors are: a rank's, or a safetensors file's."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def n_bytes(self) -> int:
        """Its size."""

    @property
    def inode(self) -> tuple[int, int]:
        """Device and inode."""

    @property
    def mtime_ns(self) -> int:
        """Time of its last change."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Its tensors by name."""

    @property
    def storages(self) -> Mapping[str, Storage]:
        """Their bytes by the storage's name."""


def assign_passes(tensors: Iterable[StoredTensor]) -> dict[str, int]:
    """Choose in which pass over its storage each tensor is read; none overlaps another of its pass.

    Args:
        tensors: All that will be read of a file.

    Returns:
        The number of the pass, by the tensor's name.
    """
    pass_of: dict[str, int] = {}
    ends: dict[str, list[tuple[int, int]]] = {}  # by storage, a heap of each pass's end and number
    for tensor in sorted(tensors, key=lambda tensor: (tensor.extent, tensor.name)):
        first, end = tensor.extent
        passes = ends.setdefault(tensor.storage.name, [])
        if passes and passes[0][0] <= first:
            _, number = heapq.heapreplace(passes, (end, passes[0][1]))
        else:
            number = len(passes)
            heapq.heappush(passes, (end, number))
        pass_of[tensor.name] = number
    return pass_of


class Ledgers:
    """What is known of a file's storages: for each pass over one a ledger, made when it is asked for.

    An output file needs a few of a rank's thousand storages.
    """

    def __init__(self, index: TensorFile) -> None:
        """Start with nothing read of a file."""
        self._index = index
        self._ledgers: dict[tuple[str, int], CrcLedger] = {}

    def __getitem__(self, reading: tuple[str, int]) -> CrcLedger:
        """Return the ledger of a storage's name and the number of a pass over it."""
        found = self._ledgers.get(reading)
        if found is None:
            # Several threads may ask for it at once; all get the one that came first.
            new = CrcLedger(self._index.storages[reading[0]].n_bytes)
            found = self._ledgers.setdefault(reading, new)
        return found

    def sums(self) -> SourceSums:
        """Report the sums of what was read."""
        sums: SourceSums = {}
        for (name, number), ledger in sorted(self._ledgers.items()):
            if pieces := [(number, *interval) for interval in ledger.intervals()]:
                sums.setdefault(name, []).extend(pieces)
        return sums

    def add(self, sums: SourceSums) -> None:
        """Take note of what was read for an output file.

        Args:
            sums: Of that file alone; they fit what it is made of.

        Raises:
            ValueError: If a byte was read before.
        """
        for name, pieces in sums.items():
            for number, start, end, crc in pieces:
                self[name, number].add_crc(start, end, crc)


def fits(
    sums: SourceSums, read: Iterable[tuple[StoredTensor, int]], pass_of: Mapping[str, int]
) -> bool:
    """Return whether sums can be of the reading of some tensors, and of nothing else.

    Args:
        sums: What a record says.
        read: What a file is made of, each with the number of its bytes that are read.
        pass_of: From `assign_passes`.

    Returns:
        Whether they can. Between the rows of a strided view, more may have been read or less.
    """
    if not all(sums.values()):  # a storage that was not read is not named
        return False
    covers = {place: _Cover(pieces) for place, pieces in _by_pass(sums).items()}
    if any(cover.has_overlap for cover in covers.values()):
        return False
    left = sum(cover.n_bytes for cover in covers.values())
    for tensor, n_bytes in read:
        cover = covers.get((tensor.storage.name, pass_of[tensor.name]))
        n_read = cover.within(*tensor.extent) if cover is not None else 0
        if n_read < n_bytes:
            return False
        left -= n_read
    return left == 0


def _by_pass(sums: SourceSums) -> dict[tuple[str, int], list[tuple[int, int]]]:
    found: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for storage, pieces in sums.items():
        for number, start, end, _ in pieces:
            found.setdefault((storage, number), []).append((start, end))
    return found


class _Cover:
    """The pieces of one pass over a storage, to be asked how much of a range they cover."""

    def __init__(self, pieces: list[tuple[int, int]]) -> None:
        """Take the (start, end) of each."""
        self._pieces = sorted(pieces)
        marks = [mark for piece in self._pieces for mark in piece]
        self.has_overlap = any(mark > after for mark, after in pairwise(marks))
        self._bytes_until = [*accumulate((end - start for start, end in self._pieces), initial=0)]
        self.n_bytes = self._bytes_until[-1]

    def within(self, first: int, end: int) -> int:
        """Report how many bytes of a range they cover."""
        return self._before(end) - self._before(first)

    def _before(self, position: int) -> int:
        place = bisect_right(self._pieces, (position,))  # of the pieces that start before it
        if not place:
            return 0
        start, end = self._pieces[place - 1]
        return self._bytes_until[place - 1] + min(position, end) - start
