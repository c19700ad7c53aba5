"""Own the writing of a job's weights: which files are still to be written, and what becomes known of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from codellama_convert.convert.movers import Movers
from codellama_convert.convert.transfer import TileSource, write_tensors
from codellama_convert.formats.tensor_reader import TensorReader
from codellama_convert.plan.job import Job
from codellama_convert.plan.ranks.job import ReverseJob
from codellama_convert.plan.target import TargetFile, file_crc
from codellama_convert.plan.tiles import TensorPlan
from codellama_convert.staging.folder import OutputFolder
from codellama_convert.staging.record_values import SealedFile
from codellama_convert.storage.blocks import IoMode, aligned_buffer
from codellama_convert.storage.checksums import SourceSums
from codellama_convert.storage.output_file import OutputFile
from codellama_convert.storage.watch import Watch


@dataclass(slots=True)
class Written:
    """What was written of the weights."""

    sealed: dict[str, SealedFile] = field(default_factory=dict)
    rank_crcs: tuple[int, ...] = ()
    kept_bytes: int = 0
    direct: bool = False


class WeightWriter:
    """Writes the files of a job's weights that are not whole yet."""

    def __init__(self, job: Job | ReverseJob, folder: OutputFolder, watch: Watch) -> None:
        self._job, self._folder, self._watch = job, folder, watch

    def all_files(self) -> Written:
        """Write them pass by pass, the files of each whole before the next one."""
        weights = self._job.weights
        if weights is None:
            return Written()
        plan = weights.plan
        io_mode = self._job.options.io_mode
        with ExitStack() as stack:
            movers = Movers(weights.source_dtypes, plan.dtype)
            stack.callback(movers.close)
            readers = [
                stack.enter_context(
                    TensorReader(file, names_read(plan.tensors, number), io_mode=io_mode)
                )
                for number, file in enumerate(weights.source_files)
            ]
            buffers = [
                (aligned_buffer(plan.read_tile_bytes), aligned_buffer(plan.write_tile_bytes))
                for _ in range(plan.workers)
            ]
            missing = [
                files for files in plan.passes if not self._keeps(files, readers, buffers[0][0])
            ]
            kept_bytes = plan.tensor_bytes - sum(map(_tensor_bytes, missing))
            self._folder.parts.reserve(
                {file.name: file.n_bytes for files in missing for file in files}
            )
            source = TileSource(readers, movers)
            direct = all(reader.direct for reader in readers)
            for files in missing:
                output_is_direct = self._write_pass(files, source, buffers, io_mode)
                direct = direct and output_is_direct
            for reader in readers:
                reader.finish(buffers[0][0], self._watch)
            rank_crcs = tuple(reader.file_crc(buffers[0][0], self._watch) for reader in readers)
            return Written(dict(self._folder.sealed), rank_crcs, kept_bytes, direct)

    def _keeps(
        self, files: Sequence[TargetFile], readers: Sequence[TensorReader], buffer: memoryview
    ) -> bool:
        """Return whether an earlier run left all files of a pass whole, and take note of its sums.

        What was read for one of them was read for all, so none is kept without the others.
        """
        kept = [self._folder.keeps(file.name, file.beginning, buffer) for file in files]
        if all(kept) and self._confirms(files, readers, buffer):
            sums_of_pass = self._folder.sealed[files[0].name].source
            for reader, sums in zip(readers, sums_of_pass, strict=True):
                reader.keep(sums)
            self._watch.advance(_tensor_bytes(files))
            return True
        for file, was_kept in zip(files, kept, strict=True):
            if was_kept:
                self._folder.forget(file.name)
        return False

    def _confirms(
        self, files: Sequence[TargetFile], readers: Sequence[TensorReader], buffer: memoryview
    ) -> bool:
        """Return whether the records speak of these files, and the source is what they were made of.

        What was read for a pass stands in the record of its first file.
        """
        first, *others = (self._folder.sealed[file.name] for file in files)
        return (
            all(map(_is_of, (first, *others), files))
            and not any(other.source for other in others)
            and len(first.source) == len(readers)
            and all(
                reader.confirms(sums, names_read(files[0].tensors, number), buffer, self._watch)
                for number, (reader, sums) in enumerate(zip(readers, first.source, strict=True))
            )
        )

    def _write_pass(
        self,
        files: Sequence[TargetFile],
        source: TileSource,
        buffers: Sequence[tuple[memoryview, memoryview]],
        io_mode: IoMode,
    ) -> bool:
        """Read some tensors once, and write them into all files that get some of them."""
        with ExitStack() as stack:
            outputs = {
                file.number: stack.enter_context(
                    self._folder.parts.open(file.name, io_mode=io_mode)
                )
                for file in files
            }
            crcs = write_tensors(
                files[0].tensors, outputs, source, buffers=buffers, watch=self._watch
            )
            self._watch.check()
            was_direct = all(output.direct for output in outputs.values())
            sums = [reader.take_sums() for reader in source.readers]
            for file in files:
                own = {name: by_file[file.number] for name, by_file in crcs.items()}
                self._seal(file, outputs[file.number], own)
                self._note(file, own, source, sums if file is files[0] else [])
        return was_direct

    def _seal(self, file: TargetFile, output: OutputFile, crcs: Mapping[str, int]) -> None:
        for position, piece in file.body(crcs):
            output.write_at(position, piece)
        self._folder.parts.seal(output, file.name, file.seal(crcs))

    def _note(
        self, file: TargetFile, crcs: dict[str, int], source: TileSource, sums: list[SourceSums]
    ) -> None:
        counts = source.movers.counts(crcs)
        self._folder.note_sealed(
            SealedFile(
                name=file.name, n_bytes=file.n_bytes, crc32=file_crc(file, crcs), tensors=crcs,
                became_zero=counts.became_zero, nonfinite=counts.nonfinite, source=sums,
            )
        )  # fmt: skip


def _is_of(sealed: SealedFile, file: TargetFile) -> bool:
    """Return whether a record speaks of the tensors of a file, and agrees with itself."""
    n_elements = {tensor.spec.name: tensor.spec.n_elements for tensor in file.tensors}
    counts = [*sealed.became_zero.items(), *sealed.nonfinite.items()]
    return (
        sealed.tensors.keys() == n_elements.keys()
        and all(0 < n <= n_elements.get(name, 0) for name, n in counts)
        and sealed.crc32 == file_crc(file, sealed.tensors)
    )


def _tensor_bytes(files: Sequence[TargetFile]) -> int:
    """Count the bytes that a pass writes, copies once."""
    return sum(tensor.spec.n_bytes for tensor in files[0].tensors)


def names_read(tensors: Sequence[TensorPlan], number: int) -> list[str]:
    """Name the tensors whose rows are taken from a file: copies are taken from the first.

    Args:
        tensors: All that are moved.
        number: Of the file.

    Returns:
        Their names in the file.
    """
    return [
        tensor.source.name
        for tensor in tensors
        if any(part.file == number for part in tensor.source.sources)
    ]
