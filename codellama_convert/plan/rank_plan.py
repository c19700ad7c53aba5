"""Own the plan of a checkpoint's ranks: every byte of each file has its place before it exists."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from codellama_convert.formats.pth_writer import RankFilePlan, TorchLayout, lay_out, own_storages
from codellama_convert.model.config import ModelConfig
from codellama_convert.model.rope import rope_freqs
from codellama_convert.model.tensor_table import FREQUENCIES_NAME, names_in_meta_order
from codellama_convert.plan.budget import buffer_pair_bytes, choose_tile_and_workers
from codellama_convert.plan.target import Piece
from codellama_convert.plan.tiles import Passage, TensorPlan
from codellama_convert.tensors import Dtype, TensorSpec


@dataclass(frozen=True, slots=True)
class RankPlan:
    """One rank that is written.

    Attributes:
        number: Of the rank, from 0.
        layout: Where everything lies in the file.
        tensors: Those that are moved into it.
        made: The content of those that are not, by name.
        order: The names of all, as the file has them.
    """

    number: int
    layout: RankFilePlan
    tensors: tuple[TensorPlan, ...]
    made: Mapping[str, bytes]
    order: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its name, by which Meta's loaders know its number."""
        return rank_name(self.number)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the tensors that are moved into it."""
        return sum(tensor.part_bytes for tensor in self.tensors)

    @property
    def n_bytes(self) -> int:
        """Size of the whole file."""
        return self.layout.n_bytes

    @property
    def beginning(self) -> bytes:
        """The bytes that it begins with: the header of its first record, which has no sum."""
        return self.layout.seal([0] * len(self.order))[-1][1]

    def body(self, crcs: Mapping[str, int]) -> Sequence[Piece]:
        """Build what lies between the tensors' data, and the data that is not moved."""
        made = [(self.layout.tensor_offsets[name], data) for name, data in self.made.items()]
        return (*made, *self.layout.body(self._storage_crcs(crcs)))

    def seal(self, crcs: Mapping[str, int]) -> Sequence[Piece]:
        """Build what makes it loadable: the zip directory, and the first bytes."""
        return self.layout.seal(self._storage_crcs(crcs))

    def _storage_crcs(self, crcs: Mapping[str, int]) -> list[int]:
        """List the sums of the storages: each tensor has its own, in the order of the file."""
        of_made = {name: zlib.crc32(data) for name, data in self.made.items()}
        return [{**crcs, **of_made}[name] for name in self.order]


@dataclass(frozen=True, slots=True)
class RanksPlan:
    """The ranks that are written, in one pass over the source, and what it costs.

    Attributes:
        files: The ranks in order.
        dtype: Of the written tensors.
        tile_bytes: The wanted size of a tile's larger side; one row or head may be larger.
        workers: Tensors in flight.
    """

    files: tuple[RankPlan, ...]
    dtype: Dtype
    tile_bytes: int
    workers: int

    @property
    def passes(self) -> tuple[tuple[RankPlan, ...], ...]:
        """All files at once: rank after rank would read up to 3.5 times as much."""
        return (self.files,)

    @property
    def tensors(self) -> tuple[TensorPlan, ...]:
        """All tensors that are moved, each once."""
        return self.files[0].tensors

    @property
    def n_parameters(self) -> int:
        """Elements of all tensors, copies once."""
        return sum(tensor.spec.n_elements for tensor in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, copies once."""
        return sum(tensor.spec.n_bytes for tensor in self.tensors)

    @property
    def read_tile_bytes(self) -> int:
        """Most bytes that a worker reads at once."""
        return max(tensor.read_bytes for tensor in self.tensors)

    @property
    def write_tile_bytes(self) -> int:
        """Most bytes that a worker writes at once."""
        return max(tensor.write_bytes for tensor in self.tensors)

    @property
    def buffer_bytes(self) -> int:
        """Peak memory of all buffers."""
        return self.workers * buffer_pair_bytes(self.read_tile_bytes, self.write_tile_bytes)


def rank_name(number: int) -> str:
    """Name a rank's file."""
    return f"consolidated.{number:02d}.pth"


def plan_ranks(
    passages: Sequence[Passage],
    config: ModelConfig,
    *,
    made: Mapping[str, bytes],
    layout: TorchLayout,
    max_ram_bytes: int | None = None,
    workers: int,
    keep_workers: bool = False,
) -> RanksPlan:
    """Decide every byte's place in every rank.

    Args:
        passages: The tensors; all go to the same number of ranks.
        config: The model.
        made: The content of what is not moved, by name: of `frequencies`.
        layout: Which torch's files they equal.
        max_ram_bytes: Largest sum of all buffers; as `fit_plan`.
        workers: Tensors in flight, at most.
        keep_workers: Whether there must be as many.

    Returns:
        The plan.

    Raises:
        ConfigError: If not even one row (or head) fits into the buffers.
    """
    tile_bytes, workers = choose_tile_and_workers(
        {passage.form: passage for passage in passages}.values(),
        max_ram_bytes=max_ram_bytes,
        workers=workers,
        keep_workers=keep_workers,
    )
    dtype, n_ranks = passages[0].dtype, len(passages[0].target.files)
    shapes = {passage.target.name: passage.target.part_shape for passage in passages}
    shapes |= {name: (len(data) // dtype.itemsize,) for name, data in made.items()}
    order = tuple(name for name in names_in_meta_order(config.num_hidden_layers) if name in shapes)
    specs = [TensorSpec(name, dtype, shapes[name]) for name in order]
    placed = [
        lay_out(own_storages(specs, root=rank_name(number).removesuffix(".pth")), layout)
        for number in range(n_ranks)
    ]
    # The names of the ranks are of one length, so everything has the same place in all of them.
    offsets = placed[0].tensor_offsets
    tensors = tuple(
        passage.plan(offset=offsets[passage.target.name], tile_bytes=tile_bytes)
        for passage in passages
    )
    files = tuple(RankPlan(n, one, tensors, made, order) for n, one in enumerate(placed))
    return RanksPlan(files, dtype, tile_bytes, workers)


def frequencies(config: ModelConfig, dtype: Dtype) -> dict[str, bytes]:
    """Make the rotary frequencies that Meta's files hold, in the dtype of the weights.

    Args:
        config: The model.
        dtype: Of its weights.

    Returns:
        Their bytes by their name.
    """
    numbers = rope_freqs(config.rope_theta, config.head_dim)
    if dtype.code == "BF16":
        elements = [_bfloat16_bits(number) for number in numbers]
        return {FREQUENCIES_NAME: struct.pack(f"<{len(elements)}H", *elements)}
    code = "e" if dtype.code == "F16" else "f"
    return {FREQUENCIES_NAME: struct.pack(f"<{len(numbers)}{code}", *numbers)}


def _bfloat16_bits(number: float) -> int:
    """Round a float32 to the nearest bfloat16, ties to even."""
    (bits,) = struct.unpack("<I", struct.pack("<f", number))
    rounded: int = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded
