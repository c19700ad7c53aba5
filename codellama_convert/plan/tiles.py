"""Own how a tensor is cut into tiles, and what one of them takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

from codellama_convert.model.placement import Move, Part, Placement, in_pairs, moves, parts_read
from codellama_convert.storage.blocks import SLACK_BYTES, block_ceil
from codellama_convert.tensors import Dtype, TensorSpec, rows_and_columns


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
        tile_rows: Rows handled at once. Where they are reordered, whole heads, or fewer in pairs.
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
        """Most bytes of a tile that go to one place of a file."""
        n_columns = len(self.target.parts[0].columns)
        return self.tile_rows * n_columns * self.spec.dtype.itemsize // self._places_in_a_file

    @property
    def write_bytes(self) -> int:
        """Most bytes that are written from one buffer: a tile, apart for each place it goes to."""
        n_files = 1 if self.target.split == 0 else len(self.target.parts)
        share = block_ceil(self.part_tile_bytes) + SLACK_BYTES
        return self.part_tile_bytes + (n_files * self._places_in_a_file - 1) * share

    @property
    def _places_in_a_file(self) -> int:
        return 2 if self.in_pairs and not self.target.interleaved else 1

    @property
    def _is_in_other_order(self) -> bool:
        return self.head_dim is not None and self.source.interleaved != self.target.interleaved

    @property
    def in_pairs(self) -> bool:
        """Whether a tile is less than a head of rows in another order: see `placement.in_pairs`."""
        return self._is_in_other_order and self.tile_rows < (self.head_dim or 0)

    @property
    def is_reordered(self) -> bool:
        """Whether a tile is whole heads, whose rows are in another order on the other side."""
        return self._is_in_other_order and not self.in_pairs

    @property
    def form(self) -> tuple[object, ...]:
        """What the cost of a tile depends on."""
        dtypes = self.read_dtype.code, self.spec.dtype.code
        return self.source.form, self.target.form, self.head_dim, self.tile_rows, dtypes

    def only(self, file: int) -> TensorPlan:
        """Plan what one of the files gets of it, in the same tiles as all of them."""
        return replace(self, target=replace(self.target, only=file))

    def in_whole_heads(self) -> TensorPlan:
        """Plan the same in tiles of at least a head."""
        return replace(self, tile_rows=max(self.tile_rows, self.head_dim or 0))

    def tiles(self) -> Iterator[Move]:
        """Cut the rows into tiles; one lies inside of a part of each side that splits rows."""
        sources = self._as_moved(self.source.sources, self.source)
        targets = self._as_moved(self.target.parts, self.target)
        return moves(sources, targets, self.tile_rows // (2 if self.in_pairs else 1))

    def _as_moved(self, parts: tuple[Part, ...], side: Placement) -> tuple[Part, ...]:
        """Return parts of a side as tiles name them: in pairs of rows where a tile is less than a head."""
        if not self.in_pairs:
            return parts
        assert self.head_dim is not None
        return tuple(in_pairs(parts, self.head_dim, interleaved=side.interleaved))

    def rows_of(self, tile: Move) -> int:
        """Count the rows of a tile, which may be pairs."""
        return len(tile.rows) * (2 if self.in_pairs else 1)

    def rows_in(self, part: Part, tile: Move) -> tuple[int, int]:
        """Return which rows a tile is of what a file of the source holds: the first, how many."""
        _, n_columns = rows_and_columns(self.source.part_shape)
        bounds = (part.elements_before(row) for row in (tile.rows.start, tile.rows.stop))
        first, stop = (bound // n_columns for bound in bounds)
        return first, stop - first


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
        return self.source.form, self.target.form, self.head_dim, self.read_dtype.code

    def plan(self, *, offset: int = 0, tile_bytes: int) -> TensorPlan:
        """Choose how many rows make a tile: at least one row, or a pair where they are reordered.

        Args:
            offset: Its first byte's position in each file that it is written to.
            tile_bytes: Largest tile, on the side where it takes more, if a row or a pair is not
                larger.

        Returns:
            The plan.
        """
        spec = self.spec
        row_bytes = spec.n_columns * max(self.dtype.itemsize, self.read_dtype.itemsize)
        part_rows = (len(side.parts[0].rows) for side in (self.source, self.target))
        tile_rows = min(self._tile_rows(tile_bytes // row_bytes), *part_rows)
        return TensorPlan(
            self.source, self.target, self.read_dtype, spec, self.head_dim, offset, tile_rows
        )

    def _tile_rows(self, most: int) -> int:
        """Choose how many of `most` rows make a tile, before it is known how many a part has."""
        head_dim = self.head_dim
        if head_dim is None or self.source.interleaved == self.target.interleaved:
            return max(1, most)
        if most >= head_dim:
            return most // head_dim * head_dim
        # A head in as few pieces as can be, of about the same size.
        n_pairs = head_dim // 2
        n_pieces = -(-n_pairs // max(1, most // 2))
        return 2 * -(-n_pairs // n_pieces)
