"""Own what a conversion asks of the plan of a file that it writes, whichever side it is of."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from codellama_convert.plan.budget import buffer_pair_bytes
from codellama_convert.plan.tiles import TensorPlan
from codellama_convert.storage.checksums import combine
from codellama_convert.storage.contents import Piece


class TargetFile(Protocol):
    """The plan of one file that holds tensors.

    Its data and its `body` are written in any order and saved to disk, then its `seal`: without
    that, nothing takes it for a model.
    """

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def number(self) -> int:
        """Its number in the placements of its tensors."""

    @property
    def tensors(self) -> tuple[TensorPlan, ...]:
        """Those that are moved into it."""

    @property
    def tensor_bytes(self) -> int:
        """Bytes of those."""

    @property
    def n_bytes(self) -> int:
        """Size of the whole file."""

    @property
    def beginning(self) -> bytes:
        """The bytes that it begins with, known beforehand."""

    def body(self, crcs: Mapping[str, int]) -> Sequence[Piece]:
        """Build what is not data and may be written beside it, from each tensor's CRC-32."""

    def seal(self, crcs: Mapping[str, int]) -> Sequence[Piece]:
        """Build what makes it loadable, from each tensor's CRC-32."""


class TransferPlan:
    """The files that are written, pass by pass over what they are made of, and what it costs.

    Attributes:
        workers: Tensors in flight.
    """

    __slots__ = ()
    workers: int

    @property
    def passes(self) -> Sequence[Sequence[TargetFile]]:
        """The files of each pass; all of them get some of each of its tensors."""
        raise NotImplementedError

    @property
    def tensors(self) -> tuple[TensorPlan, ...]:
        """All tensors that are moved, each once."""
        return tuple(tensor for files in self.passes for tensor in files[0].tensors)

    @property
    def kinds(self) -> Mapping[str, int]:
        """How tensors are read whose rows several passes read, by name in the source."""
        return {}

    @property
    def n_parameters(self) -> int:
        """Elements of all tensors, copies once."""
        return sum(tensor.spec.n_elements for tensor in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors that are written, copies once."""
        return sum(tensor.spec.n_bytes for tensor in self.tensors)

    @property
    def read_in_all(self) -> int:
        """Bytes that all passes read of the tensors."""
        return sum(tensor.read_in_all for files in self.passes for tensor in files[0].tensors)

    @property
    def read_tile_bytes(self) -> int:
        """Most bytes that a worker reads at once."""
        return max(tensor.read_bytes for tensor in self._one_of_each_form())

    @property
    def write_tile_bytes(self) -> int:
        """Most bytes that a worker writes at once."""
        return max(tensor.write_bytes for tensor in self._one_of_each_form())

    def _one_of_each_form(self) -> Collection[TensorPlan]:
        return {tensor.form: tensor for tensor in self.tensors}.values()

    @property
    def buffer_bytes(self) -> int:
        """Peak memory of all buffers: workers x (one tile read + one tile written + slack)."""
        return self.workers * buffer_pair_bytes(self.read_tile_bytes, self.write_tile_bytes)


def file_crc(file: TargetFile, crcs: Mapping[str, int]) -> int:
    """Join the CRC-32s of all that a file holds to that of the file.

    Args:
        file: Its plan.
        crcs: By tensor, of what the file holds of it.

    Returns:
        The CRC-32 of all its bytes.
    """
    pieces = (*file.body(crcs), *file.seal(crcs))
    spans = [(position, len(piece), zlib.crc32(piece)) for position, piece in pieces]
    spans += [(tensor.offset, tensor.part_bytes, crcs[tensor.spec.name]) for tensor in file.tensors]
    whole, end = 0, 0
    for position, n_bytes, crc in sorted(spans):
        assert position == end, "every byte of a file is planned once"
        whole, end = combine(whole, crc, n_bytes), end + n_bytes
    return whole
