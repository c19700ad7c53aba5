"""Own what is written where, and what it costs.

A plan is plain data: it can be pickled, and each of its files can be written without the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from codellama_convert.choices import DEFAULT_MAX_SHARD_BYTES
from codellama_convert.formats.safetensors import encode_header, encode_index, shard_name
from codellama_convert.model.tensor_table import TensorLayout
from codellama_convert.plan.budget import LARGEST_TILE_BYTES, choose_tile_and_workers
from codellama_convert.plan.target import TransferPlan
from codellama_convert.plan.tiles import Passage, TensorPlan
from codellama_convert.storage.contents import Piece
from codellama_convert.tensors import Dtype


@dataclass(frozen=True, slots=True)
class FilePlan:
    """One safetensors file that is written.

    Attributes:
        name: Its name.
        header: The bytes in front of the data.
        tensors: In the file's order.
    """

    name: str
    header: bytes
    tensors: tuple[TensorPlan, ...]

    @property
    def number(self) -> int:
        """Its number in the placements of its tensors: each is written by itself."""
        return 0

    @property
    def tensor_bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.spec.n_bytes for tensor in self.tensors)

    @property
    def n_bytes(self) -> int:
        """Size of the whole file."""
        return len(self.header) + self.tensor_bytes

    @property
    def beginning(self) -> bytes:
        """The bytes that it begins with."""
        return self.header

    def body(self, crcs: Mapping[str, int]) -> Sequence[Piece]:
        """Nothing lies between its tensors or behind them."""
        del crcs
        return ()

    def seal(self, crcs: Mapping[str, int]) -> Sequence[Piece]:
        """Build its header, without which nothing loads it."""
        del crcs
        return ((0, self.header),)


@dataclass(frozen=True, slots=True)
class ConversionPlan(TransferPlan):
    """Everything that is written for the weights, and what it costs.

    Attributes:
        files: The safetensors files in order.
        index: Content of the index file, or None where there is one file only.
        dtype: Of the written tensors.
        tile_bytes: The wanted size of a tile's larger side; one row, or a pair, may be larger.
        workers: Tensors in flight.
    """

    files: tuple[FilePlan, ...]
    index: bytes | None
    dtype: Dtype
    tile_bytes: int
    workers: int

    @property
    def passes(self) -> tuple[tuple[FilePlan, ...], ...]:
        """The files, each of them a pass of its own over what it is made of."""
        return tuple((file,) for file in self.files)


def split_into_files(sizes: Sequence[int], max_bytes: int) -> tuple[tuple[int, ...], ...]:
    """Split tensors into files, greedily and in order, as `save_pretrained` does.

    A file is closed when the next tensor would make it larger than `max_bytes`; a tensor that is
    larger by itself gets a file of its own, here in its turn (`save_pretrained` puts that one
    before the file that is open). With sizes 6, 6, 2, 6, 2, 2 and at most 10 the files
    hold (6), (6, 2), (6, 2, 2).

    Args:
        sizes: Bytes of each tensor.
        max_bytes: Largest sum of a file's tensors.

    Returns:
        The tensors' positions in `sizes`, file by file.
    """
    files: list[list[int]] = []
    filled = 0
    for position, size in enumerate(sizes):
        if not files or filled + size > max_bytes:
            files.append([])
            filled = 0
        files[-1].append(position)
        filled += size
    return tuple(tuple(file) for file in files)


def build_plan(
    layout: Sequence[TensorLayout],
    *,
    dtype: Dtype,
    max_shard_bytes: int = DEFAULT_MAX_SHARD_BYTES,
    tile_bytes: int = LARGEST_TILE_BYTES,
    workers: int = 1,
) -> ConversionPlan:
    """Decide every byte's place before anything is written.

    Args:
        layout: The model's tensors, in the order of Hugging Face's state dict.
        dtype: Of the written tensors.
        max_shard_bytes: Largest sum of a file's tensors.
        tile_bytes: Largest tile, if a row (or a pair, where they are reordered) is not larger.
        workers: Tensors in flight.

    Returns:
        The plan.
    """
    passages = [_passage(tensor, dtype) for tensor in layout]
    specs = [passage.spec for passage in passages]
    groups = split_into_files([spec.n_bytes for spec in specs], max_shard_bytes)
    files = []
    for number, group in enumerate(groups, start=1):
        header, offsets = encode_header([specs[i] for i in group])
        by_name = {specs[i].name: i for i in group}
        tensors = tuple(
            passages[i].plan(offset=offset, tile_bytes=tile_bytes)
            for name, offset in offsets.items()
            for i in (by_name[name],)
        )
        files.append(FilePlan(shard_name(number, len(groups)), header, tensors))
    total_bytes = sum(spec.n_bytes for spec in specs)
    weight_map = {tensor.spec.name: file.name for file in files for tensor in file.tensors}
    index = encode_index(weight_map, total_bytes) if len(files) > 1 else None
    return ConversionPlan(tuple(files), index, dtype, tile_bytes, workers)


def fit_plan(
    layout: Sequence[TensorLayout],
    *,
    dtype: Dtype,
    max_shard_bytes: int = DEFAULT_MAX_SHARD_BYTES,
    max_ram_bytes: int | None = None,
    workers: int,
    keep_workers: bool = False,
) -> ConversionPlan:
    """Decide every byte's place, with tile and workers so that all buffers stay within a budget.

    Args:
        layout: The model's tensors, in the order of Hugging Face's state dict.
        dtype: Of the written tensors.
        max_shard_bytes: Largest sum of a file's tensors.
        max_ram_bytes: Largest sum of all buffers; None is `DEFAULT_MAX_RAM_BYTES`, which so many
            workers as were asked for may exceed.
        workers: Tensors in flight, at most.
        keep_workers: Whether there must be as many.

    Returns:
        The plan with the largest tiles that fit.

    Raises:
        ConfigError: If not even one row (or pair) fits.
    """
    passages = (_passage(tensor, dtype) for tensor in layout)
    tile_bytes, workers = choose_tile_and_workers(
        {passage.form: passage for passage in passages}.values(),
        max_ram_bytes=max_ram_bytes,
        workers=workers,
        keep_workers=keep_workers,
    )
    return build_plan(
        layout,
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
        tile_bytes=tile_bytes,
        workers=workers,
    )


def _passage(tensor: TensorLayout, dtype: Dtype) -> Passage:
    """Lead a tensor from the ranks into one file."""
    return Passage(tensor.meta, tensor.hugging_face, tensor.spec.dtype, dtype, tensor.head_dim)
