"""Own the comparison of some tensors with their source: on threads here, or as jobs of an executor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

from codellama_convert.choices import DEFAULT_MAX_RAM_BYTES
from codellama_convert.errors import VerifyError
from codellama_convert.formats.source_sums import TensorFile
from codellama_convert.formats.stored_tensor import Storage, StoredTensor
from codellama_convert.formats.tensor_reader import TensorReader
from codellama_convert.plan.budget import buffer_pair_bytes
from codellama_convert.plan.tiles import TensorPlan
from codellama_convert.storage.blocks import IoMode
from codellama_convert.storage.buffers import buffer_pairs
from codellama_convert.storage.checksums import SourceSums
from codellama_convert.storage.executors import done_by
from codellama_convert.storage.input_file import InputFile
from codellama_convert.storage.threads import share_out
from codellama_convert.storage.watch import Watch
from codellama_convert.verify.folder_reader import StoredOutput
from codellama_convert.verify.sums import FileReading
from codellama_convert.verify.tensor import Compared, OpenPart, TensorComparer

_N_JOBS = 32  # about; several for each worker, so that none is waited for long

Parts = Mapping[str, Mapping[int, StoredOutput]]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of the source as whoever planned saw it, for a worker that may be elsewhere.

    Attributes:
        path: The file, from the root of the file system.
        n_bytes: Its size.
        inode: Device and inode.
        mtime_ns: Time of its last change.
        tensors: Its tensors by name.
        storages: Their bytes by the storage's name.
        names: The tensors that are read of it, by all workers together.
    """

    path: Path
    n_bytes: int
    inode: tuple[int, int]
    mtime_ns: int
    tensors: Mapping[str, StoredTensor]
    storages: Mapping[str, Storage]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CompareRequest:
    """A job: tensors that somebody is to compare with their source.

    Attributes:
        plans: The tensors, and the size of their tiles.
        parts: By tensor and by the number of the output's file: what can be compared.
        sources: The files of the source by their number.
        io_mode: How the files of both sides are read.
        n_threads: Tensors that are compared at once, at most.
        max_ram_bytes: Largest sum of all buffers, if it was asked for.
    """

    plans: tuple[TensorPlan, ...]
    parts: Parts
    sources: tuple[SourceFile, ...]
    io_mode: IoMode
    n_threads: int
    max_ram_bytes: int | None


def compare_some(request: CompareRequest) -> tuple[list[Compared], list[SourceSums]]:
    """Compare some tensors with their source; any worker may, as nothing is written.

    Args:
        request: Which.

    Returns:
        What was found of each, and what was read of each file of the source.

    Raises:
        ConvertError: If a side cannot be read, or is not as it was.
    """
    reading = FileReading(
        request.io_mode, request.n_threads, Watch(), max_ram_bytes=request.max_ram_bytes
    )
    with ExitStack() as stack:
        readers = [
            stack.enter_context(TensorReader(_as_here(one), one.names, io_mode=request.io_mode))
            for one in request.sources
        ]
        compared = compare_here(request.plans, request.parts, readers, reading)
        return compared, [reader.take_sums() for reader in readers]


def compare_here(
    plans: Sequence[TensorPlan],
    parts: Parts,
    readers: Sequence[TensorReader],
    reading: FileReading,
) -> list[Compared]:
    """Compare tensors with their source on threads of this process.

    Args:
        plans: The tensors, and the size of their tiles.
        parts: By tensor and by the number of the output's file: what can be compared.
        readers: Of the source.
        reading: How the files of the output are read, and by how many threads.

    Returns:
        What was found of each.

    Raises:
        ConvertError: If a side cannot be read.
    """
    with ExitStack() as stack:
        paths = {one.file for plan in plans for one in parts[plan.spec.name].values()}
        files = {
            path: stack.enter_context(InputFile(path, io_mode=reading.io_mode, error=VerifyError))
            for path in sorted(paths)
        }

        def compare(
            tensor: TensorPlan, pair: tuple[memoryview, memoryview], watch: Watch
        ) -> Compared:
            outputs = {
                number: OpenPart(one, files[one.file])
                for number, one in parts[tensor.spec.name].items()
            }
            return TensorComparer(tensor, outputs, readers).compare(*pair, watch.advance)

        # Rows in another order are compared in another way than they were moved.
        whole = [plan.in_whole_heads() for plan in plans]
        buffers = _buffers(plans, whole, parts, reading)
        return share_out(whole, buffers, compare, reading.watch)


def _buffers(
    plans: Sequence[TensorPlan], whole: Sequence[TensorPlan], parts: Parts, reading: FileReading
) -> list[tuple[memoryview, memoryview]]:
    """Allocate what is read into: for as many workers as fit, and for one if none does.

    Tiles of `whole` heads may take more than those of the `plans` that they are of.
    """

    def needed(plans: Sequence[TensorPlan]) -> tuple[int, int]:
        return (
            max((plan.read_bytes for plan in plans), default=1),
            max((_output_bytes(plan, parts[plan.spec.name]) for plan in plans), default=1),
        )

    read_bytes, output_bytes = needed(whole)
    limit = reading.max_ram_bytes
    if limit is None:
        planned = reading.workers * buffer_pair_bytes(*needed(plans))
        limit = max(DEFAULT_MAX_RAM_BYTES, planned)
    n_workers = min(reading.workers, limit // buffer_pair_bytes(read_bytes, output_bytes))
    return buffer_pairs(read_bytes, output_bytes, max(1, n_workers))


def compare_elsewhere(
    executor: Executor,
    plans: Sequence[TensorPlan],
    parts: Parts,
    readers: Sequence[TensorReader],
    reading: FileReading,
) -> list[Compared]:
    """Have workers compare tensors, and let the readers know what was read; else as `compare_here`.

    Raises:
        ConvertError: As of `compare_some` and `done_by`.
    """
    sources = tuple(_to_send(reader.index, _names_in(n, plans)) for n, reader in enumerate(readers))
    requests = {
        group[0].spec.name: CompareRequest(
            tuple(group), {one.spec.name: _anywhere(parts[one.spec.name]) for one in group},
            sources, reading.io_mode, reading.workers, reading.max_ram_bytes,
        )
        for group in _groups(plans)
    }  # fmt: skip
    found: dict[str, list[Compared]] = {}
    with closing(done_by(executor, compare_some, requests, reading.watch)) as results:
        for name, (compared, sums) in results:
            found[name] = compared
            for reader, one in zip(readers, sums, strict=True):
                reader.note(one)
            written = (
                part for by_file in requests[name].parts.values() for part in by_file.values()
            )
            reading.watch.advance(sum(part.n_bytes for part in written))
    return [one for name in requests for one in found[name]]


def open_sources(
    sources: Sequence[TensorFile], plans: Sequence[TensorPlan], io_mode: IoMode, to_close: ExitStack
) -> list[TensorReader]:
    """Open the files of a source, to read the rows of some tensors.

    Raises:
        CheckpointError: If one cannot be opened, or changed since it was planned.
    """
    return [
        to_close.enter_context(TensorReader(file, _names_in(number, plans), io_mode=io_mode))
        for number, file in enumerate(sources)
    ]


def _names_in(number: int, plans: Sequence[TensorPlan]) -> tuple[str, ...]:
    return tuple(tensor.source.name for tensor in plans if number in tensor.source.files)


def _groups(plans: Sequence[TensorPlan]) -> Iterator[list[TensorPlan]]:
    """Split tensors into about `_N_JOBS` groups of neighbours, of about the same size."""
    most = sum(tensor.spec.n_bytes for tensor in plans) // _N_JOBS
    group: list[TensorPlan] = []
    n_bytes = 0
    for tensor in plans:
        group.append(tensor)
        n_bytes += tensor.spec.n_bytes
        if n_bytes > most:
            yield group
            group, n_bytes = [], 0
    if group:
        yield group


def _output_bytes(tensor: TensorPlan, parts: Mapping[int, StoredOutput]) -> int:
    """Count what a tile takes as the output has it, which may be of a dtype nobody asked for."""
    dtype = next(iter(parts.values())).dtype
    return replace(tensor, spec=replace(tensor.spec, dtype=dtype)).write_bytes


def _anywhere(parts: Mapping[int, StoredOutput]) -> dict[int, StoredOutput]:
    return {n: replace(one, file=one.file.absolute()) for n, one in parts.items()}


def _to_send(file: TensorFile, names: tuple[str, ...]) -> SourceFile:
    return SourceFile(
        file.path.absolute(), file.n_bytes, file.inode, file.mtime_ns, file.tensors, file.storages,
        names,
    )  # fmt: skip


def _as_here(file: SourceFile) -> SourceFile:
    """Take the number that this machine gives the file system: size, inode and time are compared."""
    try:
        device = file.path.stat().st_dev
    except OSError:  # the reader says what is wrong with it
        return file
    return replace(file, inode=(device, file.inode[1]))
