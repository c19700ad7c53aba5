"""Own a look at an output that is said to be of a source: the first rows of each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from codellama_convert.convert.movers import Movers
from codellama_convert.convert.transfer import TileSource
from codellama_convert.convert.write_pass import open_readers
from codellama_convert.plan.ranks.weights import RanksJob
from codellama_convert.plan.tiles import TensorPlan
from codellama_convert.plan.weights import WeightsJob
from codellama_convert.storage.buffers import aligned_buffer
from codellama_convert.storage.input_file import InputFile

_SAMPLE_BYTES = 4096  # of a tensor; one row, or a pair, may be larger


def begins_alike(output_dir: Path, weights: WeightsJob | RanksJob) -> bool:
    """Return whether each tensor of an output begins as the conversion would write it.

    Args:
        output_dir: It holds the files of the plan.
        weights: The source, and what is written of it.

    Raises:
        ConvertError: If a file cannot be read, or a value cannot be cast.
    """
    plan = weights.plan
    with ExitStack() as stack:
        movers = Movers(weights.source_dtypes, plan.dtype)
        stack.callback(movers.close)
        readers = open_readers(weights, "buffered", stack)
        outputs = {
            file.number: stack.enter_context(InputFile(output_dir / file.name))
            for file in plan.files
        }
        source = TileSource(readers, movers)
        return all(_begins_alike(tensor, source, outputs) for tensor in plan.tensors)


def _begins_alike(tensor: TensorPlan, source: TileSource, outputs: Mapping[int, InputFile]) -> bool:
    unit = tensor.head_dim or 1
    n_rows = unit * max(1, _SAMPLE_BYTES // (unit * tensor.row_bytes))
    sample = replace(tensor, tile_rows=min(n_rows, tensor.tile_rows))
    tile = next(sample.tiles())
    itemsize = tensor.spec.dtype.itemsize
    starts = [tensor.offset + part.first * itemsize for part in tile.targets]
    shares = [
        memoryview(bytearray(len(tile.rows) * len(p.columns) * itemsize)) for p in tile.targets
    ]
    source.fill(shares, sample, tile, aligned_buffer(sample.read_bytes))
    return all(
        outputs[part.file].read_exact(start, len(share)) == share
        for part, start, share in zip(tile.targets, starts, shares, strict=True)
    )
