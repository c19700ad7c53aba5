"""Own the running of a plan: tiles from the ranks into the output files; print nothing."""

from __future__ import annotations

import os
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from codellama_convert.arguments import FUNCTION, as_path, instance_of, or_none
from codellama_convert.convert.movers import open_mover
from codellama_convert.convert.record import file_sizes, record_json
from codellama_convert.convert.transfer import TileSource, write_tensors
from codellama_convert.errors import CheckpointError
from codellama_convert.hugging_face.model_card import CARD_MARK, CARD_NAME
from codellama_convert.meta.rank_reader import RankReader
from codellama_convert.model.asked import RECORD_NAME
from codellama_convert.plan.job import Job, plan_conversion
from codellama_convert.plan.options import Options
from codellama_convert.plan.plan import FilePlan
from codellama_convert.plan.run_options import RunOptions, refuse_unused
from codellama_convert.plan.tiles import TensorPlan
from codellama_convert.staging.folder import OutputFolder
from codellama_convert.staging.record_values import SealedFile
from codellama_convert.staging.staged import STAGING_NAME
from codellama_convert.storage.blocks import IoMode, aligned_buffer
from codellama_convert.storage.checksums import combine
from codellama_convert.storage.contents import Content
from codellama_convert.storage.folders import refuse_inputs
from codellama_convert.storage.input_file import InputFile
from codellama_convert.storage.watch import Progress, Watch

_MAX_CARD_BYTES = 1 << 16  # of somebody's README.md, looked through for our own words


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
        output_dir: The converted model.
        files: Names of all files that were written.
        tensor_bytes: Bytes of the written tensors.
        kept_bytes: Bytes of those that an earlier run had written, and that were kept.
        direct: Whether the page cache was passed by, on both sides.
        dropped: Names of tensors that were left out.
        cast: Both dtypes where the elements were cast, such as "bfloat16 to float16".
        became_zero: By tensor, how many values a cast made zero.
        nonfinite: By tensor, how many values are infinities or NaNs; they are kept.
        notes: What the user should know.
    """

    output_dir: Path
    files: tuple[str, ...]
    tensor_bytes: int
    kept_bytes: int
    direct: bool
    dropped: tuple[str, ...]
    cast: str | None
    became_zero: dict[str, int]
    nonfinite: dict[str, int]
    notes: tuple[str, ...]


def convert_checkpoint(
    input_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    options: Options | None = None,
    run_options: RunOptions | None = None,
    progress: Progress | None = None,
) -> ConversionReport:
    """Convert a Meta checkpoint into a Hugging Face folder.

    Args:
        input_dir: The checkpoint's folder, or one that holds it.
        output_dir: The new folder.
        options: What to write, and how.
        run_options: How to treat the output folder, and what to do besides.
        progress: Called with the bytes of each tile that was written, from several threads.

    Returns:
        What was done.

    Raises:
        ConvertError: If anything is wrong; nothing half-done is left that loads.
    """
    chosen = RunOptions() if run_options is None else run_options
    or_none(FUNCTION).check("progress", progress)
    target = _check_run(output_dir, chosen)
    asked = Options() if options is None else options
    instance_of(Options).check("options", asked)
    refuse_unused(asked, chosen)
    return run(plan_conversion(input_dir, asked), target, chosen, watch=Watch(progress))


def _check_run(output_dir: str | os.PathLike[str], run_options: RunOptions) -> Path:
    """Refuse what is wrong with the arguments before the input is read, which takes a while."""
    instance_of(RunOptions).check("run_options", run_options)
    return as_path("output_dir", output_dir)


def run(
    job: Job,
    output_dir: str | os.PathLike[str],
    run_options: RunOptions | None = None,
    *,
    watch: Watch | None = None,
) -> ConversionReport:
    """Run a prepared conversion, or resume it where an earlier run stopped.

    Args:
        job: From `plan_conversion`.
        output_dir: The new folder.
        run_options: How to treat it.
        watch: Whom each tile that was written is reported to, and what may stop the run.

    Returns:
        What was done.

    Raises:
        Interrupted: If the watch asked to stop; what is whole is kept.
        ConvertError: If anything is wrong; nothing half-done is left that loads.
    """
    instance_of(Job).check("job", job)
    chosen = RunOptions() if run_options is None else run_options
    or_none(instance_of(Watch)).check("watch", watch)
    output_dir = _check_run(output_dir, chosen)
    refuse_unused(job.options, chosen)
    refuse_inputs(output_dir, job.files.folder, job.files.all())
    tensor_bytes = job.plan.tensor_bytes if job.plan else 0
    hint = f"run the same command again to resume, or delete {output_dir / STAGING_NAME}"
    watch = replace(watch or Watch(), hint=hint)
    small_files = job.small_files()
    with OutputFolder(
        output_dir, job.fingerprint(), file_sizes(job, small_files, with_card=chosen.model_card),
        overwrite=chosen.overwrite, restart=chosen.restart, watch=watch,
    ) as folder:  # fmt: skip
        check_source = chosen.check_source or _check_ranks
        job = replace(job, notes=job.notes + check_source(job, watch))
        write = _WeightWriter(job, folder, watch)
        written = _stage(job, folder, chosen, small_files=small_files, write=write, watch=watch)
        folder.commit()
        names = folder.publish()
    notes = (*job.notes, *_old_card_notes(output_dir, names))
    return ConversionReport(
        output_dir=output_dir,
        files=names,
        tensor_bytes=tensor_bytes,
        kept_bytes=written.kept_bytes,
        direct=written.direct,
        dropped=job.checkpoint.dropped if job.checkpoint else (),
        cast=job.cast,
        became_zero=_by_tensor(one.became_zero for one in written.sealed.values()),
        nonfinite=_by_tensor(one.nonfinite for one in written.sealed.values()),
        notes=notes,
    )


def _old_card_notes(output_dir: Path, names: Collection[str]) -> tuple[str, ...]:
    """Say so if a card of an earlier conversion stays: it may have been edited, so it is kept."""
    if CARD_NAME in names:
        return ()
    try:
        with InputFile(output_dir / CARD_NAME) as file:
            head = file.read_exact(0, min(file.n_bytes, _MAX_CARD_BYTES))
    except CheckpointError:  # none, or none that is ours
        return ()
    note = f"{CARD_NAME} is of an earlier conversion; --model_card replaces it"
    return (note,) if CARD_MARK.encode() in head else ()


def _stage(
    job: Job,
    folder: OutputFolder,
    chosen: RunOptions,
    *,
    small_files: Mapping[str, Content],
    write: _WeightWriter,
    watch: Watch,
) -> _Written:
    """Bring everything into the staging folder, and check it there as far as was asked for."""
    # The small files first: the disk must have room for them too, and not an hour later.
    small_sums = {name: folder.add(name, content) for name, content in small_files.items()}
    card = job.model_card() if chosen.model_card else None
    if card is not None:  # for people, who may edit it: not in the record
        folder.add(CARD_NAME, card)
    written = write.all_files()
    record = record_json(
        job, written.sealed, small_sums, written.rank_crcs,
        sha256_of=folder.staging if chosen.sha256 else None, watch=watch,
    )  # fmt: skip
    folder.add(RECORD_NAME, record)
    if chosen.check_staged is not None:
        chosen.check_staged(job, folder.staging, watch)
    watch.check()  # for the last time: from here on it goes out
    return written


def _check_ranks(job: Job, watch: Watch) -> tuple[str, ...]:
    return job.check_ranks(replace(watch, progress=None).advance)  # nothing is written yet


def _by_tensor(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Join the counts of several files; a tensor lies in one of them."""
    return {name: n for one in counts for name, n in one.items()}


@dataclass(slots=True)
class _Written:
    """What was written of the weights."""

    sealed: dict[str, SealedFile] = field(default_factory=dict)
    rank_crcs: tuple[int, ...] = ()
    kept_bytes: int = 0
    direct: bool = False


class _WeightWriter:
    """Writes the safetensors files of a job that are not whole yet."""

    def __init__(self, job: Job, folder: OutputFolder, watch: Watch) -> None:
        self._job, self._folder, self._watch = job, folder, watch

    def all_files(self) -> _Written:
        """Write them in order, each whole before the next one."""
        checkpoint, plan = self._job.checkpoint, self._job.plan
        if checkpoint is None or plan is None:
            return _Written()
        io_mode = self._job.options.io_mode
        with ExitStack() as stack:
            mover = open_mover(checkpoint.dtype, plan.dtype)
            stack.callback(mover.close)
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
            self._folder.reserve({file.name: file.n_bytes for file in missing})
            source = TileSource(readers, mover)
            direct = all(reader.direct for reader in readers)
            for file in missing:
                output_is_direct = self._write_file(file, source, buffers, io_mode)
                direct = direct and output_is_direct
            for reader in readers:
                reader.finish(buffers[0][0], self._watch)
            rank_crcs = tuple(reader.file_crc(buffers[0][0], self._watch) for reader in readers)
            return _Written(dict(self._folder.sealed), rank_crcs, kept_bytes, direct)

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
        """Tell whether every rank is still what a file was made of."""
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
        with self._folder.open_part(file.name, io_mode=io_mode) as output:
            crcs = write_tensors(file, output, source, buffers=buffers, watch=self._watch)
            self._watch.check()
            was_direct = output.direct
            sums = [reader.take_sums() for reader in source.readers]
            self._folder.seal(output, file.name, file.header)
        counts = source.mover.counts(crcs)
        self._folder.note_sealed(
            SealedFile(
                name=file.name, n_bytes=file.n_bytes, crc32=_file_crc(file, crcs), tensors=crcs,
                became_zero=counts.became_zero, nonfinite=counts.nonfinite, source=sums,
            )
        )  # fmt: skip
        return was_direct


def _is_of(sealed: SealedFile, file: FilePlan) -> bool:
    """Tell whether a record speaks of the tensors of a file, and agrees with itself."""
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
        tensor.layout.meta_name
        for tensor in tensors
        if any(part.rank == rank for part in tensor.layout.sources)
    ]
