"""Own the writing of the files of one pass, each into a part of its own: the same work whoever does it.

Nothing gets its name here. What comes of a pass is a report, by which a coordinator names the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from codellama_convert.convert.movers import Movers
from codellama_convert.convert.transfer import TileSource, write_tensors
from codellama_convert.formats.tensor_reader import TensorReader
from codellama_convert.model.placement import Part, parts_read
from codellama_convert.plan.job import Job
from codellama_convert.plan.ranks.job import ReverseJob
from codellama_convert.plan.ranks.weights import RanksJob
from codellama_convert.plan.target import TargetFile, TransferPlan, file_crc
from codellama_convert.plan.tiles import TensorPlan
from codellama_convert.plan.weights import WeightsJob
from codellama_convert.staging.part_files import PartFiles
from codellama_convert.staging.record_values import SealedFile
from codellama_convert.storage.blocks import IoMode
from codellama_convert.storage.buffers import buffer_pairs
from codellama_convert.storage.checksums import SourceSums
from codellama_convert.storage.output_file import OutputFile
from codellama_convert.storage.watch import Watch

BufferPair = tuple[memoryview, memoryview]  # to read into, and to write from
Pass = Sequence[TargetFile]  # all of them get some of each of its tensors


@dataclass(frozen=True, slots=True)
class FileReport:
    """What was written in one pass, whole and on the disk, and not named yet.

    Attributes:
        parts: The names under which the files stand in the staging folder.
        sealed: What each of them is; the first says for all of them what was read of the source,
            and what is odd about the values.
        direct: Whether the page cache was passed by, on both sides.
    """

    parts: tuple[str, ...]
    sealed: tuple[SealedFile, ...]
    direct: bool


def open_readers(
    weights: WeightsJob | RanksJob, io_mode: IoMode, to_close: ExitStack
) -> list[TensorReader]:
    """Open the files of the source; whoever opens them for one plan means the same sums.

    Args:
        weights: What is read.
        io_mode: How.
        to_close: Closes them.

    Returns:
        The readers, by their number on the source's side.

    Raises:
        CheckpointError: If a file cannot be opened, or changed since the plan was made.
    """
    # Of each file the names alone: the rows of all files would take more than the readers.
    read: list[list[str]] = [[] for _ in weights.source_files]
    for part, name, _ in _each_read(weights.plan.tensors):
        read[part.file].append(name)
    kinds = weights.plan.kinds
    return [
        to_close.enter_context(TensorReader(file, names, kinds=kinds, io_mode=io_mode))
        for file, names in zip(weights.source_files, read, strict=True)
    ]


def new_buffers(plan: TransferPlan, n_pairs: int) -> list[BufferPair]:
    """Allocate what so many workers of a plan read into and write from."""
    return buffer_pairs(plan.read_tile_bytes, plan.write_tile_bytes, n_pairs)


def rows_read(tensors: Sequence[TensorPlan], n_files: int) -> list[dict[str, range]]:
    """List what is read of each file of the source for some tensors: of copies, the first.

    Args:
        tensors: Those that are moved, to all files or to one.
        n_files: How many files the source has.

    Returns:
        For each file the rows of what it holds, by the tensor's name there.
    """
    found: list[dict[str, range]] = [{} for _ in range(n_files)]
    for part, name, rows in _each_read(tensors):
        first = part.rows.start
        found[part.file][name] = range(rows.start - first, rows.stop - first)
    return found


def _each_read(tensors: Iterable[TensorPlan]) -> Iterator[tuple[Part, str, range]]:
    """Yield each part of the source that some tensors need: its name there, and which of all rows."""
    for tensor in tensors:
        for part, rows in parts_read(tensor.source, tensor.target).items():
            yield part, tensor.source.name, rows


def file_bytes(files: Pass) -> int:
    """Count the bytes of the files of a pass."""
    return sum(file.n_bytes for file in files)


def tensor_bytes(files: Pass) -> int:
    """Count the bytes of the tensors of a pass, copies once."""
    return sum(tensor.moved_bytes for tensor in files[0].tensors)


class PassWriter:
    """Writes passes, one after another.

    Attributes:
        readers: Of the source.
    """

    def __init__(
        self,
        weights: WeightsJob | RanksJob,
        readers: Sequence[TensorReader],
        buffers: Sequence[BufferPair],
        parts: PartFiles,
        *,
        io_mode: IoMode,
        watch: Watch,
    ) -> None:
        """Take what is open already; `close` gives back what this takes besides.

        Args:
            weights: What is written of what.
            readers: From `open_readers`.
            buffers: From `new_buffers`, a pair for each thread.
            parts: Where the files go; their space is reserved.
            io_mode: How they are written.
            watch: Whom each tile that was written is reported to.
        """
        self.readers = readers
        self._movers = Movers(weights.source_dtypes, weights.plan.dtype)
        self._source = TileSource(readers, self._movers)
        self._buffers, self._parts = buffers, parts
        self._io_mode, self._watch = io_mode, watch

    def write(self, files: Pass) -> FileReport:
        """Read some tensors once, and write them into all files that get some of them.

        Args:
            files: Those of one pass.

        Returns:
            What was written.

        Raises:
            ConvertError: If reading, casting or writing fails, or the watch asked to stop.
        """
        with ExitStack() as stack:
            outputs = [
                stack.enter_context(self._parts.open(file.name, io_mode=self._io_mode))
                for file in files
            ]
            by_number = {file.number: one for file, one in zip(files, outputs, strict=True)}
            crcs = write_tensors(
                files[0].tensors, by_number, self._source, buffers=self._buffers, watch=self._watch
            )
            self._watch.check()
            direct = all(one.direct for one in self.readers) and all(one.direct for one in outputs)
            sums = [reader.take_sums() for reader in self.readers]
            sealed: list[SealedFile] = []
            for file, output in zip(files, outputs, strict=True):
                own = {name: by_file[file.number] for name, by_file in crcs.items()}
                self._seal(file, output, own)
                sealed.append(self._sealed(file, own, None if sealed else sums))
        return FileReport(tuple(one.path.name for one in outputs), tuple(sealed), direct)

    def _seal(self, file: TargetFile, output: OutputFile, crcs: Mapping[str, int]) -> None:
        for position, piece in file.body(crcs):
            output.write_at(position, piece)
        self._parts.seal(output, file.seal(crcs))

    def _sealed(
        self, file: TargetFile, crcs: dict[str, int], sums: list[SourceSums] | None
    ) -> SealedFile:
        """Describe a file; `sums` are given for the first of a pass."""
        counted = {tensor.spec.name for tensor in file.tensors if tensor.moved_bytes}
        counts = self._movers.counts(counted if sums is not None else ())
        return SealedFile(
            name=file.name, n_bytes=file.n_bytes, crc32=file_crc(file, crcs), tensors=crcs,
            became_zero=counts.became_zero, nonfinite=counts.nonfinite, source=sums or [],
        )  # fmt: skip

    def close(self) -> None:
        """Give back what the movers took from the process."""
        self._movers.close()

    def __enter__(self) -> PassWriter:  # noqa: PYI034 - typing.Self is not in Python 3.10
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def open_writer(
    job: Job | ReverseJob, passes: Sequence[Pass], parts: PartFiles, watch: Watch
) -> Iterator[PassWriter]:
    """Open what some passes need, for code that writes these and nothing else.

    Args:
        job: What they are of; it has weights.
        passes: Those that will be written; the space of their files is reserved.
        parts: Where they go.
        watch: Whom each tile that was written is reported to.

    Yields:
        What writes them.

    Raises:
        ConvertError: If the source cannot be opened, or the space not be reserved.
    """
    assert job.weights is not None, "it has files"
    io_mode, plan = job.options.io_mode, job.weights.plan
    with ExitStack() as stack:
        readers = open_readers(job.weights, io_mode, stack)
        parts.reserve({file.name: file.n_bytes for files in passes for file in files})
        yield stack.enter_context(
            PassWriter(
                job.weights, readers, new_buffers(plan, plan.workers), parts,
                io_mode=io_mode, watch=watch,
            )
        )  # fmt: skip
