"""Own the choice of tile and workers, so that all buffers together stay within a budget."""

from __future__ import annotations

from collections.abc import Collection

from codellama_convert.choices import DEFAULT_MAX_RAM_BYTES
from codellama_convert.errors import ConfigError
from codellama_convert.plan.tiles import Passage
from codellama_convert.storage.blocks import SLACK_BYTES, block_ceil
from codellama_convert.storage.buffers import LARGE_PAGE_BYTES

# The four buffers of two workers, with their slack, are five large pages. Larger tiles gained nothing
# in the benchmark; below the smallest, a second worker is worth less than the system calls it costs.
LARGEST_TILE_BYTES = 5 * LARGE_PAGE_BYTES // 4 - SLACK_BYTES
_SMALLEST_SHARED_TILE_BYTES = 512 << 10


def choose_tile_and_workers(
    passages: Collection[Passage],
    *,
    max_ram_bytes: int | None,
    workers: int,
    keep_workers: bool,
) -> tuple[int, int]:
    """Choose the largest tiles that fit; fewer workers only where tiles would get too small.

    Args:
        passages: The model's tensors, one of each form: of thousands of layers there are few.
        max_ram_bytes: Largest sum of all buffers; None is `DEFAULT_MAX_RAM_BYTES`, which so many
            workers as were asked for may exceed.
        workers: Tensors in flight, at most.
        keep_workers: Whether there must be as many.

    Returns:
        Bytes of a tile's larger side, and workers.

    Raises:
        ConfigError: If not even one row (or pair) fits.
    """
    budget = DEFAULT_MAX_RAM_BYTES if max_ram_bytes is None else max_ram_bytes
    fewest = workers if keep_workers else 1
    affordable = budget // _bytes_of_a_worker(passages, _SMALLEST_SHARED_TILE_BYTES)
    n_workers = max(fewest, min(workers, affordable))
    may_exceed = max_ram_bytes is None and keep_workers
    smallest = _SMALLEST_SHARED_TILE_BYTES if may_exceed else 1
    tile_bytes = LARGEST_TILE_BYTES
    least = needed = n_workers * _bytes_of_a_worker(passages, tile_bytes)
    while needed > budget:
        if tile_bytes > smallest:
            tile_bytes = 1 << (tile_bytes - 1).bit_length() - 1  # the next smaller power of two
        elif may_exceed:
            break
        else:
            raise ConfigError(
                f"--max_ram {budget} bytes is too small: the longest row, or pair of rotary rows, "
                f"needs {least} bytes of buffers",
                hint="allow at least that much"
                + (", or ask for fewer workers" if fewest > 1 else ""),
            )
        needed = n_workers * _bytes_of_a_worker(passages, tile_bytes)
        least = min(least, needed)
    return tile_bytes, n_workers


def buffer_pair_bytes(read_bytes: int, write_bytes: int) -> int:
    """Add up the two buffers of a worker: to read one tile and to write one, and slack."""
    return sum(block_ceil(n_bytes) + SLACK_BYTES for n_bytes in (read_bytes, write_bytes))


def _bytes_of_a_worker(passages: Collection[Passage], tile_bytes: int) -> int:
    tensors = [passage.plan(tile_bytes=tile_bytes) for passage in passages]
    return buffer_pair_bytes(
        max(tensor.read_bytes for tensor in tensors), max(tensor.write_bytes for tensor in tensors)
    )
