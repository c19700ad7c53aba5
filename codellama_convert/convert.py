"""Own the running of a plan: tiles from the ranks into the output files; print nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codellama_convert.cast import CastLoss, Mover, open_mover
from codellama_convert.files import OutputFile, SpanWriter, aligned_buffer
from codellama_convert.job import Job, Options, plan_conversion
from codellama_convert.output import OutputFolder, refuse_same_folder
from codellama_convert.plan import FilePlan, TensorPlan, Tile
from codellama_convert.rank_reader import RankReader, Rows
from codellama_convert.rope import to_half_split

Progress = Callable[[int], None]

_UNSIGNED = {2: "<u2", 4: "<u4"}


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
        output_dir: The converted model.
        files: Names of all files that were written.
        tensor_bytes: Bytes of the written tensors.
        direct: Whether the page cache was passed by, on both sides.
        dropped: Names of tensors that were left out.
        cast: Both dtypes where the elements were cast, such as "bfloat16 to float16".
        losses: What a cast lost.
        notes: What the user should know.
    """

    output_dir: Path
    files: tuple[str, ...]
    tensor_bytes: int
    direct: bool
    dropped: tuple[str, ...]
    cast: str | None
    losses: tuple[CastLoss, ...]
    notes: tuple[str, ...]


def convert_checkpoint(
    input_dir: Path,
    output_dir: Path,
    *,
    options: Options | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ConversionReport:
    """Convert a Meta checkpoint into a Hugging Face folder.

    Args:
        input_dir: The checkpoint's folder, or one that holds it.
        output_dir: The new folder.
        options: What to write, and how.
        overwrite: Whether a model in `output_dir` may be replaced.
        progress: Called with the bytes of each tile that was written, from several threads.

    Returns:
        What was done.

    Raises:
        ConvertError: If anything is wrong; nothing that loads is left behind then.
    """
    job = plan_conversion(input_dir, options or Options())
    return run(job, output_dir, overwrite=overwrite, progress=progress)


def run(
    job: Job, output_dir: Path, *, overwrite: bool = False, progress: Progress | None = None
) -> ConversionReport:
    """Run a prepared conversion; the arguments and errors of `convert_checkpoint`."""
    refuse_same_folder(output_dir, job.files.folder)
    small_files = job.small_files()
    direct, losses = False, tuple[CastLoss, ...]()
    with OutputFolder(output_dir, overwrite=overwrite) as folder:
        if job.checkpoint is not None:
            direct, losses = _write_weights(job, folder, progress or _ignore)
        for name, content in small_files.items():
            folder.add(name, content)
        names = tuple(sorted(entry.name for entry in folder.staging.iterdir()))
        folder.publish()
    return ConversionReport(
        output_dir=output_dir,
        files=names,
        tensor_bytes=job.plan.tensor_bytes if job.plan else 0,
        direct=direct,
        dropped=job.checkpoint.dropped if job.checkpoint else (),
        cast=job.cast,
        losses=losses,
        notes=job.notes,
    )


def _ignore(n_bytes: int) -> None:
    del n_bytes


def _write_weights(
    job: Job, folder: OutputFolder, progress: Progress
) -> tuple[bool, tuple[CastLoss, ...]]:
    """Write every safetensors file; tell whether I/O was direct and what a cast lost."""
    checkpoint, plan = job.checkpoint, job.plan
    assert checkpoint is not None
    assert plan is not None
    direct = True
    with ExitStack() as stack:
        mover = open_mover(checkpoint.dtype, plan.dtype)
        stack.callback(mover.close)
        readers = [
            stack.enter_context(
                RankReader(rank, _names_read(plan.tensors, number), io_mode=job.options.io_mode)
            )
            for number, rank in enumerate(checkpoint.ranks)
        ]
        buffers = [
            (aligned_buffer(plan.read_tile_bytes), aligned_buffer(plan.write_tile_bytes))
            for _ in range(plan.workers)
        ]
        for file in plan.files:
            output = folder.create(file.name, file.n_bytes, io_mode=job.options.io_mode)
            try:
                write_file(
                    file, output, TileSource(readers, mover), buffers=buffers, progress=progress
                )
                direct = direct and output.direct
                folder.seal(output, file.name)
            finally:
                output.abandon()
        for reader in readers:
            reader.finish(buffers[0][0])
            direct = direct and reader.direct
    return direct, mover.losses()


def _names_read(tensors: Sequence[TensorPlan], rank: int) -> list[str]:
    """Name the tensors whose rows are taken from a rank: copies are taken from the first."""
    return [t.layout.meta_name for t in tensors if rank == 0 or t.layout.tp_dim is not None]


def write_file(
    file: FilePlan,
    output: OutputFile,
    source: TileSource,
    *,
    buffers: Sequence[tuple[memoryview, memoryview]],
    progress: Progress,
) -> None:
    """Write one output file; the header comes last, so a torn file can never be loaded.

    Args:
        file: What it holds.
        output: The open file, of its final size.
        source: The open ranks.
        buffers: For each worker, one to read into and one to write from.
        progress: Called with the bytes of each tile that was written.

    Raises:
        ConvertError: If reading, casting or writing fails.
    """
    queue = iter(file.tensors)
    lock = threading.Lock()
    failed = threading.Event()

    def next_tensor() -> TensorPlan | None:
        with lock:
            return None if failed.is_set() else next(queue, None)

    def work(read_buffer: memoryview, write_buffer: memoryview) -> None:
        try:
            while (tensor := next_tensor()) is not None:
                span = SpanWriter(output, tensor.offset, write_buffer)
                for tile in tensor.tiles():
                    if failed.is_set():
                        return
                    n_bytes = tile.n_rows * tensor.row_bytes
                    source.fill(span.space(n_bytes), tensor, tile, read_buffer)
                    span.commit(n_bytes)
                    progress(n_bytes)
                span.finish()
        except BaseException:
            failed.set()
            raise

    if len(buffers) == 1:
        work(*buffers[0])
    else:
        with ThreadPoolExecutor(len(buffers)) as pool:
            _wait_for_all([pool.submit(work, *pair) for pair in buffers], failed)
    output.write_at(0, file.header)


def _wait_for_all(futures: Sequence[Future[None]], failed: threading.Event) -> None:
    """Wait for the workers; a problem of one, or a signal to us, stops the others."""
    try:
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
    except BaseException:
        failed.set()
        raise


@dataclass(frozen=True, slots=True)
class TileSource:
    """The open ranks and the way from their elements to the output's.

    Attributes:
        readers: One a rank, in order.
        mover: How elements are moved.
    """

    readers: Sequence[RankReader]
    mover: Mover

    def fill(
        self, target: memoryview, tensor: TensorPlan, tile: Tile, read_buffer: memoryview
    ) -> None:
        """Read a tile from its rank or ranks and put it together.

        Args:
            target: Where it goes; exactly the tile's bytes.
            tensor: The tensor that it is of.
            tile: Which rows.
            read_buffer: To read into, of the plan's size.

        Raises:
            ConvertError: If reading or casting fails.
        """
        elements = np.frombuffer(target, _UNSIGNED[tensor.spec.dtype.itemsize])
        elements = elements.reshape(tile.n_rows, tensor.n_columns)
        name, head_dim = tensor.spec.name, tensor.layout.head_dim
        for rows, part in self._parts(tensor, tile, elements, read_buffer):
            if head_dim is None:
                self.mover.move(rows, part, name=name)
            else:
                reordered = to_half_split(rows, head_dim)
                self.mover.move(reordered, part.reshape(reordered.shape), name=name)

    def _parts(
        self, tensor: TensorPlan, tile: Tile, target: Rows, read_buffer: memoryview
    ) -> Iterator[tuple[Rows, Rows]]:
        """Yield each rank's rows of a tile with the part of the tile that they fill."""
        name = tensor.layout.meta_name
        if tensor.layout.tp_dim == 1:
            width = tensor.n_columns // len(self.readers)
            for rank, reader in enumerate(self.readers):
                rows = reader.read_rows(name, tile.start_row, tile.n_rows, read_buffer)
                yield rows, target[:, rank * width : (rank + 1) * width]
        else:
            rank, row = divmod(tile.start_row, tensor.layout.part_shape[0])
            yield self.readers[rank].read_rows(name, row, tile.n_rows, read_buffer), target
