"""Own the plan of a checkpoint's ranks: every byte of each file has its place before it exists."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from codellama_convert.choices import TorchLayout
from codellama_convert.formats.pth.saved_rank import SavedRank, own_storages, spare_spans
from codellama_convert.formats.pth.writer import RankFilePlan, lay_out
from codellama_convert.formats.source_sums import BY_ROWS, FOR_COLUMNS, FOR_COPIES
from codellama_convert.model.config import ModelConfig
from codellama_convert.model.generations import LLAMA_3
from codellama_convert.model.rope import rope_freqs
from codellama_convert.model.tensor_table import FREQUENCIES_NAME, meta_name_of
from codellama_convert.plan.budget import choose_tile_and_workers
from codellama_convert.plan.ranks.original import in_meta_order
from codellama_convert.plan.target import TransferPlan
from codellama_convert.plan.tiles import Passage, TensorPlan
from codellama_convert.storage.checksums import combine
from codellama_convert.storage.contents import Piece
from codellama_convert.tensors import Dtype, TensorSpec

EMBEDDING_NAME, HEAD_NAME = meta_name_of("embedding"), meta_name_of("head")


@dataclass(frozen=True, slots=True)
class RankPlan:
    """One rank that is written.

    Attributes:
        number: Of the rank, from 0.
        layout: Where everything lies in the file.
        tensors: Those that are moved into it.
        rest: What else its storages hold, each piece where it lies.
    """

    number: int
    layout: RankFilePlan
    tensors: tuple[TensorPlan, ...]
    rest: tuple[Piece, ...]

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
        return self.layout.seal([0] * len(self.layout.storage_spans))[-1][1]

    def alone(self) -> RankPlan:
        """Plan it without the other ranks."""
        return replace(self, tensors=tuple(tensor.only(self.number) for tensor in self.tensors))

    def body(self, crcs: Mapping[str, int]) -> Sequence[Piece]:
        """Build what lies between the tensors' data, and the data that is not moved."""
        return (*self.rest, *self.layout.body(self._storage_crcs(crcs)))

    def seal(self, crcs: Mapping[str, int]) -> Sequence[Piece]:
        """Build what makes it loadable: the zip directory, and the first bytes."""
        return self.layout.seal(self._storage_crcs(crcs))

    def _storage_crcs(self, crcs: Mapping[str, int]) -> list[int]:
        """Join the sums of what lies in each storage."""
        pieces = {at: (len(piece), zlib.crc32(piece)) for at, piece in self.rest}
        pieces |= {one.offset: (one.part_bytes, crcs[one.spec.name]) for one in self.tensors}
        return [_joined(pieces, start, end) for start, end in self.layout.storage_spans]


@dataclass(frozen=True, slots=True)
class RanksPlan(TransferPlan):
    """The ranks that are written, and what it costs.

    Attributes:
        files: The ranks in order.
        dtype: Of the written tensors.
        tile_bytes: The wanted size of a tile's larger side; one row, or a pair, may be larger.
        workers: Tensors in flight.
        each_alone: Whether each rank is a pass of its own over the source, so that several machines
            can share the work.
    """

    files: tuple[RankPlan, ...]
    dtype: Dtype
    tile_bytes: int
    workers: int
    each_alone: bool = False

    @property
    def passes(self) -> tuple[tuple[RankPlan, ...], ...]:
        """All files at once, or each alone: for 8 ranks of a 70B, that reads 3.5 times as much."""
        if not self.each_alone:
            return (self.files,)
        return tuple((file.alone(),) for file in self.files)

    @property
    def tensors(self) -> tuple[TensorPlan, ...]:
        """All tensors that are moved, each once."""
        return self.files[0].tensors

    @property
    def kinds(self) -> dict[str, int]:
        """How tensors are read where each rank is a pass of its own, by name in the source."""
        if not self.each_alone:
            return {}
        kinds = {0: BY_ROWS, 1: FOR_COLUMNS, None: FOR_COPIES}
        return {one.source.name: kinds[one.target.split] for one in self.tensors}


def rank_name(number: int) -> str:
    """Name a rank's file."""
    return f"consolidated.{number:02d}.pth"


def plan_ranks(
    passages: Sequence[Passage],
    ranks: Sequence[SavedRank],
    *,
    rest: Sequence[bytes],
    layout: TorchLayout,
    max_ram_bytes: int | None = None,
    workers: int,
    keep_workers: bool = False,
) -> RanksPlan:
    """Decide every byte's place in every rank.

    Args:
        passages: The tensors; all go to the same number of ranks.
        ranks: What each rank is saved of; the same in all of them but for the root, which is of one
            length, so that everything has the same place in all of them.
        rest: Of each rank, what its storages hold besides the tensors that are moved, in order.
        layout: Which torch's files they equal.
        max_ram_bytes: Largest sum of all buffers; as `fit_plan`.
        workers: Tensors in flight, at most.
        keep_workers: Whether there must be as many.

    Returns:
        The plan.

    Raises:
        ConfigError: If not even one row (or pair) fits into the buffers.
        CheckpointError: If torch.save could not have been given such ranks.
        ValueError: If the rest is not all that they hold besides.
    """
    tile_bytes, workers = choose_tile_and_workers(
        {passage.form: passage for passage in passages}.values(),
        max_ram_bytes=max_ram_bytes,
        workers=workers,
        keep_workers=keep_workers,
    )
    spare = spare_spans(ranks[0], {passage.target.name for passage in passages})
    placed = [lay_out(rank, layout) for rank in ranks]
    offsets = placed[0].tensor_offsets
    tensors = tuple(
        passage.plan(offset=offsets[passage.target.name], tile_bytes=tile_bytes)
        for passage in passages
    )
    files = tuple(
        RankPlan(number, one, tensors, _placed_rest(one, spare, content))
        for number, (one, content) in enumerate(zip(placed, rest, strict=True))
    )
    return RanksPlan(files, passages[0].dtype, tile_bytes, workers)


def standard_ranks(
    passages: Sequence[Passage], config: ModelConfig, made: Mapping[str, bytes]
) -> tuple[SavedRank, ...]:
    """Save each tensor in a storage of its own, in Meta's order, and a tied head where Meta has it.

    Args:
        passages: The tensors; all go to the same number of ranks.
        config: The model.
        made: The content of what is not moved, by name: of `frequencies`.

    Returns:
        The ranks.
    """
    dtype, n_ranks = passages[0].dtype, len(passages[0].target.files)
    specs = {passage.target.name: passage.part_spec for passage in passages}
    specs |= {
        name: TensorSpec(name, dtype, (len(data) // dtype.itemsize,)) for name, data in made.items()
    }
    order = [specs[name] for name in in_meta_order(specs, config.num_hidden_layers)]
    return tuple(
        own_storages(
            order,
            root=rank_name(number).removesuffix(".pth"),
            second_names={HEAD_NAME: EMBEDDING_NAME} if shares_head(config) else {},
        )
        for number in range(n_ranks)
    )


def shares_head(config: ModelConfig) -> bool:
    """Report whether a head is the embedding under a second name, in each rank of Meta's.

    Source:
        Llama 3.2 1B and 3B: their files have no room for two. Older ranks split the two otherwise.
    """
    return config.tie_word_embeddings and config.generation == LLAMA_3


def _placed_rest(
    layout: RankFilePlan, spare: Sequence[tuple[int, int, int]], content: bytes
) -> tuple[Piece, ...]:
    """Place what is not moved in the gaps that it fills."""
    pieces, at = [], 0
    for storage, first, end in spare:
        pieces.append((layout.storage_spans[storage][0] + first, content[at : at + end - first]))
        at += end - first
    if at != len(content):
        raise ValueError(f"there are {len(content)} bytes for {at} that no tensor has")
    return tuple(pieces)


def _joined(pieces: Mapping[int, tuple[int, int]], start: int, end: int) -> int:
    """Join the sums of the pieces that fill a range."""
    n_bytes, whole = pieces[start]
    while start + n_bytes < end:
        n_more, crc = pieces[start + n_bytes]
        whole, n_bytes = combine(whole, crc, n_more), n_bytes + n_more
    return whole


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
