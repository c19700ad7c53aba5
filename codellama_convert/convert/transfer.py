"""Own the moving of tiles: several tensors of one output file at a time, from the ranks into it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from codellama_convert.convert.movers import Movers
from codellama_convert.formats.tensor_reader import UNSIGNED, Rows
from codellama_convert.meta.rank_reader import RankReader
from codellama_convert.model.placement import Move
from codellama_convert.model.rope import to_half_split
from codellama_convert.plan.plan import FilePlan
from codellama_convert.plan.tiles import TensorPlan
from codellama_convert.storage.checksums import combine
from codellama_convert.storage.output_file import OutputFile, SpanWriter
from codellama_convert.storage.threads import share_out
from codellama_convert.storage.watch import Watch


def write_tensors(
    file: FilePlan,
    output: OutputFile,
    source: TileSource,
    *,
    buffers: Sequence[tuple[memoryview, memoryview]],
    watch: Watch,
) -> dict[str, int]:
    """Write the data of one output file; its header is not written here.

    Args:
        file: What it holds.
        output: The open file, of its final size.
        source: The open ranks.
        buffers: For each worker, one to read into and one to write from.
        watch: Whom each tile that was written is reported to.

    Returns:
        The CRC-32 of each tensor's bytes.

    Raises:
        Interrupted: If somebody asked to stop; the file is left unfinished.
        ConvertError: If reading, casting or writing fails.
    """

    def write_tensor(tensor: TensorPlan, pair: tuple[memoryview, memoryview], watch: Watch) -> int:
        read_buffer, write_buffer = pair
        span = SpanWriter(output, tensor.offset, write_buffer)
        crc = 0
        for tile in tensor.tiles():
            n_bytes = len(tile.rows) * tensor.row_bytes
            tile_crc = source.fill(span.space(n_bytes), tensor, tile, read_buffer)
            crc = combine(crc, tile_crc, n_bytes)
            span.commit(n_bytes)
            watch.advance(n_bytes)
        span.finish()
        return crc

    crcs = share_out(file.tensors, buffers, write_tensor, watch)
    return {tensor.spec.name: crc for tensor, crc in zip(file.tensors, crcs, strict=True)}


@dataclass(frozen=True, slots=True)
class TileSource:
    """The open ranks and the way from their elements to the output's.

    Attributes:
        readers: One a rank, in order.
        movers: How elements are moved.
    """

    readers: Sequence[RankReader]
    movers: Movers

    def fill(
        self, target: memoryview, tensor: TensorPlan, tile: Move, read_buffer: memoryview
    ) -> int:
        """Read a tile from its rank or ranks and put it together.

        Args:
            target: Where it goes; exactly the tile's bytes.
            tensor: The tensor that it is of.
            tile: Which rows.
            read_buffer: To read into, of the plan's size.

        Returns:
            The CRC-32 of the tile's bytes.

        Raises:
            ConvertError: If reading or casting fails.
        """
        elements = np.frombuffer(target, UNSIGNED[tensor.spec.dtype.itemsize])
        elements = elements.reshape(len(tile.rows), tensor.spec.n_columns)
        name, head_dim = tensor.spec.name, tensor.head_dim
        mover = self.movers[tensor.read_dtype]
        crcs = []
        for rows, part, crc in self._parts(tensor, tile, elements, read_buffer):
            crcs.append(crc)
            if head_dim is None:
                mover.move(rows, part, name=name)
            else:
                reordered = to_half_split(rows, head_dim)
                mover.move(reordered, part.reshape(reordered.shape), name=name)
        if len(crcs) == 1 and crcs[0] is not None and head_dim is None and mover.keeps_bits:
            return crcs[0]  # the tile is what was read: its sum is known
        return zlib.crc32(target)

    def _parts(
        self, tensor: TensorPlan, tile: Move, target: Rows, read_buffer: memoryview
    ) -> Iterator[tuple[Rows, Rows, int | None]]:
        """Yield each rank's rows of a tile, the part of the tile that they fill, and their sum."""
        for part in tile.sources:
            rows, crc = self.readers[part.file].read_rows(
                tensor.source.name,
                tile.rows.start - part.rows.start,
                len(tile.rows),
                read_buffer,
            )
            yield rows, target[:, part.columns.start : part.columns.stop], crc
