"""Own how a tensor is cut into tiles, and what one of them takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from codellama_convert.model.tensor_table import TensorLayout
from codellama_convert.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Tile:
    """Contiguous output rows that are handled at once.

    Attributes:
        start_row: The first row of the whole tensor.
        n_rows: How many.
    """

    start_row: int
    n_rows: int


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One output tensor: where it comes from, where it goes.

    Attributes:
        layout: Where it comes from.
        spec: As it is written.
        offset: Its first byte's position in the file.
        tile_rows: Rows handled at once; for rotary tensors a whole number of heads.
    """

    layout: TensorLayout
    spec: TensorSpec
    offset: int
    tile_rows: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one output row."""
        return self.spec.n_columns * self.spec.dtype.itemsize

    @property
    def read_bytes(self) -> int:
        """Most bytes that are read into one buffer: a rank's part of a tile."""
        n_columns = len(self.layout.parts[0].columns)
        return self.tile_rows * n_columns * self.layout.spec.dtype.itemsize

    @property
    def write_bytes(self) -> int:
        """Most bytes that are written from one buffer: a tile."""
        return self.tile_rows * self.row_bytes

    def tiles(self) -> Iterator[Tile]:
        """Cut the rows into tiles; where ranks split the rows, a tile lies inside one rank."""
        for rows in dict.fromkeys(part.rows for part in self.layout.parts):
            for row in rows[:: self.tile_rows]:
                yield Tile(row, min(self.tile_rows, rows.stop - row))


def choose_tile_rows(layout: TensorLayout, spec: TensorSpec, tile_bytes: int) -> int:
    """Choose how many rows make a tile: at least one row, or one head where rows are rotary."""
    itemsize = max(spec.dtype.itemsize, layout.spec.dtype.itemsize)
    unit = layout.head_dim or 1
    wanted = unit * max(1, tile_bytes // (unit * spec.n_columns * itemsize))
    return min(wanted, len(layout.parts[0].rows))
