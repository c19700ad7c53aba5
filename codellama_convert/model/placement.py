"""Own where the files of a side have a tensor: which rows and columns lie in which of them.

Meta's side splits a tensor over its ranks or copies it, Hugging Face's has it in one file. A
conversion is what lies between two placements: rows are cut where either side cuts them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from codellama_convert.tensors import rows_and_columns


class Part(NamedTuple):
    """What one file holds of a tensor: a block of the whole one; a tuple, as a plan makes thousands.

    Attributes:
        file: The file's number on its side; a rank's on Meta's.
        rows: Of the whole tensor.
        columns: Of the whole tensor.
        first: Elements that the file holds of the tensor before those of this block.
    """

    file: int
    rows: range
    columns: range
    first: int = 0

    def elements_before(self, row: int) -> int:
        """Count the elements that the file holds of the tensor before a row of this block."""
        return self.first + (row - self.rows.start) * len(self.columns)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the files of a side have one tensor.

    Attributes:
        name: What they call it.
        shape: Of the whole tensor.
        files: The numbers of those that hold some of it.
        split: The dimension that is split over them; None where each of them has all of it.
        interleaved: Whether rotary rows are in Meta's order, and not in Hugging Face's.
        only: The one of those files whose part counts; None means all of them.
    """

    name: str
    shape: tuple[int, ...]
    files: range
    split: int | None
    interleaved: bool = False
    only: int | None = None

    @property
    def part_shape(self) -> tuple[int, ...]:
        """The shape that each file holds."""
        if self.split is None:
            return self.shape
        n_files, split = len(self.files), self.split
        return tuple([n // n_files if at == split else n for at, n in enumerate(self.shape)])

    @property
    def parts(self) -> tuple[Part, ...]:
        """What each file holds of it, in order: some rows, some columns, or a copy of all."""
        n_rows, n_columns = rows_and_columns(self.part_shape)
        rows, columns, split = range(n_rows), range(n_columns), self.split
        parts = [
            Part(
                file,
                _block(number, n_rows) if split == 0 else rows,
                _block(number, n_columns) if split == 1 else columns,
            )
            for number, file in enumerate(self.files)
            if self.only in (None, file)
        ]
        return tuple(parts)

    @property
    def form(self) -> tuple[object, ...]:
        """All but its name and which files: of thousands of tensors, few differ in it."""
        return self.shape, self.split, len(self.files), self.interleaved, self.only is None

    @property
    def is_copied(self) -> bool:
        """Whether every file has all of it."""
        return self.split is None

    @property
    def sources(self) -> tuple[Part, ...]:
        """The parts that hold each element once: of copies, the first."""
        if not self.is_copied:
            return self.parts
        return tuple(part for part in self.parts if part.file == self.files.start)


def in_one_file(name: str, shape: tuple[int, ...], file: int = 0) -> Placement:
    """Place a whole tensor in one file."""
    return Placement(name, shape, range(file, file + 1), None)


def in_pairs(parts: Iterable[Part], head_dim: int, *, interleaved: bool) -> Iterator[Part]:
    """Take the two rotary rows that are rotated together as one row, twice as wide.

    Where they are interleaved, the file has them side by side; where they are half-split, it has the
    left halves of a head's rows first. So another order of rows is a split by columns, and less than
    a head can be moved at once.

    Args:
        parts: Whole heads each, of all columns.
        head_dim: Rows of a head.
        interleaved: Whether they are in Meta's order, and not in Hugging Face's.

    Yields:
        The same elements, in the order of the file.
    """
    half = head_dim // 2
    for part in parts:
        n_columns = len(part.columns)
        left, right = range(n_columns), range(n_columns, 2 * n_columns)
        if interleaved:
            yield Part(part.file, _halved(part.rows), range(2 * n_columns))
            continue
        for start in range(part.rows.start, part.rows.stop, head_dim):
            rows = _halved(range(start, start + head_dim))
            yield Part(part.file, rows, left, part.elements_before(start))
            yield Part(part.file, rows, right, part.elements_before(start + half))


def _halved(rows: range) -> range:
    return range(rows.start // 2, rows.stop // 2)


def _block(number: int, size: int) -> range:
    return range(number * size, (number + 1) * size)


@dataclass(frozen=True, slots=True)
class Move:
    """A band of rows that is read from some parts and written to some.

    Attributes:
        rows: Of the whole tensor.
        sources: The parts that hold them, each element once.
        targets: The parts that get them.
    """

    rows: range
    sources: tuple[Part, ...]
    targets: tuple[Part, ...]


def moves(sources: Sequence[Part], targets: Sequence[Part], most_rows: int) -> Iterator[Move]:
    """Cut a tensor's rows at the boundaries of both sides, and into bands that fit into a buffer.

    Args:
        sources: What is read, each element once.
        targets: What is written.
        most_rows: Of a band; whole heads where their rows are reordered, and both sides hold whole
            heads, so no band cuts one.

    Yields:
        The bands, in order; rows that no part gets are in none of them.
    """
    cuts = {bound for part in (*sources, *targets) for bound in (part.rows.start, part.rows.stop)}
    for start, stop in pairwise(sorted(cuts)):
        getting = tuple(part for part in targets if start in part.rows)
        holding = tuple(p for p in sources if start in p.rows and _is_wanted(p, getting))
        for first in range(start, stop, most_rows) if getting else ():
            yield Move(range(first, min(first + most_rows, stop)), holding, getting)


def parts_read(source: Placement, target: Placement) -> dict[Part, range]:
    """Report which rows of the whole tensor `moves` reads of each part of the source."""
    targets, found = target.parts, {}
    for part in source.sources:
        getting = [one.rows for one in targets if _meet(one.columns, part.columns)]
        start = max(part.rows.start, min((rows.start for rows in getting), default=0))
        stop = min(part.rows.stop, max((rows.stop for rows in getting), default=0))
        if start < stop:
            found[part] = range(start, stop)
    return found


def _is_wanted(part: Part, targets: Iterable[Part]) -> bool:
    return any(_meet(part.columns, target.columns) for target in targets)


def _meet(one: range, other: range) -> bool:
    return max(one.start, other.start) < min(one.stop, other.stop)
