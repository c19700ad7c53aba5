"""Own how a tensor is cut into tiles, and what one of them takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

from codellama_convert.model.placement import Move, Placement, moves, parts_read
from codellama_convert.storage.blocks import SLACK_BYTES, block_ceil
from codellama_convert.tensors import Dtype, TensorSpec


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor: where it comes from, where it goes.

    Attributes:
        source: Where it comes from.
        target: Where it goes.
        read_dtype: Of its elements as they are read.
        spec: As it is written.
        head_dim: Rows of a head where the rows are rotary, or None.
        offset: Its first byte's position in each file that it is written to.
        tile_rows: Rows handled at once; whole heads where the rows are rotary.
    """

    source: Placement
    target: Placement
    read_dtype: Dtype
    spec: TensorSpec
    head_dim: int | None
    offset: int
    tile_rows: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of all that is written."""
        return self.spec.n_columns * self.spec.dtype.itemsize

    @property
    def read_bytes(self) -> int:
        """Most bytes that are read into one buffer: a part's share of a tile."""
        n_columns = len(self.source.parts[0].columns)
        return self.tile_rows * n_columns * self.read_dtype.itemsize

    @property
    def read_in_all(self) -> int:
        """Bytes that are read of it: whole rows of each part."""
        read = parts_read(self.source, self.target).items()
        return sum(len(rows) * len(part.columns) for part, rows in read) * self.read_dtype.itemsize

    @property
    def part_bytes(self) -> int:
        """Bytes of what one file gets of it."""
        return prod(self.target.part_shape) * self.spec.dtype.itemsize

    @property
    def moved_bytes(self) -> int:
        """Bytes that are written of it, to all files or to the only one that counts; copies once."""
        n_elements = sum(len(part.rows) * len(part.columns) for part in self.target.sources)
        return n_elements * self.spec.dtype.itemsize

    @property
    def part_tile_bytes(self) -> int:
        """Most bytes of a tile that go to one file."""
        n_columns = len(self.target.parts[0].columns)
        return self.tile_rows * n_columns * self.spec.dtype.itemsize

    @property
    def write_bytes(self) -> int:
        """Most bytes that are written from one buffer: a tile, apart for each file that gets some."""
        n_others = 0 if self.target.split == 0 else len(self.target.parts) - 1
        share = block_ceil(self.part_tile_bytes) + SLACK_BYTES
        return self.part_tile_bytes + n_others * share

    @property
    def is_reordered(self) -> bool:
        """Whether rotary rows are in another order on the other side."""
        return self.head_dim is not None and self.source.interleaved != self.target.interleaved

    def only(self, file: int) -> TensorPlan:
        """Plan what one of the files gets of it, in the same tiles as all of them."""
        return replace(self, target=replace(self.target, only=file))

    def tiles(self) -> Iterator[Move]:
        """Cut the rows into tiles; one lies inside of a part of each side that splits rows."""
        return moves(self.source, self.target, self.tile_rows)


@dataclass(frozen=True, slots=True)
class Passage:
    """One tensor on both sides, before it is known how many rows are handled at once.

    Attributes:
        source: Where it comes from.
        target: Where it goes.
        read_dtype: Of its elements as they are read.
        dtype: Of those that are written.
        head_dim: Rows of a head where the rows are rotary, or None.
    """

    source: Placement
    target: Placement
    read_dtype: Dtype
    dtype: Dtype
    head_dim: int | None

    @property
    def spec(self) -> TensorSpec:
        """As it is written."""
        return TensorSpec(self.target.name, self.dtype, self.target.shape)

    @property
    def part_spec(self) -> TensorSpec:
        """What each file gets of it."""
        return TensorSpec(self.target.name, self.dtype, self.target.part_shape)

    @property
    def form(self) -> tuple[object, ...]:
        """What the cost of a tile depends on."""
        sides = (self.source, self.target)
        return (
            self.read_dtype,
            self.head_dim,
            *((side.shape, side.split, len(side.files)) for side in sides),
        )

    def plan(self, *, offset: int = 0, tile_bytes: int) -> TensorPlan:
        """Choose how many rows make a tile: at least one row, or one head where rows are rotary.

        Args:
            offset: Its first byte's position in each file that it is written to.
            tile_bytes: Largest tile, on the side where it takes more, if a row or a head is not
                larger.

        Returns:
            The plan.
        """
        spec, unit = self.spec, self.head_dim or 1
        row_bytes = spec.n_columns * max(self.dtype.itemsize, self.read_dtype.itemsize)
        wanted = unit * max(1, tile_bytes // (unit * row_bytes))
        tile_rows = min(wanted, *(len(side.parts[0].rows) for side in (self.source, self.target)))
        return TensorPlan(
            self.source, self.target, self.read_dtype, spec, self.head_dim, offset, tile_rows
        )
