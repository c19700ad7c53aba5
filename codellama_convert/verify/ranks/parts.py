"""Own what ranks say they hold, and every byte of theirs that is no weight."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from codellama_convert.errors import VerifyError, shown
from codellama_convert.formats.pth.reader import RankIndex
from codellama_convert.formats.pth.writer import lay_out
from codellama_convert.formats.tensor_reader import UNSIGNED
from codellama_convert.model.tensor_table import FREQUENCIES_NAME
from codellama_convert.plan.ranks.plan import RanksPlan
from codellama_convert.plan.tiles import TensorPlan
from codellama_convert.storage.input_file import InputFile
from codellama_convert.tensors import TensorSpec
from codellama_convert.verify.folder_reader import StoredOutput
from codellama_convert.verify.ranks.folder import Ranks, as_stored
from codellama_convert.verify.ranks.job import ExpectedRanks
from codellama_convert.verify.report import Problems
from codellama_convert.verify.tensor import Compared

# By tensor and by rank.
Parts = dict[str, dict[int, StoredOutput]]


def compare_parts(
    expected: ExpectedRanks, tensors: Sequence[TensorPlan], ranks: Ranks, problems: Problems
) -> Parts:
    """Compare what each rank says it holds with what it must hold.

    Args:
        expected: What must be there.
        tensors: Its tensors.
        ranks: Those that were read.
        problems: Gets what differs.

    Returns:
        The tensors whose values can be compared, the frequencies among them.
    """
    specs = {
        tensor.spec.name: TensorSpec(tensor.spec.name, expected.dtype, tensor.target.part_shape)
        for tensor in tensors
    }
    specs |= {spec.name: spec for spec in expected.others}
    parts: Parts = {name: {} for name in specs}
    for number, name in enumerate(expected.names):
        rank = ranks.get(number)
        if rank is None:
            if not problems.are_about(name):
                problems.add("is missing", file=name)
            continue
        for tensor in sorted({*rank.tensors, *specs}):
            wrong = _wrong_form(rank, tensor, specs.get(tensor))
            if wrong is not None:
                problems.add(f"tensor {shown(tensor)} {wrong}", file=name)
            else:
                parts[tensor][number] = as_stored(rank.path, rank.tensors[tensor])
    return parts


def _wrong_form(rank: RankIndex, name: str, spec: TensorSpec | None) -> str | None:
    """Say what is wrong with a tensor as a rank declares it."""
    tensor = rank.tensors.get(name)
    if tensor is None:
        return "is missing"
    if spec is None:
        return "does not belong to this model"
    if tensor.shape != spec.shape:
        return f"has shape {tensor.shape}, expected {spec.shape}"
    if tensor.dtype != spec.dtype:
        return f"is {tensor.dtype.name}, expected {spec.dtype.name}"
    if not tensor.row_major:
        return f"does not lie in order: it has strides {tensor.strides}"
    return None


def compare_frequencies(
    expected: ExpectedRanks, parts: Mapping[int, StoredOutput], problems: Problems
) -> dict[int, int]:
    """Compare the rotary frequencies of each rank with the source's, or those of its `rope_theta`.

    Args:
        expected: What must be there.
        parts: Where each rank has them.
        problems: Gets what differs.

    Returns:
        Their CRC-32 by rank.
    """
    crcs = {}
    wanted = np.frombuffer(expected.frequencies or b"", UNSIGNED[expected.dtype.itemsize])
    for number, one in parts.items():
        with InputFile(one.file, error=VerifyError) as file:
            raw = file.read_exact(one.offset, one.n_bytes)
        crcs[number] = zlib.crc32(raw)
        found = np.frombuffer(raw, wanted.dtype)
        if not np.array_equal(found, wanted):
            at = int((found != wanted).argmax())
            digits = 2 * wanted.itemsize
            problems.add(
                f"{FREQUENCIES_NAME!r} has bits {int(found[at]):0{digits}x} at {at}, expected "
                f"{int(wanted[at]):0{digits}x}, {expected.origin_of_frequencies}",
                file=one.file.name,
            )
    return crcs


def compare_layouts(
    expected: ExpectedRanks,
    tensors: tuple[TensorPlan, ...],
    ranks: Ranks,
    crcs: Mapping[int, Mapping[str, int]],
    problems: Problems,
) -> None:
    """Compare every byte of the ranks that is no data with what torch.save writes around it.

    Args:
        expected: What must be there.
        tensors: Its tensors.
        ranks: Those that were read.
        crcs: By rank, of the data that was read and is right.
        problems: Gets what differs.
    """
    for number, name in enumerate(expected.names):
        rank = ranks.get(number)
        saved = expected.saved(number, tensors)
        names = [tensor.spec.name for tensor in saved.tensors]
        if rank is None or sorted(names) != sorted(rank.tensors):  # reported already
            continue
        known = crcs.get(number, {})
        sums = []
        for tensor in names:
            stated = rank.tensors[tensor].storage.crc
            found = known.get(tensor, stated)
            if stated != found:
                problems.add(
                    f"tensor {tensor!r} has CRC-32 {found:08x}, the zip directory says "
                    + ("nothing" if stated is None else f"{stated:08x}"),
                    file=name,
                )
            sums.append(found or 0)
        plan = lay_out(saved, expected.layout)
        with InputFile(rank.path, error=VerifyError) as file:
            other = _first_other(file, plan.n_bytes, plan.pieces(sums))
        if other is not None:
            what = f"is not laid out as PyTorch {expected.layout} writes it: {other}"
            problems.add(what, file=name)


def compare_restored(
    plan: RanksPlan,
    ranks: Ranks,
    crcs: Mapping[int, Mapping[str, int]],
    problems: Problems,
) -> None:
    """Compare every byte that is no weight with what the ranks had there before.

    Args:
        plan: Where everything lay.
        ranks: Those that were read.
        crcs: By rank, of the weights that were read and are right.
        problems: Gets what differs.
    """
    for file in plan.files:
        rank, known = ranks.get(file.number), crcs.get(file.number, {})
        if rank is None or any(tensor.spec.name not in known for tensor in file.tensors):
            continue  # reported already; without each sum it is not known what the directory says
        with InputFile(rank.path, error=VerifyError) as opened:
            pieces = (*file.body(known), *file.seal(known))
            other = _first_other(opened, file.n_bytes, pieces)
        if other is not None:
            what = f"differs from the file that its source was converted from: {other}"
            problems.add(what, file=file.name)


def _first_other(file: InputFile, n_bytes: int, pieces: Sequence[tuple[int, bytes]]) -> str | None:
    """Describe the first byte beside the data that differs."""
    if file.n_bytes != n_bytes:
        return f"it has {file.n_bytes} bytes, expected {n_bytes}"
    for position, piece in sorted(pieces):
        there = file.read_exact(position, len(piece))
        if there != piece:
            at = next(
                n for n, (one, other) in enumerate(zip(there, piece, strict=True)) if one != other
            )
            return f"byte {position + at} is 0x{there[at]:02x}, expected 0x{piece[at]:02x}"
    return None


def right_crcs(
    compared: Mapping[str, Compared], frequencies: Mapping[int, int]
) -> dict[int, dict[str, int]]:
    """List by rank the CRC-32 of each tensor that was read to its end.

    Args:
        compared: What was found of the weights.
        frequencies: The CRC-32 of each rank's frequencies.
    """
    crcs: dict[int, dict[str, int]] = {}
    for number, name, crc in _all_crcs(compared, frequencies):
        crcs.setdefault(number, {})[name] = crc
    return crcs


def _all_crcs(
    compared: Mapping[str, Compared], frequencies: Mapping[int, int]
) -> Iterator[tuple[int, str, int]]:
    for name, one in compared.items():
        if one.difference is None:
            yield from ((number, name, crc) for number, crc in one.crcs.items())
    yield from ((number, FREQUENCIES_NAME, crc) for number, crc in frequencies.items())
