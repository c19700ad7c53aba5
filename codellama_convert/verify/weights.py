"""Own the comparison of an output's weights with the ranks: names, shapes, files and every bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from codellama_convert.errors import shown
from codellama_convert.formats.source_sums import TensorFile
from codellama_convert.formats.tensor_reader import TensorReader
from codellama_convert.meta.checkpoint import Checkpoint
from codellama_convert.plan.plan import ConversionPlan
from codellama_convert.plan.tiles import TensorPlan
from codellama_convert.plan.weights import WeightsJob
from codellama_convert.storage.buffers import aligned_buffer
from codellama_convert.storage.watch import Watch
from codellama_convert.verify.against_record import Measured
from codellama_convert.verify.folder_reader import StoredOutput
from codellama_convert.verify.jobs import compare_elsewhere, compare_here, open_sources
from codellama_convert.verify.record_reader import FileSums
from codellama_convert.verify.report import Problems
from codellama_convert.verify.sums import FileReading

_PIECE_BYTES = 1 << 20  # of what no tensor covers


def compare_shapes(
    checkpoint: Checkpoint, found: Mapping[str, StoredOutput], problems: Problems
) -> dict[str, StoredOutput]:
    """Compare names and shapes.

    Args:
        checkpoint: The source.
        found: The tensors that the output holds.
        problems: Gets what differs.

    Returns:
        The tensors whose values can be compared.
    """
    wanted = {tensor.spec.name: tensor.spec for tensor in checkpoint.layout}
    for name in sorted(set(wanted) - set(found)):
        problems.add(f"tensor {name!r} is missing")
    for name in sorted(set(found) - set(wanted)):
        problems.add(
            f"tensor {shown(name)} does not belong to this model", file=found[name].file.name
        )
    comparable = {}
    for name in sorted(set(found) & set(wanted)):
        if found[name].shape != wanted[name].shape:
            problems.add(
                f"tensor {name!r} has shape {found[name].shape}, expected {wanted[name].shape}",
                file=found[name].file.name,
            )
        else:
            comparable[name] = found[name]
    return comparable


def common_dtype(
    stored: Mapping[str, StoredOutput], plan: ConversionPlan, problems: Problems
) -> str:
    """Name the one dtype that all tensors have, or the one asked for."""
    dtypes = sorted({one.dtype.name for one in stored.values()})
    if len(dtypes) != 1:
        if dtypes:
            problems.add(f"the tensors are of several dtypes: {', '.join(dtypes)}")
        return plan.dtype.name
    if dtypes[0] != plan.dtype.name:
        problems.add(f"the tensors are {dtypes[0]}, not {plan.dtype.name} as asked for")
    return dtypes[0]


def bytes_of_both_sides(weights: WeightsJob | None, stored: Mapping[str, StoredOutput]) -> int:
    """Sum what is read of the output, and of the ranks for it."""
    layout = () if weights is None else weights.checkpoint.layout
    read = {tensor.spec.name: tensor.spec.n_bytes for tensor in layout}
    return sum(one.n_bytes + read[name] for name, one in stored.items())


def compare_files(
    plan: ConversionPlan, stored: Mapping[str, StoredOutput], problems: Problems
) -> None:
    """Compare which file holds which tensor.

    Args:
        plan: Where they belong, by the largest size of a file that was asked for.
        stored: The tensors that the output holds; of another dtype, they belong elsewhere.
        problems: Gets the first that lies elsewhere.
    """
    if any(
        stored[t.spec.name].dtype != t.spec.dtype for t in plan.tensors if t.spec.name in stored
    ):
        return
    for file in plan.files:
        for tensor in file.tensors:
            one = stored.get(tensor.spec.name)
            if one is not None and one.file.name != file.name:
                problems.add(
                    f"holds tensor {tensor.spec.name!r}; by the largest size of a file that was "
                    f"asked for, it belongs in {file.name}",
                    file=one.file.name,
                    about=[file.name],
                )
                return


def compare_weights(
    weights: WeightsJob,
    stored: Mapping[str, StoredOutput],
    problems: Problems,
    reading: FileReading,
) -> Measured:
    """Walk every tensor backwards to the ranks, and sum both sides on the way.

    Args:
        weights: The source, and the size of the tiles.
        stored: The tensors of the output that can be compared.
        problems: Gets what differs.
        reading: How the files of both sides are read, and by whom.

    Returns:
        The sums and counts.

    Raises:
        ConvertError: If a side cannot be read.
    """
    # A rank's norms are copies that the structure's check compared; each is read here as well.
    plans = [tensor for tensor in weights.plan.tensors if tensor.spec.name in stored]
    parts = {
        tensor.spec.name: dict.fromkeys(tensor.target.files, stored[tensor.spec.name])
        for tensor in plans
    }
    return compare_tensors(plans, parts, weights.checkpoint.ranks, problems, reading)


def compare_tensors(
    plans: Sequence[TensorPlan],
    parts: Mapping[str, Mapping[int, StoredOutput]],
    sources: Sequence[TensorFile],
    problems: Problems,
    reading: FileReading,
) -> Measured:
    """Walk tensors backwards to the files that they came from, and sum both sides on the way.

    Args:
        plans: The tensors, and the size of their tiles.
        parts: By tensor and by the number of the output's file: what can be compared.
        sources: The files of the source by their number.
        problems: Gets what differs.
        reading: How the files of both sides are read, and by how many workers.

    Returns:
        The sums and counts.

    Raises:
        ConvertError: If a side cannot be read.
    """
    with ExitStack() as stack:
        readers = open_sources(sources, plans, reading.io_mode, stack)
        if reading.executor is None:
            compared = compare_here(plans, parts, readers, reading)
            for reader in readers:
                reader.note(reader.take_sums())
        else:
            compared = compare_elsewhere(reading.executor, plans, parts, readers, reading)
        for tensor, one in zip(plans, compared, strict=True):
            if one.difference is not None:
                file = parts[tensor.spec.name][one.differs_in].file
                problems.add(one.difference, file=file.name)
        buffer = aligned_buffer(_PIECE_BYTES)
        sums = {reader.index.path.name: _sums(reader, buffer, reading.watch) for reader in readers}
    tensors = {tensor.spec.name: one for tensor, one in zip(plans, compared, strict=True)}
    return Measured(sums, tensors)


def _sums(reader: TensorReader, buffer: memoryview, watch: Watch) -> FileSums:
    reader.finish(buffer, watch)
    return FileSums(reader.index.n_bytes, f"{reader.file_crc(buffer, watch):08x}")
