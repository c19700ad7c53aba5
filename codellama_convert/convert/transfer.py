"""Own the moving of tiles: several tensors at a time, from the files of one side into the other's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from codellama_convert.convert.movers import Movers
from codellama_convert.formats.tensor_reader import UNSIGNED, Rows, TensorReader
from codellama_convert.model.placement import Move, Part
from codellama_convert.model.rope import to_half_split, to_interleaved
from codellama_convert.plan.tiles import TensorPlan
from codellama_convert.storage.blocks import SLACK_BYTES, block_ceil
from codellama_convert.storage.checksums import CrcLedger, crc32
from codellama_convert.storage.output_file import OutputFile, SpanWriter
from codellama_convert.storage.threads import share_out
from codellama_convert.storage.watch import Watch

# By file: the CRC-32 of what it got of a tensor.
PartCrcs = Mapping[int, int]


def write_tensors(
    tensors: Sequence[TensorPlan],
    outputs: Mapping[int, OutputFile],
    source: TileSource,
    *,
    buffers: Sequence[tuple[memoryview, memoryview]],
    watch: Watch,
) -> dict[str, PartCrcs]:
    """Write the data of some tensors, each into all files that get some of it; nothing else.

    Args:
        tensors: What is written; each row is read once, however many files it goes to.
        outputs: The open files by their number on the target's side, each of its final size.
        source: The open files of the other side.
        buffers: For each worker, one to read into and one to write from.
        watch: Whom each tile that was written is reported to.

    Returns:
        By tensor, what each file got.

    Raises:
        Interrupted: If somebody asked to stop; the files are left unfinished.
        ConvertError: If reading, casting or writing fails.
    """

    def write_tensor(
        tensor: TensorPlan, pair: tuple[memoryview, memoryview], watch: Watch
    ) -> PartCrcs:
        read_buffer, write_buffer = pair
        spans = _Spans(tensor, outputs, write_buffer)
        for tile in tensor.tiles():
            spaces = spans.spaces(tile)
            spans.commit(tile, source.fill(spaces, tensor, tile, read_buffer))
            watch.advance(tensor.rows_of(tile) * tensor.row_bytes)
        spans.finish()
        return spans.crcs()

    found = share_out(tensors, buffers, write_tensor, watch)
    return {tensor.spec.name: crcs for tensor, crcs in zip(tensors, found, strict=True)}


class _Spans:
    """The ranges of the files that a tensor goes to, each filled from front to back.

    Those that one tile goes to are open at once, side by side in one buffer.
    """

    def __init__(
        self, tensor: TensorPlan, outputs: Mapping[int, OutputFile], buffer: memoryview
    ) -> None:
        self._tensor, self._outputs, self._buffer = tensor, outputs, buffer
        self._targets: tuple[Part, ...] = ()
        self._open: list[SpanWriter] = []
        self._places: list[range] = []  # of the tile that `spaces` was asked for
        self._got = {part.file: CrcLedger(tensor.part_bytes) for part in tensor.target.parts}

    def spaces(self, tile: Move) -> list[memoryview]:
        """Return where the bytes of a tile go, target by target."""
        self._places = [self._place_of(tile, part) for part in tile.targets]
        if tile.targets != self._targets:
            self.finish()
            self._targets = tile.targets
            share = block_ceil(self._tensor.part_tile_bytes) + SLACK_BYTES
            self._open = [
                SpanWriter(
                    self._outputs[part.file],
                    self._tensor.offset + place.start,
                    self._buffer[n * share :],
                )
                for n, (part, place) in enumerate(zip(tile.targets, self._places, strict=True))
            ]
        return [
            span.space(len(place)) for span, place in zip(self._open, self._places, strict=True)
        ]

    def _place_of(self, tile: Move, part: Part) -> range:
        """Return which bytes of the tensor's data in a file a tile is."""
        bounds = (part.elements_before(row) for row in (tile.rows.start, tile.rows.stop))
        return range(*(bound * self._tensor.spec.dtype.itemsize for bound in bounds))

    def commit(self, tile: Move, crcs: Sequence[int]) -> None:
        """Take the tile that was put into `spaces`."""
        each = zip(self._open, self._places, tile.targets, crcs, strict=True)
        for span, place, part, crc in each:
            self._got[part.file].add_crc(place.start, place.stop, crc)
            span.commit(len(place))

    def finish(self) -> None:
        """Write what is left in the buffers."""
        for span in self._open:
            span.finish()
        self._open = []

    def crcs(self) -> PartCrcs:
        """Return what each file got, after all tiles."""
        crcs = {}
        for file, got in self._got.items():
            assert got.crc is not None
            crcs[file] = got.crc
        return crcs


@dataclass(frozen=True, slots=True)
class TileSource:
    """The open files of the source and the way from their elements to the target's.

    Attributes:
        readers: By their number on the source's side.
        movers: How elements are moved.
    """

    readers: Sequence[TensorReader]
    movers: Movers

    def fill(
        self,
        targets: Sequence[memoryview],
        tensor: TensorPlan,
        tile: Move,
        read_buffer: memoryview,
    ) -> list[int]:
        """Read a tile from the parts that hold it and put it together, or apart.

        Args:
            targets: Where each target's share goes; exactly its bytes.
            tensor: The tensor that it is of.
            tile: Which rows.
            read_buffer: To read into, of the plan's size.

        Returns:
            The CRC-32 of each share.

        Raises:
            ConvertError: If reading or casting fails.
        """
        shares = [
            np.frombuffer(target, UNSIGNED[tensor.spec.dtype.itemsize]).reshape(
                len(tile.rows), len(part.columns)
            )
            for target, part in zip(targets, tile.targets, strict=True)
        ]
        filled = list(zip(tile.targets, shares, strict=True))
        if tensor.target.is_copied:  # only the first file's is put together
            filled = [one for one in filled if one[0].file == tile.targets[0].file]
        stays = self._is_read_whole(tensor, tile)
        crc_read = None
        for part in tile.sources:
            reader = self.readers[part.file]
            # Direct I/O reads whole blocks, which do not fit there.
            is_read_in_place = stays and not reader.direct
            rows, crc_read = reader.read_rows(
                tensor.source.name,
                *tensor.rows_in(part, tile),
                targets[0] if is_read_in_place else read_buffer,
            )
            rows = rows.reshape(len(tile.rows), len(part.columns))
            for target, share in filled:
                self._move(tensor, part, rows, target, share)
        for number, copy in enumerate(shares[len(filled) :]):
            np.copyto(copy, shares[number % len(filled)])
        if crc_read is not None and stays:
            return [crc_read] * len(shares)  # each share is what was read: its sum is known
        return [crc32(target) for target in targets]

    def _move(self, tensor: TensorPlan, part: Part, rows: Rows, target: Part, share: Rows) -> None:
        """Move the columns that a part of either side has in common."""
        start = max(part.columns.start, target.columns.start)
        stop = min(part.columns.stop, target.columns.stop)
        if start >= stop:
            return
        before = rows[:, start - part.columns.start : stop - part.columns.start]
        after = share[:, start - target.columns.start : stop - target.columns.start]
        if tensor.is_reordered:
            assert tensor.head_dim is not None
            reorder = to_half_split if tensor.source.interleaved else to_interleaved
            before = reorder(before, tensor.head_dim)
            after = after.reshape(before.shape)
        self.movers[tensor.read_dtype].move(before, after, name=tensor.spec.name)

    def _is_read_whole(self, tensor: TensorPlan, tile: Move) -> bool:
        """Return whether each share of a tile is the very bytes that were read."""
        (first, *others) = tile.sources
        return (
            not others
            and not tensor.is_reordered
            and self.movers[tensor.read_dtype].keeps_bits
            and all(target.columns == first.columns for target in tile.targets)
        )
