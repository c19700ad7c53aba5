"""Own the question whether a conversion was done before: answered without reading all the weights.

The output's own record says the sums of the weights. With these, the record and every byte around
the weights must be what the conversion would write now. Whoever changed the weights themselves, on
either side, and left all else as it was, is found by `verify` only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codellama_convert.convert.record import record_json
from codellama_convert.convert.report import ConversionReport, report_on
from codellama_convert.convert.sampled import begins_alike
from codellama_convert.errors import ConvertError, OutputError
from codellama_convert.formats.pth.reader import RankIndex
from codellama_convert.formats.source_sums import TensorFile
from codellama_convert.formats.strict_json import parse_object
from codellama_convert.hugging_face.model_card import CARD_NAME
from codellama_convert.meta.checklist import CHECKLIST_NAME
from codellama_convert.meta.rank_reader import RankReader
from codellama_convert.model.asked import RECORD_NAME
from codellama_convert.plan.job import Job
from codellama_convert.plan.ranks.job import ReverseJob
from codellama_convert.plan.run_options import RunOptions
from codellama_convert.plan.sizes import file_sizes
from codellama_convert.plan.target import TargetFile, file_crc
from codellama_convert.staging.record_values import FileSum, SealedFile, sealed_file_in
from codellama_convert.staging.staged import STAGING_NAME
from codellama_convert.staging.task_journals import is_journal
from codellama_convert.storage.buffers import aligned_buffer
from codellama_convert.storage.checksums import crc32
from codellama_convert.storage.contents import Content, chunks_of
from codellama_convert.storage.folders import names_in
from codellama_convert.storage.input_file import InputFile
from codellama_convert.storage.lock import LOCK_NAME, FolderLock

_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Said:
    """What a record says that does not follow from the job."""

    sealed: dict[str, SealedFile]
    source_crcs: tuple[int, ...]
    sha256s: dict[str, str] | None
    notes: tuple[str, ...]


def find_finished(
    output_dir: Path, job: Job | ReverseJob, chosen: RunOptions, *, any_sums: bool = False
) -> ConversionReport | None:
    """Report on a folder that holds what a conversion would write, of the same files.

    Sizes, headers and all small files are compared; of the source's weights, the sums that the zip
    directories of .pth files state are compared with those of the record. Files that state none
    must not have changed since the output was written, and the first rows of every tensor must be
    the output's.

    Args:
        output_dir: Where the output would go; it need not exist.
        job: What is asked for.
        chosen: How; whether SHA-256 sums and a model card are asked for counts.
        any_sums: Whether a record is right with SHA-256 sums and without them, whatever is asked for.

    Returns:
        The report of a run that kept all of it; None where anything is missing or differs, or it is
        to be written all the same.
    """
    if chosen.overwrite or chosen.restart:
        return None
    try:
        if not output_dir.is_dir() or _has_staged_work(output_dir):
            return None
        return _finished(output_dir, job, chosen, sha256=None if any_sums else chosen.sha256)
    except (ConvertError, OSError):
        return None  # the conversion itself says what is in its way


def clear_up(output_dir: Path) -> None:
    """Remove what a run leaves that dies at its very end: an empty staging folder, and the lock.

    Args:
        output_dir: Of a finished conversion. If another run works there, nothing is removed.
    """
    if not {STAGING_NAME, LOCK_NAME}.intersection(names_in(output_dir)):
        return
    lock = FolderLock(output_dir)
    with suppress(OSError, OutputError):
        lock.take()
        try:
            (output_dir / STAGING_NAME).rmdir()
        finally:
            lock.release()


def _has_staged_work(output_dir: Path) -> bool:
    """Return whether a journal is there: without one, what else is there is no work of anybody."""
    if STAGING_NAME not in names_in(output_dir):
        return False
    return any(map(is_journal, names_in(output_dir / STAGING_NAME)))


def _finished(
    output_dir: Path, job: Job | ReverseJob, chosen: RunOptions, *, sha256: bool | None
) -> ConversionReport | None:
    small_files = job.small_files()
    largest = file_sizes(job, small_files)[RECORD_NAME]
    with InputFile(output_dir / RECORD_NAME) as file:
        raw = file.read_whole(largest)
    small_sums = {name: _sum_of(content) for name, content in small_files.items()}
    if isinstance(job, ReverseJob) and job.options.checklist:  # it holds sums of the weights
        small_sums[CHECKLIST_NAME] = _sum_of(_small_file(output_dir / CHECKLIST_NAME))
    names = {*small_sums, *(file.name for file in job.weight_files)}
    try:
        said = _read(parse_object(raw), job, names, sha256=sha256)
    except (KeyError, TypeError, ValueError):
        return None
    record = record_json(
        job, said.sealed, small_sums, said.source_crcs, notes=said.notes, sha256s=said.sha256s
    )
    written = {*names, RECORD_NAME}
    card = job.model_card() if chosen.model_card else None
    expected = small_files if card is None else {**small_files, CARD_NAME: card}
    if not (
        record == raw
        and not any(map(job.side.is_taken, names_in(output_dir).difference(written)))
        and all(_is_equal(output_dir / name, content) for name, content in expected.items())
        and all(
            _is_of_plan(output_dir / file.name, file, said.sealed[file.name].tensors)
            for file in job.weight_files
        )
        and _is_of_source(output_dir, job, said.source_crcs, written)
    ):
        return None
    return report_on(
        job,
        output_dir,
        {*written, *expected},
        said.sealed,
        kept_bytes=job.tensor_bytes,
        notes=job.notes,
        already_converted=True,
    )


def _read(
    record: Mapping[str, Any], job: Job | ReverseJob, names: Collection[str], *, sha256: bool | None
) -> _Said:
    """Take from a record what cannot be known without the weights.

    Where `sha256` is None, the files `names` have SHA-256 sums if one of them has.
    """
    files, source, tensors = (record[key] for key in ("files", "source", "tensors"))
    notes = tuple(record["notes"])
    if not all(isinstance(note, str) for note in notes):
        raise ValueError("a note is not a string")
    sealed = {file.name: _sealed(file, tensors) for file in job.weight_files}
    source_files = () if job.weights is None else job.weights.source_files
    if sha256 is None:
        sha256 = any("sha256" in files[name] for name in names)
    return _Said(
        sealed=sealed,
        source_crcs=tuple(int(_hex(source[one.path.name]["crc32"], 8), 16) for one in source_files),
        sha256s={name: _hex(files[name]["sha256"], 64) for name in names} if sha256 else None,
        notes=notes,
    )


def _sealed(file: TargetFile, tensors: Mapping[str, Any]) -> SealedFile:
    """Spell what a journal would say of a file, by what the record says of its tensors."""
    said = {tensor.spec.name: tensors[tensor.spec.name] for tensor in file.tensors}
    crcs = {name: _crc_in(one["crc32"], file.number) for name, one in said.items()}
    # The record has the counts of all files together, and one of them must have them here.
    first = {tensor.spec.name for tensor in file.tensors if tensor.target.files[0] == file.number}
    counts = {
        kind: {name: one[kind] for name, one in said.items() if kind in one and name in first}
        for kind in ("became_zero", "nonfinite")
    }
    crc32 = file_crc(file, crcs)
    return sealed_file_in(
        {"name": file.name, "n_bytes": file.n_bytes, "crc32": crc32, "tensors": crcs, "source": []}
        | counts
    )


def _crc_in(said: object, number: int) -> int:
    """Read a tensor's sum, which is one for each rank where ranks were written."""
    if isinstance(said, list):
        said = said[number] if number < len(said) else None
    return int(_hex(said, 8), 16)


def _hex(value: object, n_digits: int) -> str:
    if not isinstance(value, str) or not re.fullmatch(rf"[0-9a-f]{{{n_digits}}}", value):
        raise ValueError("no sum")
    return value


def _sum_of(content: Content) -> FileSum:
    crc = 0
    for chunk in chunks_of(content):
        crc = crc32(chunk, crc)
    return FileSum(len(content), crc)


def _small_file(path: Path) -> bytes:
    with InputFile(path) as file:
        return file.read_whole(_BUFFER_BYTES)


def _is_equal(path: Path, content: Content) -> bool:
    with InputFile(path) as file:
        if file.n_bytes != len(content):
            return False
        at = 0
        for chunk in chunks_of(content):
            if file.read_exact(at, len(chunk)) != chunk:
                return False
            at += len(chunk)
    return True


def _is_of_plan(path: Path, wanted: TargetFile, crcs: Mapping[str, int]) -> bool:
    """Compare everything in a file but its tensors' data."""
    with InputFile(path) as file:
        return file.n_bytes == wanted.n_bytes and all(
            file.read_exact(at, len(piece)) == piece
            for at, piece in (*wanted.body(crcs), *wanted.seal(crcs))
        )


def _is_of_source(
    output_dir: Path, job: Job | ReverseJob, crcs: Iterable[int], written: Iterable[str]
) -> bool:
    """Compare the source's weights with what was read, as far as that is known without reading."""
    if job.weights is None:
        return True
    stated = [_stated_crc(file) for file in job.weights.source_files]
    if any(one not in (None, crc) for one, crc in zip(stated, crcs, strict=True)):
        return False
    if None not in stated:
        return True
    # The small files are written before weights are read.
    made_ns = min((output_dir / name).stat().st_mtime_ns for name in written)
    return all(
        _changed_ns(file.path) <= made_ns for file in job.weights.source_files
    ) and begins_alike(output_dir, job.weights)


def _changed_ns(path: Path) -> int:
    status = path.stat()
    return max(status.st_mtime_ns, status.st_ctime_ns)  # a copy that keeps times has a new ctime


def _stated_crc(file: TensorFile) -> int | None:
    if not isinstance(file, RankIndex):
        return None  # safetensors has no sums
    with RankReader(file, ()) as reader:
        return reader.stated_crc(aligned_buffer(_BUFFER_BYTES))
