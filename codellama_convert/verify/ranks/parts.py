"""Own what ranks say they hold, tensor by tensor, and the values of the rotary frequencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from codellama_convert.errors import VerifyError, shown
from codellama_convert.formats.pth.reader import RankIndex
from codellama_convert.formats.tensor_reader import UNSIGNED
from codellama_convert.model.tensor_table import FREQUENCIES_NAME
from codellama_convert.plan.tiles import TensorPlan
from codellama_convert.storage.input_file import InputFile
from codellama_convert.tensors import TensorSpec
from codellama_convert.verify.folder_reader import StoredOutput
from codellama_convert.verify.ranks.expected import ExpectedRanks
from codellama_convert.verify.ranks.folder import Ranks, as_stored
from codellama_convert.verify.report import Problems

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
    specs |= {spec.name: spec for spec in (*expected.others, *expected.second_names)}
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
        return f"is not stored in order: it has strides {tensor.strides}"
    return None


def compare_frequencies(
    expected: ExpectedRanks, parts: Mapping[int, StoredOutput], problems: Problems
) -> None:
    """Compare the rotary frequencies of each rank with the source's, or those of its `rope_theta`.

    Args:
        expected: What must be there.
        parts: Where each rank has them.
        problems: Gets what differs.
    """
    wanted = np.frombuffer(expected.frequencies or b"", UNSIGNED[expected.dtype.itemsize])
    for one in parts.values():
        with InputFile(one.file, error=VerifyError) as file:
            raw = file.read_exact(one.offset, one.n_bytes)
        found = np.frombuffer(raw, wanted.dtype)
        if not np.array_equal(found, wanted):
            at = int((found != wanted).argmax())
            digits = 2 * wanted.itemsize
            problems.add(
                f"{FREQUENCIES_NAME!r} has bits {int(found[at]):0{digits}x} at {at}, expected "
                f"{int(wanted[at]):0{digits}x}, {expected.origin_of_frequencies}",
                file=one.file.name,
            )
