"""Own what was read of a file's storages: which tensor in which pass, and the CRC-32s of the bytes.

A pass reads each byte of a storage at most once. Tensors that overlap are read in different passes;
which ones follows from the tensors alone, so two runs of one plan agree.

Where each output file is made on its own, some tensors are read whole for several of them. Each of
these readings belongs to another pass, together with what is read once for all files: so no two of
them are mixed up, and each pass is complete.
"""

from __future__ import annotations

import heapq
import threading
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Protocol

from codellama_convert.formats.stored_tensor import Storage, StoredTensor
from codellama_convert.storage.checksums import CrcLedger, Interval, SourceSums


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


# How a tensor is read where each output file is made on its own: each row for one file, or all of it
# for each file that gets some of its columns, or a copy. A reading's number is three times that of its
# pass, plus the kind.
BY_ROWS, FOR_COLUMNS, FOR_COPIES = KINDS = range(3)


def assign_passes(
    tensors: Iterable[StoredTensor], kinds: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Choose in which pass over its storage each tensor is read; none overlaps another of its pass.

    Args:
        tensors: All that will be read of a file.
        kinds: How they are read for several output files, by name; `BY_ROWS` for names not in it.

    Returns:
        The number of the reading, by the tensor's name.
    """
    kind_of = kinds or {}
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
        pass_of[tensor.name] = len(KINDS) * number + kind_of.get(tensor.name, BY_ROWS)
    return pass_of


class Ledgers:
    """What was read of a file's storages: for each pass over one a ledger, made when it is first used.

    An output file needs a few of a rank's thousand storages, and of those that were read wholly
    only the CRC-32 is kept: 405B in 16 ranks has 18,000.
    """

    def __init__(self, index: TensorFile) -> None:
        """Start with nothing read of a file."""
        self._index = index
        self._lock = threading.Lock()  # several threads may ask for one ledger
        self._ledgers: dict[tuple[str, int], CrcLedger] = {}
        # By pass and storage the CRC-32; None where it is the one that the index has.
        self._whole: dict[int, dict[str, int | None]] = {}

    def __getitem__(self, reading: tuple[str, int]) -> CrcLedger:
        """Return the ledger of a storage's name and the number of a pass over it."""
        name, number = reading
        with self._lock:
            found = self._ledgers.get(reading)
            if found is None:
                storage = self._index.storages[name]
                found, whole = CrcLedger(storage.n_bytes), self._whole.get(number, {})
                if name in whole:
                    crc = storage.crc if whole[name] is None else whole[name]
                    assert crc is not None, "it is left out where both are equal"
                    found.add_crc(0, storage.n_bytes, crc)
                else:
                    self._ledgers[reading] = found
        return found

    def settle(self, reading: tuple[str, int]) -> None:
        """Keep only the CRC-32 of a storage, if the pass over it has read all of it."""
        name, number = reading
        with self._lock:
            ledger = self._ledgers.get(reading)
            if ledger is not None and ledger.crc is not None:
                storage = self._index.storages[name]
                whole = self._whole.setdefault(number, {})
                # The index's own name, not the one that a worker or a journal says.
                whole[storage.name] = None if ledger.crc == storage.crc else ledger.crc
                del self._ledgers[reading]

    def sums(self) -> SourceSums:
        """Report the sums of what was read."""
        whole = ((name, number) for number, crcs in self._whole.items() for name in crcs)
        sums: SourceSums = {}
        for name, number in sorted({*self._ledgers, *whole}):
            if pieces := [(number, *one) for one in self[name, number].intervals()]:
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
                self.settle((name, number))


class Passes:
    """What was read of a file's storages for all output files, by the passes over each.

    Attributes:
        shared: What is read once for all output files.
    """

    def __init__(self, index: TensorFile, pass_of: Mapping[str, int]) -> None:
        """Start with nothing read of a file; `pass_of` is from `assign_passes`."""
        self.shared = Ledgers(index)
        self._index = index
        self._alone: dict[tuple[str, int], list[tuple[Interval, ...]]] = {}
        self._later: dict[str, set[int]] = {}  # by storage; of thousands, few have a second pass
        for tensor, number in pass_of.items():
            if number >= len(KINDS):
                passes = self._later.setdefault(index.tensors[tensor].storage.name, set())
                passes.add(number - _kind_in(number))

    def add(self, sums: SourceSums) -> None:
        """Take note of what was read for an output file; the arguments and errors of `Ledgers.add`."""
        read = Ledgers(self._index)
        read.add(sums)
        for name, pieces in sums.items():
            self.shared.add({name: [one for one in pieces if _kind_in(one[0]) == BY_ROWS]})
            for number in {number for number, *_ in pieces if _kind_in(number) != BY_ROWS}:
                alone = self._alone.setdefault((name, number), [])
                alone.append(read[name, number].intervals())

    def over(self, name: str) -> list[CrcLedger]:
        """Return a ledger of each pass over a storage, with what was read so far."""
        found: list[CrcLedger] = []
        for first in (0, *sorted(self._later.get(name, ()))):
            shared = self.shared[name, first]
            alone = [own for kind in KINDS[1:] if (own := self._alone.get((name, first + kind)))]
            # Copies may be read more often than columns: the last columns then count in several passes.
            found += [
                _joined(shared, *(own[min(n, len(own) - 1)] for own in alone))
                for n in range(max(map(len, alone), default=0))
            ] or [shared]
        return found

    def settle(self, name: str) -> None:
        """Keep only the CRC-32 of a storage for each pass that has read all of it."""
        for number in (0, *self._later.get(name, ())):
            self.shared.settle((name, number))


def _kind_in(reading: int) -> int:
    return reading % len(KINDS)


def _joined(ledger: CrcLedger, *others: Sequence[Interval]) -> CrcLedger:
    whole = CrcLedger(ledger.n_bytes)
    for interval in chain(ledger.intervals(), *others):
        whole.add_crc(*interval)
    return whole


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
