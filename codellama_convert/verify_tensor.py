"""Own the comparison of one tensor of an output with the ranks it came from.

Rows are walked backwards, from the output to the ranks; a cast is torch's own. Know nothing of
configurations or of the other tensors.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import numpy as np

from codellama_convert.input_file import InputFile
from codellama_convert.output_reader import StoredOutput
from codellama_convert.plan import TensorPlan, Tile
from codellama_convert.rank_reader import UNSIGNED, RankReader, Rows
from codellama_convert.rope import to_interleaved
from codellama_convert.tensors import Dtype
from codellama_convert.verify_report import Progress


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

    def first_difference(
        self, read_buffer: memoryview, output_buffer: memoryview, advance: Progress
    ) -> str | None:
        """Compare tile by tile; describe the first element that differs."""
        tensor = self._tensor
        row_bytes = tensor.n_columns * self._stored.dtype.itemsize
        for tile in tensor.tiles():
            n_bytes = tile.n_rows * row_bytes
            at = self._stored.offset + tile.start_row * row_bytes
            window = self._file.read_window(at, n_bytes, output_buffer)
            written = np.frombuffer(window, UNSIGNED[self._stored.dtype.itemsize])
            written = written.reshape(tile.n_rows, tensor.n_columns)
            for first_column, rank, row, expected in self._parts(tile, read_buffer):
                piece = written[:, first_column : first_column + expected.shape[1]]
                unequal = self._first_unequal(piece, expected)
                if unequal is not None:
                    return self._describe(rank, row, unequal, piece, expected)
            advance(n_bytes)
        return None

    def _first_unequal(self, piece: Rows, expected: Rows) -> tuple[int, int] | None:
        """Find the first element, in the ranks' order, that differs."""
        head_dim = self._tensor.layout.head_dim
        # Back to the order in which the ranks have the rows; a view, so nothing is copied.
        in_order = piece if head_dim is None else to_interleaved(piece, head_dim)
        if np.array_equal(in_order, expected.reshape(in_order.shape)):
            return None
        unequal = in_order.reshape(expected.shape) != expected
        row, column = np.unravel_index(int(unequal.argmax()), unequal.shape)
        return int(row), int(column)

    def _parts(self, tile: Tile, read_buffer: memoryview) -> Iterator[tuple[int, int, int, Rows]]:
        """Yield first column, rank, rank's first row and expected elements, rank by rank."""
        layout = self._tensor.layout
        name = layout.meta_name
        if layout.tp_dim == 0:
            rank, row = divmod(tile.start_row, layout.part_shape[0])
            rows, _ = self._readers[rank].read_rows(name, row, tile.n_rows, read_buffer)
            yield 0, rank, row, self._as_written(rows)
            return
        width = layout.part_shape[1] if len(layout.part_shape) == 2 else 1
        for rank, reader in enumerate(self._readers):
            rows, _ = reader.read_rows(name, tile.start_row, tile.n_rows, read_buffer)
            first_column = rank * width if layout.tp_dim == 1 else 0
            yield first_column, rank, tile.start_row, self._as_written(rows)

    def _as_written(self, rows: Rows) -> Rows:
        """Give what the output must hold: the same bits, or torch's cast of the numbers."""
        source, target = self._tensor.layout.spec.dtype, self._stored.dtype
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
        head_dim = self._tensor.layout.head_dim
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
            f"{self._stored.file.name}: tensor {self._tensor.spec.name!r} differs from "
            f"{self._tensor.layout.meta_name!r} of {self._readers[rank].index.path.name} at row "
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
    """Tell whether any element is an infinity or a NaN, by the order of the bits."""
    sign = 1 << (8 * dtype.itemsize - 1)
    positive = int(elements.view(f"<i{dtype.itemsize}").max())
    negative = int(elements.max()) - sign
    return max(positive, negative) >= dtype.infinity_bits
