"""Own the reading of rows out of a rank, their CRC-32 on the way; know nothing of models.

Every storage that the file has is read once, and its CRC-32 is taken over the very bytes that are
converted: there is no moment between the check and the use. What no tensor covers is read at the
end, to finish the sum.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from codellama_convert.crc32 import CrcLedger
from codellama_convert.errors import CheckpointError
from codellama_convert.files import SLACK_BYTES, InputFile, IoMode
from codellama_convert.journal import SourceSums
from codellama_convert.pth import RankIndex, Storage, StoredTensor

Rows = npt.NDArray[Any]

# Elements are moved, not calculated with: unsigned integers keep NaN payloads and the sign of zero.
_UNSIGNED: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
_MAX_SEGMENT_BYTES = 1 << 20


@dataclass(slots=True)
class _Pass:
    """One reading of a storage: tensors that do not overlap, and the sum over all they read."""

    ledger: CrcLedger
    extents: list[tuple[int, int]] = field(default_factory=list)

    def takes(self, first: int, end: int) -> bool:
        return all(
            end <= other_first or other_end <= first for other_first, other_end in self.extents
        )


class RankReader:
    """An open rank.

    Attributes:
        index: What the rank holds.
    """

    def __init__(
        self, index: RankIndex, names: Collection[str], *, io_mode: IoMode = "buffered"
    ) -> None:
        """Open a rank to read some of its tensors, each row once.

        Args:
            index: From `read_rank`.
            names: The tensors that will be read.
            io_mode: How they are read.

        Raises:
            CheckpointError: If the file cannot be opened, or changed since `read_rank`.
        """
        self.index = index
        self._file = InputFile(index.path, io_mode=io_mode)
        found = (self._file.identity, self._file.n_bytes, self._file.mtime_ns)
        if found != (index.identity, index.n_bytes, index.mtime_ns):
            self._file.close()
            raise CheckpointError("the file changed while it was read", path=index.path)
        self._passes: dict[str, list[_Pass]] = {name: [] for name in index.storages}
        self._pass_of: dict[str, _Pass] = {}
        for name in names:
            self._pass_of[name] = self._assign(index.tensors[name])

    @property
    def direct(self) -> bool:
        """Whether rows are read past the page cache."""
        return self._file.direct

    def _assign(self, tensor: StoredTensor) -> _Pass:
        first, end = tensor.extent
        passes = self._passes[tensor.storage.name]
        for reading in passes:
            if reading.takes(first, end):
                break
        else:
            reading = _Pass(CrcLedger(tensor.storage.n_bytes))
            passes.append(reading)
        reading.extents.append((first, end))
        return reading

    def read_rows(
        self, name: str, start_row: int, n_rows: int, buffer: memoryview
    ) -> tuple[Rows, int | None]:
        """Read contiguous rows of a tensor.

        Args:
            name: One of the names given at opening.
            start_row: The first row.
            n_rows: How many.
            buffer: From `aligned_buffer`, for the rows' bytes.

        Returns:
            Unsigned integers of the element's size, shape (n_rows, n_columns), in `buffer`; a
            vector has one column. And their bytes' CRC-32, where it was taken as they were read.

        Raises:
            CheckpointError: If the file ends before, cannot be read, or a CRC-32 differs.
        """
        tensor = self.index.tensors[name]
        n_columns = tensor.shape[1] if len(tensor.shape) == 2 else 1
        if _is_row_major(tensor):
            first, n_elements = start_row * n_columns, n_rows * n_columns
            rows, crc = self._read_window(tensor, first, n_elements, buffer)
            return rows.reshape(n_rows, n_columns), crc
        return self._gather(tensor, start_row, n_rows, buffer), None

    def _read_window(
        self, tensor: StoredTensor, first_element: int, n_elements: int, buffer: memoryview
    ) -> tuple[Rows, int]:
        itemsize = tensor.dtype.itemsize
        start = (tensor.storage_offset + first_element) * itemsize
        n_bytes = n_elements * itemsize
        window = self._file.read_window(tensor.storage.offset + start, n_bytes, buffer)
        crc = self._add(tensor, start, window)
        if (tensor.storage.offset + start) % itemsize:
            # A re-zipped file may hold its records at odd positions, and direct I/O keeps them.
            buffer[:n_bytes] = window
            window = buffer[:n_bytes]
        return np.frombuffer(window, _UNSIGNED[itemsize]), crc

    def _gather(
        self, tensor: StoredTensor, start_row: int, n_rows: int, buffer: memoryview
    ) -> Rows:
        """Read rows of a transposed or stepped view: segment by segment, each byte once."""
        itemsize = tensor.dtype.itemsize
        n_columns = tensor.shape[1] if len(tensor.shape) == 2 else 1
        dtype = _UNSIGNED[itemsize]
        rows = np.frombuffer(buffer[: n_rows * n_columns * itemsize], dtype)
        rows = rows.reshape(n_rows, n_columns)
        for segment in _segments(tensor, start_row, n_rows):
            start = segment.first_element * itemsize
            piece = self._file.read_exact(tensor.storage.offset + start, segment.reach * itemsize)
            self._add(tensor, start, memoryview(piece))
            rows[segment.target] = np.frombuffer(piece, dtype)[:: segment.step]
        return rows

    def _add(self, tensor: StoredTensor, start: int, piece: memoryview) -> int:
        ledger = self._pass_of[tensor.name].ledger
        crc = ledger.add(start, piece)
        self._check(tensor.storage, ledger)
        return crc

    def _check(self, storage: Storage, ledger: CrcLedger) -> None:
        crc = ledger.crc
        if crc is not None and storage.crc is not None and crc != storage.crc:
            raise CheckpointError(
                f"storage {storage.name}: CRC-32 mismatch ({crc:08x}, expected {storage.crc:08x})",
                path=self.index.path,
                hint="the file is corrupt, download it again",
            )

    def finish(self, buffer: memoryview) -> None:
        """Read what no tensor covered, so that every storage's CRC-32 is known and checked.

        Args:
            buffer: From `aligned_buffer`, to read into.

        Raises:
            CheckpointError: If a CRC-32 differs.
        """
        for name, storage in self.index.storages.items():
            if not self._passes[name]:
                self._passes[name].append(_Pass(CrcLedger(storage.n_bytes)))
            for reading in self._passes[name]:
                self._fill_gaps(reading.ledger, storage.offset, buffer)
                self._check(storage, reading.ledger)

    def _fill_gaps(self, ledger: CrcLedger, offset: int, buffer: memoryview) -> None:
        """Read what a ledger lacks; its range begins at `offset` in the file."""
        chunk = len(buffer) - SLACK_BYTES
        for start, end in ledger.gaps():
            for at in range(start, end, chunk):
                n_bytes = min(chunk, end - at)
                ledger.add(at, self._file.read_window(offset + at, n_bytes, buffer))

    def file_crc(self, buffer: memoryview) -> int:
        """Give the CRC-32 of the whole file: of the storages it is known, the rest is read.

        Args:
            buffer: From `aligned_buffer`, to read into.

        Returns:
            The CRC-32; call after `finish`.

        Raises:
            CheckpointError: If the file ends before, or cannot be read.
        """
        known = []
        for name, storage in self.index.storages.items():
            crc = self._passes[name][0].ledger.crc
            if storage.n_bytes and crc is not None:
                known.append((storage.offset, storage.offset + storage.n_bytes, crc))
        whole = CrcLedger(self.index.n_bytes, known)
        self._fill_gaps(whole, 0, buffer)
        assert whole.crc is not None
        return whole.crc

    def sums(self, names: Collection[str]) -> SourceSums:
        """Tell what was read of the storages behind some tensors, for a later run to go on from.

        Args:
            names: The tensors.

        Returns:
            By storage, each pass's joined (start, end, crc).
        """
        storages = {self.index.tensors[name].storage.name for name in names}
        return {
            name: [list(reading.ledger.intervals()) for reading in self._passes[name]]
            for name in sorted(storages)
        }

    def restore(self, sums: SourceSums) -> None:
        """Go on from what an earlier run had read: those bytes are in files that are kept.

        Args:
            sums: From `sums`, of a reader opened for the same names.
        """
        for name, passes in sums.items():
            for reading, intervals in zip(self._passes[name], passes, strict=True):
                reading.ledger.restore(intervals)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> RankReader:  # noqa: PYI034 - typing.Self is not in Python 3.10
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _is_row_major(tensor: StoredTensor) -> bool:
    """Tell whether the elements lie in order without gaps; the step of a single row is free."""
    expected = 1
    for size, step in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True


@dataclass(frozen=True, slots=True)
class _Segment:
    """Contiguous elements of a storage, every `step`-th of which goes to `target` of the rows."""

    first_element: int
    reach: int
    step: int
    target: tuple[slice | int, slice | int]


def _segments(tensor: StoredTensor, start_row: int, n_rows: int) -> Iterator[_Segment]:
    """Cut rows of a strided view into segments of the storage that do not overlap."""
    n_columns = tensor.shape[1] if len(tensor.shape) == 2 else 1
    row_step = tensor.strides[0]
    column_step = tensor.strides[1] if len(tensor.strides) == 2 else 1
    first = tensor.storage_offset + start_row * row_step
    row_reach = (n_columns - 1) * column_step + 1
    column_reach = (n_rows - 1) * row_step + 1
    limit = _MAX_SEGMENT_BYTES // tensor.dtype.itemsize
    if row_reach <= limit and (n_rows == 1 or row_step >= row_reach):
        for row in range(n_rows):
            target = (row, slice(None))
            yield _Segment(first + row * row_step, row_reach, max(1, column_step), target)
    elif column_reach <= limit and (n_columns == 1 or column_step >= column_reach):
        for column in range(n_columns):
            at = first + column * column_step
            yield _Segment(at, column_reach, max(1, row_step), (slice(None), column))
    else:  # strides that interleave: right, if not fast
        for row in range(n_rows):
            for column in range(n_columns):
                at = first + row * row_step + column * column_step
                yield _Segment(at, 1, 1, (row, column))
