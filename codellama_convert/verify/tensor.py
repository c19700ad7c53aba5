"""Own the comparison of one tensor of an output with the files it came from.

Rows are walked backwards, from the output to the source; a cast is torch's own.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from codellama_convert.formats.tensor_reader import UNSIGNED, Rows, TensorReader
from codellama_convert.model.placement import Move, Part
from codellama_convert.model.rope import to_interleaved
from codellama_convert.plan.tiles import TensorPlan
from codellama_convert.storage.blocks import SLACK_BYTES, block_ceil
from codellama_convert.storage.checksums import combine, crc32
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
        differs_in: The number of the output's file that it is in.
        crcs: By the number of the output's file, of the bytes that it has of the tensor.
        became_zero: How many of its values a cast made zero; of copies, each counts once.
        nonfinite: How many are infinities or NaNs; likewise.
    """

    difference: str | None = None
    differs_in: int = 0
    crcs: dict[int, int] = field(default_factory=dict)
    became_zero: int = 0
    nonfinite: int = 0

    @property
    def crc32(self) -> int:
        """Of its bytes in the first file, which is the only one on Hugging Face's side."""
        return next(iter(self.crcs.values()), 0)


@dataclass(frozen=True, slots=True)
class OpenPart:
    """What a file of the output holds of a tensor: its place, and the open file."""

    stored: StoredOutput
    file: InputFile


@dataclass(frozen=True, slots=True)
class _Written:
    """The rows of a tile as a file of the output has them."""

    part: Part
    window: memoryview
    elements: Rows


class TensorComparer:
    """Compares one tensor of the output with the files it came from."""

    def __init__(
        self,
        tensor: TensorPlan,
        outputs: Mapping[int, OpenPart],
        readers: Sequence[TensorReader],
    ) -> None:
        """Take both sides of a tensor.

        Args:
            tensor: Where it comes from, and where it belongs.
            outputs: By their number, the files of the output that can be compared: one or more, of
                one dtype, each with the shape that the tensor has there.
            readers: Of the source.
        """
        self._tensor, self._outputs, self._readers = tensor, outputs, readers
        self._dtype = next(iter(outputs.values())).stored.dtype
        source, target = tensor.read_dtype, self._dtype
        # What was read is then what must have been written, so one sum is both's.
        self._same_bytes = source == target and not tensor.is_reordered
        self._may_become_zero = target.min_positive > source.min_positive

    def compare(
        self, read_buffer: memoryview, output_buffer: memoryview, advance: Progress
    ) -> Compared:
        """Compare tile by tile, up to the first element that differs; sum and count on the way."""
        tensor = self._tensor
        row_bytes = tensor.spec.n_columns * self._dtype.itemsize
        found = Compared(crcs=dict.fromkeys(self._outputs, 0))
        for tile in tensor.tiles():
            written = self._read(tile, output_buffer)
            for one in written[:1] if tensor.target.is_copied else written:
                if _holds_nonfinite(one.elements, self._dtype):
                    found.nonfinite += _n_nonfinite(one.elements, self._dtype)
            crcs_read = self._compare_tile(tile, written, read_buffer, found)
            if found.difference is not None:
                break
            for one in written:
                known, file = crcs_read.get(one.part.file), one.part.file
                crc = crc32(one.window) if known is None else known
                found.crcs[file] = combine(found.crcs[file], crc, len(one.window))
            advance(len(tile.rows) * row_bytes)
        return found

    def _read(self, tile: Move, buffer: memoryview) -> list[_Written]:
        """Read the rows of a tile from each file that has some, side by side into one buffer."""
        written: list[_Written] = []
        itemsize = self._dtype.itemsize
        for part in tile.targets:
            if part.file not in self._outputs:
                continue
            one, n_columns = self._outputs[part.file], len(part.columns)
            at = one.stored.offset + (tile.rows.start - part.rows.start) * n_columns * itemsize
            n_bytes = len(tile.rows) * n_columns * itemsize
            window = one.file.read_window(at, n_bytes, buffer)
            buffer = buffer[block_ceil(n_bytes) + SLACK_BYTES :]
            if at % itemsize:  # only in a file that is laid out wrongly; direct I/O keeps it so
                window = memoryview(bytearray(window))
            elements = np.frombuffer(window, UNSIGNED[itemsize])
            written.append(_Written(part, window, elements.reshape(len(tile.rows), n_columns)))
        return written

    def _compare_tile(
        self, tile: Move, written: Sequence[_Written], read_buffer: memoryview, found: Compared
    ) -> dict[int, int | None]:
        """Compare the rows of a tile with each part of the source that holds some of them.

        Returns:
            By file, the tile's CRC-32 where it is known without summing it: that of rows which were
            read and are the same bytes.
        """
        crcs_read = {}
        for part in self._tensor.source.parts:
            if tile.rows.start not in part.rows:
                continue
            row = tile.rows.start - part.rows.start
            rows, crc = self._readers[part.file].read_rows(
                self._tensor.source.name, row, len(tile.rows), read_buffer
            )
            expected = self._as_written(rows)
            for one in written:
                found.difference = self._difference(part, row, one, expected)
                if found.difference is not None:
                    found.differs_in = one.part.file
                    return {}
                if self._same_bytes and part.columns == one.part.columns:
                    crcs_read[one.part.file] = crc
            if self._may_become_zero and part in tile.sources:
                found.became_zero += _n_zeros(expected) - _n_zeros(rows)
        return crcs_read

    def _difference(self, part: Part, row: int, one: _Written, expected: Rows) -> str | None:
        """Describe the first element that differs, of the columns that both sides' parts have."""
        start = max(part.columns.start, one.part.columns.start)
        stop = min(part.columns.stop, one.part.columns.stop)
        if start >= stop:
            return None
        first = start - part.columns.start
        expected = expected[:, first : stop - part.columns.start]
        piece = one.elements[:, start - one.part.columns.start : stop - one.part.columns.start]
        in_order = self._in_source_order(piece)
        if _are_equal(in_order, expected.reshape(in_order.shape)):
            return None
        piece = in_order.reshape(expected.shape)
        at = np.unravel_index(int((piece != expected).argmax()), expected.shape)
        place = f"row {row + int(at[0])}, column {first + int(at[1])}"
        return self._describe(part.file, place, int(piece[at]), int(expected[at]))

    def _in_source_order(self, piece: Rows) -> Rows:
        """Bring rotary rows back to the order in which the source has them; a view, no copy."""
        head_dim = self._tensor.head_dim
        if head_dim is None or not self._tensor.is_reordered:
            return piece
        rows: Rows
        if self._tensor.source.interleaved:
            rows = to_interleaved(piece, head_dim)
        else:  # of each pair in the ranks, one row is of the first half, and one of the second
            pairs = piece.reshape(len(piece) // head_dim, head_dim // 2, 2, -1)
            rows = pairs.swapaxes(1, 2)
        return rows

    def _as_written(self, rows: Rows) -> Rows:
        """Return what the output must hold: the same bits, or torch's cast of the numbers."""
        source, target = self._tensor.read_dtype, self._dtype
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

    def _describe(self, file: int, place: str, found_bits: int, expected_bits: int) -> str:
        """Name the element that differs: by its place in the source, with both values."""
        dtype = self._dtype
        digits = 2 * dtype.itemsize
        sign = 1 << (8 * dtype.itemsize - 1)
        overflown = (found_bits & ~sign, expected_bits & ~sign) == (
            dtype.infinity_bits,
            dtype.infinity_bits - 1,
        )
        why = ": the number is finite in the checkpoint" if overflown else ""
        return (
            f"tensor {self._tensor.spec.name!r} differs from "
            f"{self._tensor.source.name!r} of {self._readers[file].index.path.name} at {place}: "
            f"{_value(found_bits, dtype)} (bits {found_bits:0{digits}x}), expected "
            f"{_value(expected_bits, dtype)} (bits {expected_bits:0{digits}x}){why}"
        )


def _value(bits: int, dtype: Dtype) -> str:
    """Write the number that some bits stand for."""
    if dtype.code == "F16":
        (value,) = struct.unpack("<e", struct.pack("<H", bits))
    else:
        wide = bits << 16 if dtype.code == "BF16" else bits
        (value,) = struct.unpack("<f", struct.pack("<I", wide))
    return f"{value:.6g}"


def _are_equal(found: Rows, expected: Rows) -> bool:
    """Return whether all bits are equal; eight bytes at once where both sides allow it."""
    wide_found, wide_expected = _wide(found), _wide(expected)
    if wide_found is not None and wide_expected is not None:
        found, expected = wide_found, wide_expected
    return bool((found == expected).all())


def _wide(rows: Rows) -> Rows | None:
    """View eight bytes of a row as one number; None where the processor cannot take them at once."""
    is_dense = rows.strides[-1] == rows.itemsize and rows.shape[-1] * rows.itemsize % 8 == 0
    wide: Rows | None = rows.view("<u8") if is_dense else None
    return wide if wide is not None and wide.flags.aligned else None


def _holds_nonfinite(elements: Rows, dtype: Dtype) -> bool:
    """Return whether any element is an infinity or a NaN, by the order of the bits."""
    sign = 1 << (8 * dtype.itemsize - 1)
    # Weights are mostly below 2, and all numbers from there on have the exponent's highest bit.
    if not int(np.bitwise_or.reduce(elements, axis=None)) & sign >> 1:
        return False
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
