"""Own the comparison of one tensor of an output with the ranks it came from.

Rows are walked backwards, from the output to the ranks; a cast is torch's own.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from codellama_convert.formats.tensor_reader import UNSIGNED, Rows
from codellama_convert.meta.rank_reader import RankReader
from codellama_convert.model.placement import Move, Part
from codellama_convert.model.rope import to_interleaved
from codellama_convert.plan.tiles import TensorPlan
from codellama_convert.storage.checksums import combine
from codellama_convert.storage.input_file import InputFile
from codellama_convert.storage.watch import Progress
from codellama_convert.tensors import Dtype
from codellama_convert.verify.folder_reader import StoredOutput


@dataclass(slots=True)
class Compared:
    """What was found of a tensor.

    Attributes:
        difference: The first element that differs, in words; None where all are equal. The rest is
            of the whole tensor, so it says nothing where there is a difference.
        crc32: Of its bytes in the output.
        became_zero: How many of its values a cast made zero.
        nonfinite: How many are infinities or NaNs.
    """

    difference: str | None = None
    crc32: int = 0
    became_zero: int = 0
    nonfinite: int = 0


class TensorComparer:
    """Compares one tensor of the output with the ranks it came from."""

    def __init__(
        self,
        tensor: TensorPlan,
        stored: StoredOutput,
        file: InputFile,
        readers: Sequence[RankReader],
    ) -> None:
        self._tensor, self._stored = tensor, stored
        self._file, self._readers = file, readers
        source, target = tensor.read_dtype, stored.dtype
        # What was read is then what must have been written, so one sum is both's.
        self._same_bytes = source == target and not tensor.is_reordered
        self._may_become_zero = target.min_positive > source.min_positive

    def compare(
        self, read_buffer: memoryview, output_buffer: memoryview, advance: Progress
    ) -> Compared:
        """Compare tile by tile, up to the first element that differs; sum and count on the way."""
        tensor, dtype = self._tensor, self._stored.dtype
        row_bytes = tensor.spec.n_columns * dtype.itemsize
        found = Compared()
        for tile in tensor.tiles():
            n_bytes = len(tile.rows) * row_bytes
            at = self._stored.offset + tile.rows.start * row_bytes
            window = self._file.read_window(at, n_bytes, output_buffer)
            written = np.frombuffer(window, UNSIGNED[dtype.itemsize])
            written = written.reshape(len(tile.rows), tensor.spec.n_columns)
            if _holds_nonfinite(written, dtype):
                found.nonfinite += _n_nonfinite(written, dtype)
            crc_read = self._compare_tile(tile, written, read_buffer, found)
            if found.difference is not None:
                break
            crc = zlib.crc32(window) if crc_read is None else crc_read
            found.crc32 = combine(found.crc32, crc, n_bytes)
            advance(n_bytes)
        return found

    def _compare_tile(
        self, tile: Move, written: Rows, read_buffer: memoryview, found: Compared
    ) -> int | None:
        """Compare the rows of a tile with each part that holds some of them.

        Returns:
            The tile's CRC-32 where it is known without summing it: that of rows which were read
            and are the same bytes.
        """
        crc_read = None
        for part, row, rows, crc in self._parts(tile, read_buffer):
            expected = self._as_written(rows)
            piece = written[:, part.columns.start : part.columns.stop]
            unequal = self._first_unequal(piece, expected)
            if unequal is not None:
                found.difference = self._describe(part.file, row, unequal, piece, expected)
                return None
            if self._same_bytes and rows.shape == written.shape:
                crc_read = crc
            if self._may_become_zero and part in tile.sources:
                found.became_zero += _n_zeros(piece) - _n_zeros(rows)
        return crc_read

    def _first_unequal(self, piece: Rows, expected: Rows) -> tuple[int, int] | None:
        """Find the first element, in the ranks' order, that differs."""
        head_dim = self._tensor.head_dim
        # Back to the order in which the ranks have the rows; a view, so nothing is copied.
        in_order = piece if head_dim is None else to_interleaved(piece, head_dim)
        if np.array_equal(in_order, expected.reshape(in_order.shape)):
            return None
        unequal = in_order.reshape(expected.shape) != expected
        row, column = np.unravel_index(int(unequal.argmax()), unequal.shape)
        return int(row), int(column)

    def _parts(
        self, tile: Move, read_buffer: memoryview
    ) -> Iterator[tuple[Part, int, Rows, int | None]]:
        """Yield each part that has rows of a tile: its first one of them, elements and CRC-32."""
        source, first = self._tensor.source, tile.rows.start
        for part in source.parts:
            if first in part.rows:
                row = first - part.rows.start
                rows, crc = self._readers[part.file].read_rows(
                    source.name, row, len(tile.rows), read_buffer
                )
                yield part, row, rows, crc

    def _as_written(self, rows: Rows) -> Rows:
        """Return what the output must hold: the same bits, or torch's cast of the numbers."""
        source, target = self._tensor.read_dtype, self._stored.dtype
        if source == target:
            return rows
        import torch  # noqa: PLC0415 - for casts only

        signed = np.dtype(f"<i{source.itemsize}")
        values = torch.from_numpy(rows.view(signed)).view(getattr(torch, source.name))
        cast = values.to(getattr(torch, target.name))
        back = cast.view(torch.int16 if target.itemsize == 2 else torch.int32).numpy()
        expected: Rows = back.view(UNSIGNED[target.itemsize])
        if _holds_nonfinite(expected, target):
            sign = 1 << (8 * target.itemsize - 1)
            negative = rows >> (8 * source.itemsize - 1) == 1
            # What torch leaves of a NaN depends on its neighbours: the quiet one of its sign is right.
            nan = torch.isnan(values).numpy()
            expected[nan & ~negative] = target.quiet_nan_bits
            expected[nan & negative] = target.quiet_nan_bits | sign
            # No finite number may have become infinite: what stands there cannot be right.
            overflown = (torch.isinf(cast) & torch.isfinite(values)).numpy()
            expected[overflown] = target.infinity_bits - 1
            expected[overflown & negative] |= sign
        return expected

    def _describe(
        self, rank: int, first_row: int, at: tuple[int, int], piece: Rows, expected: Rows
    ) -> str:
        """Name the element that differs: by its place in the rank, with both values."""
        head_dim = self._tensor.head_dim
        in_order = piece if head_dim is None else to_interleaved(piece, head_dim)
        found_bits = int(in_order.reshape(expected.shape)[at])
        expected_bits = int(expected[at])
        dtype = self._stored.dtype
        digits = 2 * dtype.itemsize
        sign = 1 << (8 * dtype.itemsize - 1)
        overflown = (found_bits & ~sign, expected_bits & ~sign) == (
            dtype.infinity_bits,
            dtype.infinity_bits - 1,
        )
        why = ": the number is finite in the checkpoint" if overflown else ""
        return (
            f"tensor {self._tensor.spec.name!r} differs from "
            f"{self._tensor.source.name!r} of {self._readers[rank].index.path.name} at row "
            f"{first_row + at[0]}, column {at[1]}: {_value(found_bits, dtype)} "
            f"(bits {found_bits:0{digits}x}), expected {_value(expected_bits, dtype)} "
            f"(bits {expected_bits:0{digits}x}){why}"
        )


def _value(bits: int, dtype: Dtype) -> str:
    """Write the number that some bits stand for."""
    if dtype.code == "F16":
        (value,) = struct.unpack("<e", struct.pack("<H", bits))
    else:
        wide = bits << 16 if dtype.code == "BF16" else bits
        (value,) = struct.unpack("<f", struct.pack("<I", wide))
    return f"{value:.6g}"


def _holds_nonfinite(elements: Rows, dtype: Dtype) -> bool:
    """Return whether any element is an infinity or a NaN, by the order of the bits."""
    sign = 1 << (8 * dtype.itemsize - 1)
    positive = int(elements.view(f"<i{dtype.itemsize}").max())
    negative = int(elements.max()) - sign
    return max(positive, negative) >= dtype.infinity_bits


def _n_nonfinite(elements: Rows, dtype: Dtype) -> int:
    """Count the infinities and NaNs: without its sign, such an element is infinity or more."""
    return int(np.count_nonzero(_unsigned(elements) >= dtype.infinity_bits))


def _n_zeros(elements: Rows) -> int:
    """Count the elements that are 0.0 or -0.0: nothing is left of them but the sign."""
    return elements.size - int(np.count_nonzero(_unsigned(elements)))


def _unsigned(elements: Rows) -> Rows:
    """Take the sign off the elements."""
    magnitude: Rows = elements & elements.dtype.type((1 << (8 * elements.itemsize - 1)) - 1)
    return magnitude
