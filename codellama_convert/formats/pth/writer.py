"""Own the bytes of a .pth file that torch.save would write, before any of its data exists.

Every position follows from names, dtypes and sizes, so data can be written in any order, and what
makes the file loadable after it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from codellama_convert.choices import TorchLayout
from codellama_convert.formats.pth.pickle_writer import encode_pickle
from codellama_convert.formats.pth.saved_rank import SavedRank, storage_dtypes
from codellama_convert.formats.pth.serialization_id import serialization_id
from codellama_convert.formats.zip_writer import PlacedEntry, end_of_archive
from codellama_convert.storage.contents import Piece

# Source: torch's serialization.py, `_save`, and caffe2/serialize/versions.h.
_VERSION = "version", b"3\n"
_RECORDS_OF_2_13 = (
    (".format_version", b"1"),
    (".storage_alignment", b"64"),
    ("byteorder", b"little"),
)
_ID_NAME, _ID_BYTES = ".data/serialization_id", 40


@dataclass(frozen=True, slots=True)
class _Record:
    """A record of the file: data of a storage, a content of its own, or the serialization id."""

    name: str
    n_bytes: int
    storage: int | None = None
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class RankFilePlan:
    """Where everything lies in a .pth file, and what it holds besides the tensors' data.

    Write the data of the storages and the `body`, in any order, and save the file to disk; then
    write the `seal` and save it again. Without the seal, nothing takes the file for a model.

    Attributes:
        n_bytes: Size of the whole file.
        tensor_offsets: Position of each tensor's first byte in the file.
        storage_spans: First byte of each storage, and the one behind its last.
    """

    n_bytes: int
    tensor_offsets: Mapping[str, int]
    storage_spans: tuple[tuple[int, int], ...]
    _records: tuple[_Record, ...]
    _entries: tuple[PlacedEntry, ...]

    def pieces(self, storage_crcs: Sequence[int]) -> tuple[Piece, ...]:
        """Build everything that is not tensor data.

        Args:
            storage_crcs: CRC-32 of each storage's bytes.

        Returns:
            Position and bytes of each piece: the body, then the seal.
        """
        return (*self.body(storage_crcs), *self.seal(storage_crcs))

    def body(self, storage_crcs: Sequence[int]) -> tuple[Piece, ...]:
        """Build what may be written beside the data.

        Args:
            storage_crcs: CRC-32 of each storage's bytes.

        Returns:
            Position and bytes of each piece.
        """
        (_, first), *gaps, _ = self._runs(storage_crcs)
        n_header = self._entries[0].start
        return ((n_header, first[n_header:]), *gaps)

    def seal(self, storage_crcs: Sequence[int]) -> tuple[Piece, Piece]:
        """Build what makes the file loadable.

        Args:
            storage_crcs: CRC-32 of each storage's bytes.

        Returns:
            Position and bytes of all behind the last storage, and of the first local header.
        """
        (_, first), *_, tail = self._runs(storage_crcs)
        return tail, (0, first[: self._entries[0].start])

    def _runs(self, storage_crcs: Sequence[int]) -> list[Piece]:
        """Build the bytes before, between and behind the storages."""
        assert len(storage_crcs) == len(self.storage_spans)
        runs, run, crcs = [], (0, bytearray()), list[int]()
        for record, entry in zip(self._records, self._entries, strict=True):
            run[1].extend(entry.header())
            if record.storage is not None:
                crcs.append(storage_crcs[record.storage])
                runs.append(run)
                run = entry.data_end, bytearray()
            else:
                names = [other.name for other in self._records[: len(crcs)]]
                content = record.content or serialization_id(names, crcs)
                crcs.append(zlib.crc32(content))
                run[1].extend(content)
            run[1].extend(entry.descriptor(crcs[-1]))
        run[1].extend(end_of_archive(self._entries, crcs))
        return [(position, bytes(content)) for position, content in (*runs, run)]


def lay_out(rank: SavedRank, layout: TorchLayout) -> RankFilePlan:
    """Place everything that torch.save writes of a rank.

    Args:
        rank: What is saved.
        layout: The version of PyTorch whose files it equals.

    Returns:
        Where everything lies.

    Raises:
        CheckpointError: If torch.save could not have been given such a rank, or one of its
            storages is empty.
    """
    dtypes = storage_dtypes(rank)
    sizes = [n * dtype.itemsize for n, dtype in zip(rank.storage_elements, dtypes, strict=True)]
    records = _list_records(encode_pickle(rank), sizes, layout)
    entries: list[PlacedEntry] = []
    spans: dict[int, tuple[int, int]] = {}
    position = 0
    for record in records:
        entry = PlacedEntry(f"{rank.root}/{record.name}".encode(), record.n_bytes, position)
        entries.append(entry)
        position = entry.end
        if record.storage is not None:
            spans[record.storage] = entry.start, entry.data_end
    return RankFilePlan(
        n_bytes=position + len(end_of_archive(entries, [0] * len(entries))),
        tensor_offsets={
            tensor.spec.name: spans[tensor.storage][0]
            + tensor.storage_offset * tensor.spec.dtype.itemsize
            for tensor in rank.tensors
        },
        storage_spans=tuple(spans[number] for number in range(len(spans))),
        _records=records,
        _entries=tuple(entries),
    )


def _list_records(pickled: bytes, sizes: Sequence[int], layout: TorchLayout) -> tuple[_Record, ...]:
    """List the records in file order."""
    storages = [_Record(f"data/{number}", size, number) for number, size in enumerate(sizes)]
    small = {
        name: _Record(name, len(content), content=content)
        for name, content in (("data.pkl", pickled), *_RECORDS_OF_2_13, _VERSION)
    }
    if layout == "1.13":
        storages.sort(key=lambda record: record.name)
        return (small["data.pkl"], *storages, small["version"])
    version = small.pop("version")
    return (*small.values(), *storages, version, _Record(_ID_NAME, _ID_BYTES))
