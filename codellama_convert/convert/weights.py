"""Own the writing of a job's weights: which files are still to be written, and what becomes known of them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from codellama_convert.convert.movers import Movers
from codellama_convert.convert.transfer import TileSource, write_tensors
from codellama_convert.meta.rank_reader import RankReader
from codellama_convert.plan.job import Job
from codellama_convert.plan.plan import FilePlan
from codellama_convert.plan.tiles import TensorPlan
from codellama_convert.staging.folder import OutputFolder
from codellama_convert.staging.record_values import SealedFile
from codellama_convert.storage.blocks import IoMode, aligned_buffer
from codellama_convert.storage.checksums import combine
from codellama_convert.storage.watch import Watch


@dataclass(slots=True)
class Written:
    """What was written of the weights."""

    sealed: dict[str, SealedFile] = field(default_factory=dict)
    rank_crcs: tuple[int, ...] = ()
    kept_bytes: int = 0
    direct: bool = False


class WeightWriter:
    """Writes the safetensors files of a job that are not whole yet."""

    def __init__(self, job: Job, folder: OutputFolder, watch: Watch) -> None:
        self._job, self._folder, self._watch = job, folder, watch

    def all_files(self) -> Written:
        """Write them in order, each whole before the next one."""
        weights = self._job.weights
        if weights is None:
            return Written()
        checkpoint, plan = weights.checkpoint, weights.plan
        io_mode = self._job.options.io_mode
        with ExitStack() as stack:
            movers = Movers(checkpoint.dtypes, plan.dtype)
            stack.callback(movers.close)
            readers = [
                stack.enter_context(
                    RankReader(rank, _names_read(plan.tensors, number), io_mode=io_mode)
                )
                for number, rank in enumerate(checkpoint.ranks)
            ]
            buffers = [
                (aligned_buffer(plan.read_tile_bytes), aligned_buffer(plan.write_tile_bytes))
                for _ in range(plan.workers)
            ]
            kept = self._keep_whole_files(plan.files, readers, buffers[0][0])
            missing = [file for file in plan.files if file.name not in kept]
            kept_bytes = plan.tensor_bytes - sum(file.tensor_bytes for file in missing)
            self._folder.parts.reserve({file.name: file.n_bytes for file in missing})
            source = TileSource(readers, movers)
            direct = all(reader.direct for reader in readers)
            for file in missing:
                output_is_direct = self._write_file(file, source, buffers, io_mode)
                direct = direct and output_is_direct
            for reader in readers:
                reader.finish(buffers[0][0], self._watch)
            rank_crcs = tuple(reader.file_crc(buffers[0][0], self._watch) for reader in readers)
            return Written(dict(self._folder.sealed), rank_crcs, kept_bytes, direct)

    def _keep_whole_files(
        self, files: Sequence[FilePlan], readers: Sequence[RankReader], buffer: memoryview
    ) -> set[str]:
        """Find the files that an earlier run left whole, and take note of what it read for them."""
        kept = set()
        for file in files:
            if not self._folder.keeps(file.name, file.header, buffer):
                continue
            sealed = self._folder.sealed[file.name]
            if _is_of(sealed, file) and self._confirms(sealed, file, readers, buffer):
                for reader, sums in zip(readers, sealed.source, strict=True):
                    reader.keep(sums)
                kept.add(file.name)
                self._watch.advance(file.tensor_bytes)
            else:
                self._folder.forget(file.name)
        return kept

    def _confirms(
        self,
        sealed: SealedFile,
        file: FilePlan,
        readers: Sequence[RankReader],
        buffer: memoryview,
    ) -> bool:
        """Return whether every rank is still what a file was made of."""
        return len(sealed.source) == len(readers) and all(
            reader.confirms(sums, _names_read(file.tensors, rank), buffer, self._watch)
            for rank, (reader, sums) in enumerate(zip(readers, sealed.source, strict=True))
        )

    def _write_file(
        self,
        file: FilePlan,
        source: TileSource,
        buffers: Sequence[tuple[memoryview, memoryview]],
        io_mode: IoMode,
    ) -> bool:
        with self._folder.parts.open(file.name, io_mode=io_mode) as output:
            crcs = write_tensors(file, output, source, buffers=buffers, watch=self._watch)
            self._watch.check()
            was_direct = output.direct
            sums = [reader.take_sums() for reader in source.readers]
            self._folder.parts.seal(output, file.name, file.header)
        counts = source.movers.counts(crcs)
        self._folder.note_sealed(
            SealedFile(
                name=file.name, n_bytes=file.n_bytes, crc32=_file_crc(file, crcs), tensors=crcs,
                became_zero=counts.became_zero, nonfinite=counts.nonfinite, source=sums,
            )
        )  # fmt: skip
        return was_direct


def _is_of(sealed: SealedFile, file: FilePlan) -> bool:
    """Return whether a record speaks of the tensors of a file, and agrees with itself."""
    n_elements = {tensor.spec.name: tensor.spec.n_elements for tensor in file.tensors}
    counts = [*sealed.became_zero.items(), *sealed.nonfinite.items()]
    return (
        sealed.tensors.keys() == n_elements.keys()
        and all(0 < n <= n_elements.get(name, 0) for name, n in counts)
        and sealed.crc32 == _file_crc(file, sealed.tensors)
    )


def _file_crc(file: FilePlan, crcs: Mapping[str, int]) -> int:
    """Join the CRC-32s of a file's tensors to that of all its bytes."""
    whole = zlib.crc32(file.header)
    for tensor in file.tensors:
        whole = combine(whole, crcs[tensor.spec.name], tensor.spec.n_bytes)
    return whole


def _names_read(tensors: Sequence[TensorPlan], rank: int) -> list[str]:
    """Name the tensors whose rows are taken from a rank: copies are taken from the first."""
    return [
        tensor.source.name
        for tensor in tensors
        if any(part.file == rank for part in tensor.source.sources)
    ]
