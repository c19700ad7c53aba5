"""Own a tensor as a rank holds it: a strided view of a record of bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import gcd, prod
from typing import Literal

from codellama_convert.tensors import Dtype, rows_and_columns

Order = Literal["rows", "columns", "scattered"]

_MAX_SEGMENT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Storage:
    """One record of bytes that tensors are views of.

    Attributes:
        name: Its entry, such as "data/17".
        dtype: The element type of every view of it.
        offset: Its first byte's position in the file.
        n_bytes: Its size.
        crc: Its CRC-32, or None where the writer did not compute one.
    """

    name: str
    dtype: Dtype
    offset: int
    n_bytes: int
    crc: int | None


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a rank holds it: a strided view of a storage.

    Attributes:
        name: Meta's name.
        shape: Elements along each dimension.
        strides: Elements to step along each dimension.
        storage_offset: Elements before the first one.
        storage: What it is a view of.
    """

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage_offset: int
    storage: Storage

    @property
    def dtype(self) -> Dtype:
        """Its element type."""
        return self.storage.dtype

    @property
    def place(self) -> tuple[str, int, tuple[int, ...], tuple[int, ...]]:
        """Where its elements lie; two tensors with the same place are the same tensor."""
        return self.storage.name, self.storage_offset, self.shape, self.strides

    @property
    def extent(self) -> tuple[int, int]:
        """The bytes of the storage that it reaches over, as (first, behind the last)."""
        reach = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        itemsize = self.dtype.itemsize
        return self.storage_offset * itemsize, (self.storage_offset + reach + 1) * itemsize

    @property
    def n_bytes(self) -> int:
        """Bytes of its elements."""
        return prod(self.shape) * self.dtype.itemsize

    def only(self, rows: range) -> StoredTensor:
        """Return a tensor of some of its rows, which follow one another."""
        first = self.storage_offset + rows.start * self.strides[0]
        return replace(self, shape=(len(rows), *self.shape[1:]), storage_offset=first)

    @property
    def n_columns(self) -> int:
        """Its columns; a vector has one."""
        return rows_and_columns(self.shape)[1]

    @property
    def steps(self) -> tuple[int, int]:
        """Elements from row to row and from column to column; a vector has one column."""
        n_rows, n_columns = rows_and_columns(self.shape)
        row_step, column_step = (*self.strides, 1, 1)[:2]
        # The stride along a dimension of one element means nothing.
        column_step = column_step if n_columns > 1 else 1
        row_step = row_step if n_rows > 1 else (n_columns - 1) * column_step + 1
        return row_step, column_step

    @property
    def order(self) -> Order:
        """What lies apart in the storage: whole rows, whole columns, or neither."""
        n_rows, n_columns = rows_and_columns(self.shape)
        row_step, column_step = self.steps
        if row_step > (n_columns - 1) * column_step:
            return "rows"
        return "columns" if column_step > (n_rows - 1) * row_step else "scattered"

    @property
    def row_major(self) -> bool:
        """Whether the elements lie in order without gaps; the step of a single row is free."""
        expected = 1
        for size, step in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and step != expected:
                return False
            expected *= size
        return True

    @property
    def crc(self) -> int | None:
        """The CRC-32 of its elements in order; None where its file has none of them alone."""
        fills = self.row_major and self.extent == (0, self.storage.n_bytes)
        return self.storage.crc if fills else None

    @property
    def segment(self) -> tuple[int, int]:
        """How many rows and columns are read at once where they do not lie in order."""
        n_rows, n_columns = rows_and_columns(self.shape)
        row_step, column_step = self.steps
        limit = _MAX_SEGMENT_BYTES // self.dtype.itemsize
        row_reach = (n_columns - 1) * column_step + 1
        # Whole rows that lie apart may be read with what lies between them: no other row is there.
        if self.order == "rows" and row_reach <= limit:
            return min(n_rows, (limit - row_reach) // row_step + 1), n_columns
        if self.order == "rows":
            return 1, min(n_columns, (limit - 1) // column_step + 1)
        if self.order == "columns":
            return min(n_rows, (limit - 1) // row_step + 1), 1
        return 1, 1

    @property
    def n_pieces(self) -> int:
        """In how many pieces it is read; 1 where its elements lie in order."""
        if self.row_major or 0 in self.shape:
            return 1
        n_rows, n_columns = rows_and_columns(self.shape)
        rows, columns = self.segment
        return -(-n_rows // rows) * -(-n_columns // columns)

    @property
    def read_bytes(self) -> int:
        """How many bytes its pieces have at most, with what lies between its elements."""
        if self.row_major or 0 in self.shape:
            return prod(self.shape) * self.dtype.itemsize
        rows, columns = self.segment
        row_step, column_step = self.steps
        reach = (rows - 1) * row_step + (columns - 1) * column_step + 1
        return self.n_pieces * reach * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Segment:
    """Elements of a storage, some of which, at the tensor's steps, go to `target` of the rows."""

    first_element: int
    reach: int
    shape: tuple[int, int]
    target: tuple[slice, slice]


def segments(tensor: StoredTensor, start_row: int, n_rows: int) -> Iterator[Segment]:
    """Cut rows of a strided view into segments of the storage.

    Args:
        tensor: Whose elements do not lie in order.
        start_row: The first row.
        n_rows: How many.

    Yields:
        Segments; those of all tiles of a tensor are disjoint, so each byte is read once.
    """
    n_columns = tensor.n_columns
    row_step, column_step = tensor.steps
    first = tensor.storage_offset + start_row * row_step
    rows_at_once, columns_at_once = tensor.segment
    for row in range(0, n_rows, rows_at_once):
        rows = min(rows_at_once, n_rows - row)
        for column in range(0, n_columns, columns_at_once):
            columns = min(columns_at_once, n_columns - column)
            yield Segment(
                first + row * row_step + column * column_step,
                (rows - 1) * row_step + (columns - 1) * column_step + 1,
                (rows, columns),
                (slice(row, row + rows), slice(column, column + columns)),
            )


def elements_are_distinct(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Return whether no two elements of a view lie at the same place.

    Args:
        shape: Elements along each dimension.
        strides: Elements to step along each dimension, as many.

    Returns:
        Whether they are distinct; of three and more dimensions, False where it is not plain.
    """
    dims = [(step, n) for n, step in zip(shape, strides, strict=True) if n > 1]
    if len(dims) == 2:
        (step_a, n_a), (step_b, n_b) = dims
        if not step_a or not step_b:
            return False
        common = gcd(step_a, step_b)
        return step_b // common >= n_a or step_a // common >= n_b
    reach = 0
    for step, n in sorted(dims):
        if step <= reach:
            return False
        reach += (n - 1) * step
    return True
