"""Own the reading of rows out of a rank."""

from __future__ import annotations

from collections.abc import Collection

from codellama_convert.formats.pth.reader import RankIndex
from codellama_convert.formats.tensor_reader import TensorReader
from codellama_convert.storage.blocks import IoMode
from codellama_convert.storage.watch import Watch


class RankReader(TensorReader):
    """An open rank; its zip directory has a CRC-32 for each storage, which is checked.

    Attributes:
        index: What the rank holds.
    """

    index: RankIndex

    def __init__(
        self, index: RankIndex, names: Collection[str], *, io_mode: IoMode = "buffered"
    ) -> None:
        """Open a rank to read some of its tensors, each row once.

        Args:
            index: From `read_rank`.
            names: The tensors that will be read.
            io_mode: How they are read.

        Raises:
            CheckpointError: If the file cannot be opened, or changed since `read_rank`.
        """
        super().__init__(index, names, io_mode=io_mode)

    def stated_crc(self, buffer: memoryview) -> int | None:
        """Report the CRC-32 that the whole file has if its zip directory is right.

        Args:
            buffer: From `aligned_buffer`, to read into.

        Returns:
            The CRC-32, without reading the weights; None if the directory lacks a sum.

        Raises:
            CheckpointError: If the file ends before, or cannot be read.
        """
        crcs = {name: storage.crc for name, storage in self.index.storages.items()}
        return None if None in crcs.values() else self._joined(crcs, buffer, Watch())
