"""Own the choice of tile and workers, so that all buffers together stay within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from codellama_convert.errors import ConfigError
from codellama_convert.model.tensor_table import TensorLayout
from codellama_convert.plan.tiles import TensorPlan, choose_tile_rows
from codellama_convert.storage.blocks import SLACK_BYTES, block_ceil
from codellama_convert.tensors import Dtype

DEFAULT_MAX_RAM_BYTES = 32_000_000
# Larger tiles gained nothing in the benchmark; below the smallest, a second worker is worth less
# than the system calls it costs.
LARGEST_TILE_BYTES = 4 << 20
_SMALLEST_SHARED_TILE_BYTES = 512 << 10


def choose_tile_and_workers(
    layout: Sequence[TensorLayout],
    *,
    dtype: Dtype,
    max_ram_bytes: int | None,
    workers: int,
    keep_workers: bool,
) -> tuple[int, int]:
    """Choose the largest tiles that fit; fewer workers only where tiles would get too small.

    Args:
        layout: The model's tensors.
        dtype: Of the written tensors.
        max_ram_bytes: Largest sum of all buffers; None is `DEFAULT_MAX_RAM_BYTES`, which so many
            workers as were asked for may exceed.
        workers: Tensors in flight, at most.
        keep_workers: Whether there must be as many.

    Returns:
        Bytes of a tile's larger side, and workers.

    Raises:
        ConfigError: If not even one row (or head) fits.
    """
    # What a tile takes depends on a tensor's form alone, and of thousands of layers there are few.
    forms = tuple(
        {(t.spec.shape, t.spec.dtype, t.meta.part_shape, t.head_dim): t for t in layout}.values()
    )
    budget = DEFAULT_MAX_RAM_BYTES if max_ram_bytes is None else max_ram_bytes
    fewest = workers if keep_workers else 1
    affordable = budget // _bytes_of_a_worker(forms, dtype, _SMALLEST_SHARED_TILE_BYTES)
    n_workers = max(fewest, min(workers, affordable))
    may_exceed = max_ram_bytes is None and keep_workers
    smallest = _SMALLEST_SHARED_TILE_BYTES if may_exceed else 1
    tile_bytes = LARGEST_TILE_BYTES
    while (needed := n_workers * _bytes_of_a_worker(forms, dtype, tile_bytes)) > budget:
        if tile_bytes > smallest:
            tile_bytes //= 2
        elif may_exceed:
            break
        else:
            raise ConfigError(
                f"--max_ram {budget} bytes is too small: the largest row or head needs "
                f"{needed} bytes of buffers",
                hint="allow at least that much"
                + (", or ask for fewer workers" if fewest > 1 else ""),
            )
    return tile_bytes, n_workers


def buffer_pair_bytes(read_bytes: int, write_bytes: int) -> int:
    """Add up the two buffers of a worker: to read one tile and to write one, and slack."""
    return sum(block_ceil(n_bytes) + SLACK_BYTES for n_bytes in (read_bytes, write_bytes))


def _bytes_of_a_worker(forms: Sequence[TensorLayout], dtype: Dtype, tile_bytes: int) -> int:
    tensors = [plan_tensor(form, dtype, offset=0, tile_bytes=tile_bytes) for form in forms]
    return buffer_pair_bytes(
        max(tensor.read_bytes for tensor in tensors), max(tensor.write_bytes for tensor in tensors)
    )


def plan_tensor(layout: TensorLayout, dtype: Dtype, *, offset: int, tile_bytes: int) -> TensorPlan:
    """Plan how one tensor gets from the ranks into a file.

    Args:
        layout: Where it is on both sides.
        dtype: Of the written elements.
        offset: Its first byte's position in the file.
        tile_bytes: Largest tile, if a row or a head is not larger.

    Returns:
        The plan.
    """
    spec = replace(layout.spec, dtype=dtype)
    source, target = layout.meta, layout.hugging_face
    row_bytes = spec.n_columns * max(dtype.itemsize, layout.spec.dtype.itemsize)
    tile_rows = choose_tile_rows(
        source, target, row_bytes=row_bytes, head_dim=layout.head_dim, tile_bytes=tile_bytes
    )
    return TensorPlan(source, target, layout.spec.dtype, spec, layout.head_dim, offset, tile_rows)
