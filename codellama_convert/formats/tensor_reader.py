"""Own the reading of rows out of a file of tensors, their CRC-32 on the way.

Every storage that the file has is read once, and its CRC-32 is taken over the very bytes that are
converted: there is no moment between the check and the use. What no tensor covers is read at the
end, to finish the sum. More than 300 lines, as rows and sums are of one reading: apart, each would
need the other's ledgers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from codellama_convert.errors import CheckpointError
from codellama_convert.formats.source_sums import (
    Ledgers,
    Passes,
    TensorFile,
    assign_passes,
    fits,
)
from codellama_convert.formats.stored_tensor import Storage, StoredTensor, segments
from codellama_convert.storage.blocks import IoMode
from codellama_convert.storage.checksums import CrcLedger, SourceSums, combine, crc32
from codellama_convert.storage.input_file import InputFile
from codellama_convert.storage.watch import Watch

Rows = npt.NDArray[Any]

# Elements are moved, not calculated with: unsigned integers keep NaN payloads and the sign of zero.
UNSIGNED: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}

_Reader = TypeVar("_Reader", bound="TensorReader")


class TensorReader:
    """An open file of tensors.

    Attributes:
        index: What the file holds.
    """

    def __init__(
        self,
        index: TensorFile,
        names: Collection[str],
        *,
        kinds: Mapping[str, int] | None = None,
        io_mode: IoMode = "buffered",
    ) -> None:
        """Open a file to read some of its tensors, each row at most once for an output file.

        Args:
            index: What it holds, as it was read before.
            names: The tensors that will be read.
            kinds: How they are read for several output files, by name; `BY_ROWS` for names not in it.
            io_mode: How they are read.

        Raises:
            CheckpointError: If the file cannot be opened, or changed since then.
        """
        self.index = index
        self._file = InputFile(index.path, io_mode=io_mode)
        found = (self._file.inode, self._file.n_bytes, self._file.mtime_ns)
        if found != (index.inode, index.n_bytes, index.mtime_ns):
            self._file.close()
            raise CheckpointError("the file changed while it was read", path=index.path)
        self._pass_of = assign_passes((index.tensors[name] for name in names), kinds)
        self._known = Passes(index, self._pass_of)
        # Of storages without a sum; there once `finish` has read all of them.
        self._crcs: dict[str, int | None] | None = None
        self._read = Ledgers(index)  # since the last `take_sums`
        self._read_earlier: set[str] = set()  # storages that another run read some of

    @property
    def direct(self) -> bool:
        """Whether rows are read past the page cache."""
        return self._file.direct

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
        n_columns = tensor.n_columns
        if tensor.row_major:
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
        return np.frombuffer(window, UNSIGNED[itemsize]), crc

    def _gather(
        self, tensor: StoredTensor, start_row: int, n_rows: int, buffer: memoryview
    ) -> Rows:
        """Read rows of a transposed or stepped view: segment by segment, each byte once."""
        itemsize = tensor.dtype.itemsize
        n_columns = tensor.n_columns
        dtype = UNSIGNED[itemsize]
        rows = np.frombuffer(buffer[: n_rows * n_columns * itemsize], dtype)
        rows = rows.reshape(n_rows, n_columns)
        for segment in segments(tensor, start_row, n_rows):
            start = segment.first_element * itemsize
            piece = self._file.read_exact(tensor.storage.offset + start, segment.reach * itemsize)
            self._add(tensor, start, memoryview(piece))
            rows[segment.target] = np.lib.stride_tricks.as_strided(
                np.frombuffer(piece, dtype),
                segment.shape,
                tuple(step * itemsize for step in tensor.steps),
            )
        return rows

    def _add(self, tensor: StoredTensor, start: int, piece: memoryview) -> int:
        reading = tensor.storage.name, self._pass_of[tensor.name]
        ledger = self._read[reading]
        crc = ledger.add(start, piece)
        self._check(tensor.storage, [ledger])
        self._read.settle(reading)
        return crc

    def _check(self, storage: Storage, passes: Sequence[CrcLedger]) -> None:
        """Compare those that are whole with the storage's sum, or with one another."""
        crcs = [ledger.crc for ledger in passes if ledger.crc is not None]
        wrong = [crc for crc in crcs if crc != (crcs[0] if storage.crc is None else storage.crc)]
        if wrong:
            tensors = self.index.tensors.values()
            held = [tensor.name for tensor in tensors if tensor.storage.name == storage.name]
            of = f" (tensor {held[0]!r})" if held else ""
            if storage.crc is None:
                raise CheckpointError(
                    f"storage {storage.name}{of} changed while it was read: its CRC-32 was "
                    f"{crcs[0]:08x}, and then {wrong[0]:08x}",
                    path=self.index.path,
                    hint="run the same command again",
                )
            hint = "the file is corrupt, download it again"
            if storage.name in self._read_earlier:
                hint = (
                    "the file is corrupt, or was when an earlier run read a part of it: run the "
                    "same command again, which reads all of it"
                )
            raise CheckpointError(
                f"storage {storage.name}{of}: CRC-32 mismatch ({wrong[0]:08x}, expected "
                f"{storage.crc:08x})",
                path=self.index.path,
                hint=hint,
            )

    def finish(self, buffer: memoryview, watch: Watch) -> None:
        """Read what no tensor covered, so that every storage's CRC-32 is known and checked.

        Args:
            buffer: From `aligned_buffer`, to read into.
            watch: May stop the reading.

        Raises:
            CheckpointError: If a CRC-32 differs.
        """
        crcs: dict[str, int | None] = {}
        for name, storage in self.index.storages.items():
            passes = self._known.over(name)
            self._fill_gaps(storage.offset, passes, buffer, watch)
            self._check(storage, passes)
            self._known.settle(name)
            if storage.crc is None:
                crcs[name] = passes[0].crc
        self._crcs = crcs

    def _fill_gaps(
        self, offset: int, ledgers: Sequence[CrcLedger], buffer: memoryview, watch: Watch
    ) -> None:
        """Read what ledgers of a range that begins at `offset` lack; what several lack, once."""
        gaps = [(ledger, start, end) for ledger in ledgers for start, end in ledger.gaps()]
        lacking: dict[int, int] = {}  # at each cut, how many more ledgers lack what follows
        for _, start, end in gaps:
            lacking[start] = lacking.get(start, 0) + 1
            lacking[end] = lacking.get(end, 0) - 1
        cuts = sorted(lacking)
        n_lacking, crc, crc_until = 0, 0, dict.fromkeys(cuts[:1], 0)
        for start, end in pairwise(cuts):
            n_lacking += lacking[start]
            if n_lacking:
                for piece in self._file.read_pieces(buffer, offset + start, offset + end):
                    watch.check()
                    crc = crc32(piece, crc)
            crc_until[end] = crc
        for ledger, start, end in gaps:
            # The CRC-32 of a part follows from those of what lies before it and of both.
            ledger.add_crc(start, end, combine(crc_until[start], crc_until[end], end - start))

    def file_crc(self, buffer: memoryview, watch: Watch) -> int:
        """Return the CRC-32 of the whole file: of the storages it is known, the rest is read.

        Args:
            buffer: From `aligned_buffer`, to read into.
            watch: May stop the reading.

        Returns:
            The CRC-32; call after `finish`.

        Raises:
            CheckpointError: If the file ends before, or cannot be read.
        """
        assert self._crcs is not None
        storages = self.index.storages.items()
        crcs = {name: self._crcs.get(name, storage.crc) for name, storage in storages}
        return self._joined(crcs, buffer, watch)

    def _joined(self, crcs: Mapping[str, int | None], buffer: memoryview, watch: Watch) -> int:
        """Join the CRC-32s of storages, and of all that has to be read, to that of the file."""
        whole = CrcLedger(self.index.n_bytes)
        for name, storage in self.index.storages.items():
            crc = crcs[name]
            if crc is not None:
                whole.add_crc(storage.offset, storage.offset + storage.n_bytes, crc)
        self._fill_gaps(0, [whole], buffer, watch)
        assert whole.crc is not None
        return whole.crc

    def take_sums(self) -> SourceSums:
        """Report what was read since the last call: what one output file is made of."""
        sums = self._read.sums()
        self._read = Ledgers(self.index)
        return sums

    def note(self, sums: SourceSums) -> None:
        """Take note of what was read for a file, here or by another reader, before it is named.

        Every storage that is now whole is checked.

        Args:
            sums: From `take_sums`, of a reader opened for the same names; they fit the file.

        Raises:
            CheckpointError: If a storage is whole with them, and its CRC-32 differs from its stored
                one, or from that of another reading; or an earlier run's record overlaps them.
        """
        try:
            self._known.add(sums)
        except ValueError as problem:
            if not self._read_earlier:
                raise
            # `fits` cannot say how much was read between the rows of a strided view.
            raise CheckpointError(
                f"an earlier run recorded bytes that were read for another file too: {problem}",
                path=self.index.path,
                hint="run the same command again, which reads all of it",
            ) from problem
        for name in sums:
            self._check(self.index.storages[name], self._known.over(name))

    def keep(self, sums: SourceSums) -> None:
        """Take note of what an earlier run read for a file that is kept; `confirms` the sums."""
        self._read_earlier.update(sums)
        self.note(sums)

    def fits(self, sums: SourceSums, read: Mapping[str, range]) -> bool:
        """Return whether sums can be of the reading of some tensors, and of nothing else.

        Args:
            sums: What is said to have been read.
            read: Which rows are read of each tensor, by its name.
        """
        of_each = [self.index.tensors[name].only(rows) for name, rows in read.items()]
        return fits(sums, [(one, one.n_bytes) for one in of_each], self._pass_of)

    def confirms(
        self,
        sums: SourceSums,
        read: Mapping[str, range],
        buffer: memoryview,
        watch: Watch,
    ) -> bool:
        """Return whether a file that an earlier run wrote may be kept.

        Its sums count towards those of whole storages, which will tell whether the bytes were
        right. Where the writer of the file computed none, the bytes are read again: another model's
        may have come in their place.

        Args:
            sums: What is said to have been read for it.
            read: Which rows of each tensor it is made of, by its name.
            buffer: From `aligned_buffer`, to read into.
            watch: May stop the reading.

        Returns:
            Whether the sums fit the tensors, and still those bytes that nothing else vouches for.

        Raises:
            CheckpointError: If the file ends before, or cannot be read.
        """
        if not self.fits(sums, read):
            return False
        for name, pieces in sums.items():
            storage = self.index.storages[name]
            for _, start, end, crc in pieces if storage.crc is None else ():
                found = 0
                at = storage.offset
                for piece in self._file.read_pieces(buffer, at + start, at + end):
                    watch.check()
                    found = crc32(piece, found)
                if found != crc:
                    return False
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self: _Reader) -> _Reader:  # noqa: PYI019 - typing.Self is not in Python 3.10
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
