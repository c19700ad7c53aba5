"""Own the question whether a conversion was done before: answered without reading any weights.

The output's own record names what it was made of. Whoever changed the weights themselves, on either
side, and left all else as it was, is found by `verify` only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from codellama_convert import __version__
from codellama_convert.cli.describe import describe_report
from codellama_convert.convert.run import ConversionReport
from codellama_convert.errors import CheckpointError, OutputError, VerifyError
from codellama_convert.hugging_face.model_card import CARD_NAME
from codellama_convert.meta.rank_reader import RankReader
from codellama_convert.model.asked import RECORD_NAME
from codellama_convert.plan.job import Job
from codellama_convert.plan.plan import FilePlan
from codellama_convert.staging.staged import STAGING_NAME
from codellama_convert.storage.blocks import aligned_buffer
from codellama_convert.storage.contents import Content, chunks_of
from codellama_convert.storage.folders import names_in
from codellama_convert.storage.input_file import InputFile
from codellama_convert.storage.lock import LOCK_NAME, FolderLock
from codellama_convert.verify.output_files import complain_of_strays
from codellama_convert.verify.record_reader import FileSums, Record, read_record
from codellama_convert.verify.report import Problems

_BUFFER_BYTES = 1 << 20


def describe_if_finished(
    output_dir: Path, job: Job, *, with_sha256: bool, with_card: bool
) -> dict[str, Any] | None:
    """Describe a folder that holds what a conversion would write, of the same files.

    Sizes, headers and all small files are compared; of the weights, the sums that the zip
    directories of the ranks state are compared with those of the record.

    Args:
        output_dir: Where the output would go; it need not exist.
        job: What is asked for.
        with_sha256: Whether SHA-256 sums are asked for in the record.
        with_card: Whether a model card is asked for.

    Returns:
        As `describe_report`, of a run that kept all of it; None where anything is missing or differs.
    """
    started = time.monotonic()
    record = _finished_record(output_dir, job, with_sha256=with_sha256, with_card=with_card)
    if record is None:
        return None
    report = _report_finished(output_dir, job, record, with_card=with_card)
    return describe_report(report, time.monotonic() - started, already_converted=True)


def _finished_record(
    output_dir: Path, job: Job, *, with_sha256: bool, with_card: bool
) -> Record | None:
    try:
        if not output_dir.is_dir() or _has_staged_work(output_dir):
            return None
        problems = Problems()
        record = read_record(output_dir, problems.add)
        if record is None or not _is_of_options(record, job, with_sha256=with_sha256):
            return None
        complain_of_strays(output_dir, {*record.files, RECORD_NAME}, problems.add)
        is_same = (
            not problems.lines()
            and _holds_files(output_dir, record, job)
            and (not with_card or _is_equal(output_dir / CARD_NAME, job.model_card() or b""))
            and _is_of_ranks(record.source, job)
        )
    except (CheckpointError, OSError, OutputError, VerifyError):
        return None  # the conversion itself says what is in its way
    return record if is_same else None


def _has_staged_work(output_dir: Path) -> bool:
    return STAGING_NAME in names_in(output_dir) and bool(names_in(output_dir / STAGING_NAME))


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


def _is_of_options(record: Record, job: Job, *, with_sha256: bool) -> bool:
    has_sha256 = any(sums.sha256 is not None for sums in record.files.values())
    return (
        record.version == __version__
        and record.options == job.fingerprint()["options"]
        and has_sha256 == with_sha256
    )


def _holds_files(output_dir: Path, record: Record, job: Job) -> bool:
    small = job.small_files()
    weights = {file.name: file for file in job.weight_files}
    return (
        record.files.keys() == {*small, *weights}
        and all(_is_equal(output_dir / name, content) for name, content in small.items())
        and all(_is_of_plan(output_dir / name, file, record) for name, file in weights.items())
    )


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


def _is_of_plan(path: Path, wanted: FilePlan, record: Record) -> bool:
    with InputFile(path) as file:
        sizes = {file.n_bytes, wanted.n_bytes, record.files[wanted.name].size}
        return len(sizes) == 1 and file.read_exact(0, len(wanted.header)) == wanted.header


def _is_of_ranks(source: Mapping[str, FileSums], job: Job) -> bool:
    if source.keys() != {rank.path.name for rank in job.ranks}:
        return False
    buffer = aligned_buffer(_BUFFER_BYTES)
    for rank in job.ranks:
        if source[rank.path.name].size != rank.n_bytes:
            return False
        with RankReader(rank, ()) as reader:
            crc = reader.stated_crc(buffer)
        if crc is None or source[rank.path.name].crc32 != f"{crc:08x}":
            return False
    return True


def _report_finished(
    output_dir: Path, job: Job, record: Record, *, with_card: bool
) -> ConversionReport:
    card = (CARD_NAME,) if with_card else ()
    tensors = record.tensors.items()
    return ConversionReport(
        output_dir=output_dir,
        files=tuple(sorted((*record.files, RECORD_NAME, *card))),
        tensor_bytes=job.tensor_bytes,
        kept_bytes=job.tensor_bytes,
        direct=False,
        dropped=job.dropped,
        cast=job.cast,
        became_zero={name: sums.became_zero for name, sums in tensors if sums.became_zero},
        nonfinite={name: sums.nonfinite for name, sums in tensors if sums.nonfinite},
        notes=job.notes,
    )
