"""Own the reading of rows out of a safetensors file."""

from __future__ import annotations

from collections.abc import Collection

from codellama_convert.formats.safetensors_reader import SafetensorsIndex
from codellama_convert.formats.tensor_reader import TensorReader
from codellama_convert.storage.blocks import IoMode


class SafetensorsReader(TensorReader):
    """An open safetensors file.

    The format keeps no sums: what an earlier run read is confirmed by reading it again.

    Attributes:
        index: What the file holds.
    """

    index: SafetensorsIndex

    def __init__(
        self, index: SafetensorsIndex, names: Collection[str], *, io_mode: IoMode = "buffered"
    ) -> None:
        """Open a file to read some of its tensors, each row once.

        Args:
            index: From `read_safetensors`.
            names: The tensors that will be read.
            io_mode: How they are read.

        Raises:
            CheckpointError: If the file cannot be opened, or changed since `read_safetensors`.
        """
        super().__init__(index, names, io_mode=io_mode)
