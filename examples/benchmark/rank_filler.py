"""Write a rank of made-up weights in place, with its CRC-32s; part of make_true_size_checkpoint.py.

torch lays the file out and leaves the weights as holes. Values are then written over the holes tile
by tile, so the weights are never held in RAM, and the true CRC-32s into the zip structures: torch's
0 means "not computed", and a reader of such a file is spared a work that a real one costs.
"""

from __future__ import annotations

import mmap
import os
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from codellama_convert.storage.checksums import combine

BLOCK_BYTES = 4096
TILE_BYTES = 4 << 20
N_ROTATIONS = 64
ROTATION_BYTES = 48 * BLOCK_BYTES
ELEMENT_BYTES = 2  # bfloat16


@dataclass(frozen=True, slots=True)
class Record:
    """One storage in a .pth file.

    Attributes:
        offset: The first byte's position in the file.
        n_bytes: Its size.
        crc_positions: Where its CRC-32 is written: in the zip directory and behind the data.
    """

    offset: int
    n_bytes: int
    crc_positions: tuple[int, int]


def save_holes(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Let torch write a rank whose weights are holes in the file, and whose CRC-32s are 0.

    Args:
        path: The new file.
        shapes: By name.
    """
    import torch  # noqa: PLC0415 - a second and 200 MB, which only making a checkpoint needs
    from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: PLC0415
    from torch.serialization import skip_data  # noqa: PLC0415

    with FakeTensorMode():
        rank = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    with skip_data(materialize_fake_tensors=True):
        torch.save(rank, path)


def find_records(path: Path) -> Iterator[Record]:
    """Find the storages of a .pth file.

    Args:
        path: A file that torch wrote.

    Yields:
        The records data/0, data/1, ...: torch numbers them in the order of the saved dict.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        position = archive.start_dir
        for entry in archive.infolist():
            file.seek(position + 28)
            n_name, n_extra, n_comment = struct.unpack("<3H", file.read(6))
            directory_crc = position + 16
            position += 46 + n_name + n_extra + n_comment
            if "/data/" not in entry.filename:
                continue
            # Only the local header locates the data: its extra field pads to 64 bytes.
            file.seek(entry.header_offset + 26)
            n_name, n_extra = struct.unpack("<2H", file.read(4))
            offset = entry.header_offset + 30 + n_name + n_extra
            yield Record(offset, entry.file_size, (directory_crc, offset + entry.file_size + 4))


def zeros_crc(n_bytes: int) -> int:
    """Compute the CRC-32 of zeros without reading any.

    Args:
        n_bytes: How many.

    Returns:
        The CRC-32, by doubling.
    """
    crc, power, length = 0, zlib.crc32(b"\0"), 1
    while n_bytes:
        if n_bytes & 1:
            crc = combine(crc, power, length)
        power, length, n_bytes = combine(power, power, length), 2 * length, n_bytes >> 1
    return crc


class Pattern:
    """A block of normal values in bfloat16, and the CRC-32s of its pieces.

    Attributes:
        values: The bytes, page-aligned.
    """

    def __init__(self) -> None:
        """Draw the values; the same in every process."""
        import numpy as np  # noqa: PLC0415

        n_bytes = TILE_BYTES + N_ROTATIONS * ROTATION_BYTES
        self.values = memoryview(mmap.mmap(-1, n_bytes))
        noise = np.random.default_rng(0).standard_normal(n_bytes // ELEMENT_BYTES, np.float32)
        # The upper half of a float32 is a bfloat16; 0.02 is how Llama's matrices are initialised.
        np.frombuffer(self.values, np.uint16)[:] = (0.02 * noise).view(np.uint32) >> 16
        self._crcs: dict[tuple[int, int], int] = {}

    def piece(self, rotation: int, n_bytes: int) -> tuple[memoryview, int]:
        """Give some values and their CRC-32.

        Args:
            rotation: Where they begin: 0 to `N_ROTATIONS` - 1.
            n_bytes: How many, at most a tile.
        """
        start = rotation * ROTATION_BYTES
        view = self.values[start : start + n_bytes]
        key = (rotation, n_bytes)
        if key not in self._crcs:
            self._crcs[key] = zlib.crc32(view)
        return view, self._crcs[key]


def fill_record(fds: tuple[int, int], record: Record, pattern: Pattern, seed: str) -> int:
    """Write made-up values over a record, tile by tile.

    Args:
        fds: The file, open through the page cache and past it.
        record: Where.
        pattern: The values.
        seed: The same seed gives the same values.

    Returns:
        Their CRC-32.
    """
    cached, direct = fds
    choose = random.Random(seed)  # noqa: S311 - weights, no secrets
    crc, position, end = 0, record.offset, record.offset + record.n_bytes
    while position < end:
        to_block = -position % BLOCK_BYTES
        whole = (end - position) // BLOCK_BYTES * BLOCK_BYTES
        n_bytes = min(to_block or whole or end - position, TILE_BYTES, end - position)
        view, piece_crc = pattern.piece(choose.randrange(N_ROTATIONS), n_bytes)
        # A block is written in one mode only: what shares one with a neighbour, through the cache.
        os.pwrite(direct if not position % BLOCK_BYTES and whole else cached, view, position)
        crc = combine(crc, piece_crc, n_bytes)
        position += n_bytes
    return crc


def near_one(n_values: int, seed: int) -> bytes:
    """Draw the weight of a norm: values near one, the same for every rank.

    Args:
        n_values: How many.
        seed: The same seed gives the same values.

    Returns:
        Their bytes in bfloat16.
    """
    import numpy as np  # noqa: PLC0415

    noise = np.random.default_rng(seed).standard_normal(n_values, np.float32)
    return ((1 + 0.1 * noise).view(np.uint32) >> 16).astype("<u2").tobytes()


def write_head(fd: int, record: Record, head: bytes) -> int:
    """Write a few first bytes of a record of zeros; give the CRC-32 of the whole."""
    os.pwrite(fd, head, record.offset)
    rest = record.n_bytes - len(head)
    return combine(zlib.crc32(head), zeros_crc(rest), rest)


def open_twice(path: Path) -> tuple[int, int]:
    """Open a file through the page cache and, where the file system can, past it."""
    cached = os.open(path, os.O_RDWR)
    try:
        return cached, os.open(path, os.O_WRONLY | os.O_DIRECT)
    except OSError:
        return cached, os.dup(cached)
