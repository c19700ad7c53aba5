"""Own every byte of the ranks that is not a weight: what torch.save writes around them, and between.

What the writer planned is not asked: positions are those that a rank's own pickle says, and sums are
taken of what was read.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from codellama_convert.errors import VerifyError
from codellama_convert.formats.pth.reader import RankIndex
from codellama_convert.formats.pth.saved_rank import SavedRank
from codellama_convert.formats.pth.writer import lay_out
from codellama_convert.formats.stored_tensor import Storage
from codellama_convert.plan.ranks.original import MAX_REST_BYTES
from codellama_convert.storage.checksums import combine
from codellama_convert.storage.contents import Piece
from codellama_convert.storage.input_file import InputFile
from codellama_convert.verify.ranks.expected import ExpectedRanks
from codellama_convert.verify.ranks.found import Found
from codellama_convert.verify.report import Problems


def compare_layouts(expected: ExpectedRanks, found: Found, problems: Problems) -> None:
    """Compare every byte of the ranks that is not a weight with what must be there.

    Args:
        expected: What must be there.
        found: What was found of both sides.
        problems: Gets what differs.
    """
    for number, name in enumerate(expected.names):
        rank, saved = found.ranks.get(number), expected.saved(number)
        if rank is None or {one.spec.name for one in saved.tensors} != rank.tensors.keys():
            continue  # reported already
        crcs = found.crcs(number)
        known = {tensor.spec.name: crcs.get(tensor.spec.name) for tensor in found.tensors}
        rest = None if expected.original is None else expected.original.rest[number]
        plan = lay_out(saved, expected.layout)
        with InputFile(rank.path, error=VerifyError) as file:
            if file.n_bytes != plan.n_bytes:
                other: str | None = f"it has {file.n_bytes} bytes, expected {plan.n_bytes}"
            else:
                sums, between = _read_storages(file, rank, saved, known, problems)
                pieces = [*plan.pieces(sums), *_placed(rest, between)]
                other = _first_other(file, pieces)
        if other is not None:
            problems.add(f"{expected.laid_out_otherwise}: {other}", file=name)


def _read_storages(
    file: InputFile,
    rank: RankIndex,
    saved: SavedRank,
    known: Mapping[str, int | None],
    problems: Problems,
) -> tuple[list[int], list[Piece]]:
    """Sum each storage of a rank, and read what no weight has of it.

    Args:
        file: The rank.
        rank: What it says it holds.
        saved: What it must hold: the number of each tensor's storage.
        known: The sum of each weight; None where it is not right.
        problems: Gets the storages of which the zip directory says another sum.

    Returns:
        The sums by the storage's number, and what lies between, where it lies.
    """
    storages: dict[int, Storage] = {}
    weights: dict[int, list[tuple[int, int, int | None]]] = {}
    for one in saved.tensors:
        tensor = rank.tensors[one.spec.name]
        storages.setdefault(one.storage, tensor.storage)
        if one.spec.name in known:
            first, behind = (tensor.storage.offset + at for at in tensor.extent)
            span = first, behind, known[one.spec.name]
            weights.setdefault(one.storage, []).append(span)
    sums, between = [], []
    for number, storage in sorted(storages.items()):
        crc, pieces = _read_storage(file, storage, sorted(weights.get(number, ())))
        if crc is not None and crc != storage.crc:
            listed = "nothing" if storage.crc is None else f"{storage.crc:08x}"
            problems.add(
                f"{storage.name!r} has CRC-32 {crc:08x}, the zip directory says {listed}",
                file=file.path.name,
            )
        sums.append(storage.crc or 0 if crc is None else crc)
        between += pieces
    return sums, between


def _read_storage(
    file: InputFile, storage: Storage, weights: Sequence[tuple[int, int, int | None]]
) -> tuple[int | None, list[Piece]]:
    """Sum a storage, and read what lies between the weights in it.

    Args:
        file: The rank.
        storage: One of its storages.
        weights: First byte of each weight in it, the one behind its last, and its sum, in order.

    Returns:
        The sum, None where that of a weight is not known; and what lies between, where it lies.
        Where weights overlap or far more lies between, the pickle is not as it must be.
    """
    end = storage.offset + storage.n_bytes
    at, whole, is_known = storage.offset, 0, True
    between: list[Piece] = []
    for first, behind, crc in (*weights, (end, end, 0)):
        if not 0 <= first - at <= MAX_REST_BYTES:
            return None, []
        piece = file.read_exact(at, first - at)
        between.append((at, piece))
        whole = combine(combine(whole, zlib.crc32(piece), len(piece)), crc or 0, behind - first)
        is_known &= crc is not None
        at = behind
    return whole if is_known else None, between


def _placed(rest: bytes | None, between: Iterable[Piece]) -> Iterator[Piece]:
    """Place what must lie between the weights where something lies between them."""
    for at, found in between:
        if rest is not None:
            yield at, rest[: len(found)]
            rest = rest[len(found) :]


def _first_other(file: InputFile, pieces: Iterable[Piece]) -> str | None:
    """Describe the first byte that differs."""
    for position, piece in sorted(pieces):
        there = file.read_exact(position, len(piece))
        if there != piece:
            at = next(
                n for n, (one, other) in enumerate(zip(there, piece, strict=True)) if one != other
            )
            return f"byte {position + at} is 0x{there[at]:02x}, expected 0x{piece[at]:02x}"
    return None
