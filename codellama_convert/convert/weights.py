"""Own the course of a job's weights: what is kept, who writes the rest, and what gets its name.

Only here are files named and recorded, whoever wrote them, and the sums of the source joined.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

from codellama_convert.convert.executors import RemoteWriter
from codellama_convert.convert.write_pass import (
    BufferPair,
    FileReport,
    Pass,
    PassWriter,
    new_buffers,
    open_readers,
    rows_read,
    tensor_bytes,
)
from codellama_convert.errors import WorkerError
from codellama_convert.formats.tensor_reader import TensorReader
from codellama_convert.plan.job import Job
from codellama_convert.plan.ranks.job import ReverseJob
from codellama_convert.plan.target import TargetFile, file_crc
from codellama_convert.staging.folder import OutputFolder
from codellama_convert.staging.record_values import SealedFile
from codellama_convert.storage.checksums import SourceSums
from codellama_convert.storage.watch import Watch


@dataclass(slots=True)
class Written:
    """What was written of the weights."""

    sealed: dict[str, SealedFile] = field(default_factory=dict)
    rank_crcs: tuple[int, ...] = ()
    kept_bytes: int = 0
    direct: bool = False


class WeightWriter:
    """Sees to it that the files of a job's weights are written that are not whole yet.

    Attributes:
        executor: Whose workers write them; None is threads of this process.
    """

    def __init__(
        self,
        job: Job | ReverseJob,
        folder: OutputFolder,
        watch: Watch,
        executor: Executor | None = None,
    ) -> None:
        """Take what is written where; without an executor, on threads of this process."""
        if executor is not None and isinstance(job, ReverseJob):
            job = job.each_rank_alone()
        self._job, self._folder, self._watch = job, folder, watch
        self.executor = executor
        self._remote = None if executor is None else RemoteWriter(executor, job, folder, watch)
        self._readers: Sequence[TensorReader] = ()
        self._seen_whole: Mapping[str, bool | None] = {}  # by workers

    def all_files(self) -> Written:
        """Have them written pass by pass, the files of each named together."""
        weights = self._job.weights
        if weights is None:
            return Written()
        plan = weights.plan
        with ExitStack() as stack:
            self._readers = open_readers(weights, self._job.options.io_mode, stack)
            buffers = new_buffers(plan, plan.workers if self._remote is None else 1)
            buffer = buffers[0][0]
            if self._remote is not None:
                self._seen_whole = self._remote.look_at_kept()
            missing = [files for files in plan.passes if not self._keeps(files, buffer)]
            kept_bytes = plan.tensor_bytes - sum(map(tensor_bytes, missing))
            direct = all(reader.direct for reader in self._readers)
            with closing(self._reports(missing, buffers, stack)) as reports:
                for files, report in reports:
                    self._take(files, report)
                    direct = direct and report.direct
            for reader in self._readers:
                reader.finish(buffer, self._watch)
            crcs = tuple(reader.file_crc(buffer, self._watch) for reader in self._readers)
            return Written(dict(self._folder.sealed), crcs, kept_bytes, direct)

    def _reports(
        self, missing: Sequence[Pass], buffers: Sequence[BufferPair], to_close: ExitStack
    ) -> Generator[tuple[Pass, FileReport], None, None]:
        """Have passes written, and report on each as it is done."""
        weights = self._job.weights
        if weights is None or not missing:
            return
        if self._remote is not None:
            yield from self._remote.write(missing)
            return
        self._folder.parts.reserve({file.name: file.n_bytes for files in missing for file in files})
        writer = to_close.enter_context(
            PassWriter(
                weights, self._readers, buffers, self._folder.parts,
                io_mode=self._job.options.io_mode, watch=self._watch,
            )
        )  # fmt: skip
        for files in missing:
            yield files, writer.write(files)

    def _take(self, files: Pass, report: FileReport) -> None:
        """Name and record the files of a pass; what was read for them counts from now on."""
        if not self._are_of(report.sealed, files):
            raise WorkerError(
                f"what was written as {files[0].name} is not what the plan says",
                path=self._folder.staging,
                hint="all workers must run the same version",
            )
        self._note(report.sealed[0].source)
        for part, sealed in zip(report.parts, report.sealed, strict=True):
            self._folder.parts.name(part, sealed.name)
            self._folder.note_sealed(sealed)

    def _note(self, sums_of_pass: Sequence[SourceSums]) -> None:
        for reader, sums in zip(self._readers, sums_of_pass, strict=True):
            reader.note(sums)

    def _keeps(self, files: Pass, buffer: memoryview) -> bool:
        """Return whether an earlier run left all files of a pass whole, and take note of its sums.

        What was read for one of them was read for all, so none is kept without the others.
        """
        seen = self._seen_whole.get
        kept = [
            self._folder.keeps(file.name, file.beginning, buffer, is_seen_whole=seen(file.name))
            for file in files
        ]
        if all(kept) and self._confirms(files, buffer):
            sums_of_pass = self._folder.sealed[files[0].name].source
            for reader, sums in zip(self._readers, sums_of_pass, strict=True):
                reader.keep(sums)
            self._watch.advance(tensor_bytes(files))
            return True
        for file, was_kept in zip(files, kept, strict=True):
            if was_kept:
                self._folder.forget(file.name)
        return False

    def _confirms(self, files: Pass, buffer: memoryview) -> bool:
        """Return whether the records speak of these files, and the source is what they were made of."""
        records = [self._folder.sealed[file.name] for file in files]
        read = rows_read(files[0].tensors, len(self._readers))
        return self._are_of(records, files) and all(
            reader.confirms(sums, rows, buffer, self._watch)
            for reader, sums, rows in zip(self._readers, records[0].source, read, strict=True)
        )

    def _are_of(self, records: Sequence[SealedFile], files: Pass) -> bool:
        """Return whether records speak of the files of a pass, and of what was read for them.

        What was read for a pass stands in the record of its first file.
        """
        first, *others = records
        read = rows_read(files[0].tensors, len(self._readers))
        return (
            [one.name for one in records] == [file.name for file in files]
            and all(map(_is_of, records, files))
            and not any(other.source for other in others)
            and len(first.source) == len(self._readers)
            and all(
                reader.fits(sums, rows)
                for reader, sums, rows in zip(self._readers, first.source, read, strict=True)
            )
        )


def _is_of(sealed: SealedFile, file: TargetFile) -> bool:
    """Return whether a record speaks of the tensors of a file, and agrees with itself."""
    n_elements = {tensor.spec.name: tensor.spec.n_elements for tensor in file.tensors}
    counts = [*sealed.became_zero.items(), *sealed.nonfinite.items()]
    return (
        sealed.tensors.keys() == n_elements.keys()
        and all(0 < n <= n_elements.get(name, 0) for name, n in counts)
        and sealed.crc32 == file_crc(file, sealed.tensors)
    )
