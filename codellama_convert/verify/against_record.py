"""Own the check of an output against its own record, conversion.json.

Without the source, every byte is read once, several tensors at a time, at the disk's speed. Beside
the source, the record itself is compared with both. Print nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from codellama_convert import __version__
from codellama_convert.errors import VerifyError, shown
from codellama_convert.formats.safetensors import INDEX_NAME, SINGLE_FILE_NAME
from codellama_convert.model.asked import RECORD_NAME, Asked
from codellama_convert.plan.job import Job
from codellama_convert.plan.ranks.find_original import find_original
from codellama_convert.plan.ranks.original import Original
from codellama_convert.storage.folders import names_in
from codellama_convert.storage.threads import default_workers
from codellama_convert.storage.watch import Watch
from codellama_convert.verify.folder_reader import StoredOutput, read_output
from codellama_convert.verify.job import class_named
from codellama_convert.verify.output_files import (
    CONFIG_NAMES,
    MODEL_SUFFIX,
    TOKENIZER_NAMES,
    complain_of_strays,
)
from codellama_convert.verify.record_reader import (
    FileSums,
    PartSums,
    Record,
    TensorSums,
    read_record,
)
from codellama_convert.verify.report import Problems, VerifyReport
from codellama_convert.verify.sums import FileReading, compare_file, compare_shard
from codellama_convert.verify.tensor import Compared

_FACTOR = "rope_scaling_factor"  # stands in the record where there is one


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found out about both sides while they were compared.

    Attributes:
        sources: Size and CRC-32 of each file of the source.
        tensors: What was found of each tensor.
    """

    sources: Mapping[str, FileSums] = field(default_factory=dict)
    tensors: Mapping[str, Compared] = field(default_factory=dict)


def verify_record(output_dir: Path, asked: Asked, reading: FileReading) -> VerifyReport:
    """Compare an output folder with its own conversion.json.

    Args:
        output_dir: What was converted.
        asked: What the conversion was asked for, as far as that is known.
        reading: How files are read.

    Returns:
        What was found.

    Raises:
        VerifyError: If there is no record, or a file cannot be parsed.
    """
    problems = Problems()
    record = record_needed(output_dir, problems)
    names = names_in(output_dir, error=VerifyError)
    has_model = bool(record.tensors) or INDEX_NAME in names or SINGLE_FILE_NAME in names
    stored = read_output(output_dir, problems.add) if has_model else {}
    options = {name: record.options.get(name) for name in _option_names(record)}
    _compare_options(record, options | asked.said(), problems)
    _compare_places(record, stored, problems)
    used = {one.file.name for one in stored.values()}
    complain_of_strays(output_dir, used.union(record.files), problems.add)
    n_bytes = 0
    for name in sorted(record.files):
        n_bytes += compare_file(output_dir / name, record, stored, problems, reading)
    return VerifyReport(output_dir, "record", len(record.tensors), n_bytes, problems.lines())


def record_needed(output_dir: Path, problems: Problems) -> Record:
    """Read the record with which an output is compared.

    Raises:
        VerifyError: If there is none.
    """
    record = read_record(output_dir, problems.add)
    if record is None:
        raise VerifyError(
            f"holds no {RECORD_NAME} to compare it with",
            path=output_dir,
            hint="name the checkpoint with --input_dir",
        )
    return record


def check_record(
    output_dir: Path,
    record: Record,
    *,
    job: Job,
    stored: Mapping[str, StoredOutput],
    measured: Measured,
    problems: Problems,
) -> None:
    """Compare a record with an output and its source.

    Its notes are left out: they describe what lay around the checkpoint then. So is the name of a
    model that was not released, which contains the folder's name.

    Args:
        output_dir: What was converted.
        record: Its record.
        job: The source, as the conversion was asked for.
        stored: The tensors that it holds.
        measured: What was found of both sides.
        problems: Gets what differs.
    """
    reading = FileReading(job.options.io_mode, job.options.workers or default_workers(), Watch())
    for name in sorted(record.files):
        # What differs from the source differs from the record too, which says less of it.
        if problems.are_about(name):
            continue
        if name.endswith(MODEL_SUFFIX):
            crcs = {tensor: one.crc32 for tensor, one in measured.tensors.items()}
            compare_shard(output_dir / name, record, stored, crcs, problems)
        else:
            compare_file(output_dir / name, record, {}, problems, reading)
    _compare_options(record, _expected_options(job, record), problems)
    _compare_model(record, job, problems)
    _compare_original(record, job, problems)
    _compare_places(record, stored, problems)
    for name, one in sorted(measured.tensors.items()):
        said = record.tensors.get(name)
        if said is None or one.difference is not None:
            continue
        if said.crc32 != f"{one.crc32:08x}":
            line = f"has CRC-32 {one.crc32:08x}, the record says {said.crc32}"
            problems.add(f"tensor {name!r} {line}", file=RECORD_NAME)
        for line in wrong_counts(said, one):
            problems.add(f"tensor {name!r} {line}", file=RECORD_NAME)
    compare_source(record, measured, problems)


def compare_source(record: Record, measured: Measured, problems: Problems) -> None:
    """Compare the sums that a record has of the source's files with those that they have."""
    for name in sorted({*record.source, *measured.sources}):
        told, rank = record.source.get(name), measured.sources.get(name)
        if told != rank:
            problems.add(
                f"says that {name} {told_sums(told)}; the checkpoint's {told_sums(rank)}",
                file=RECORD_NAME,
            )


def told_sums(sums: FileSums | None) -> str:
    """Say what a file has, such as "has 7 bytes and CRC-32 00000000"."""
    return "is missing" if sums is None else f"has {sums.size} bytes and CRC-32 {sums.crc32}"


def wrong_counts(said: TensorSums | PartSums, found: Compared) -> Iterator[str]:
    """Say which counts of a tensor are others than its record has."""
    for what, listed, counted in (
        ("became_zero", said.became_zero, found.became_zero),
        ("nonfinite", said.nonfinite, found.nonfinite),
    ):
        if listed != counted:
            yield f"has {what} {counted}, the record says {listed}"


def _option_names(record: Record) -> set[str]:
    names = {one.name for one in fields(Asked)}
    if _FACTOR not in record.options:  # of a model whose frequencies are not scaled
        names.discard(_FACTOR)
    return names if record.tensors else names - {"dtype"}


def _compare_options(record: Record, expected: Mapping[str, Any], problems: Problems) -> None:
    problems.add_differences(RECORD_NAME, record.options, expected, part="options")


def _expected_options(job: Job, record: Record) -> dict[str, Any]:
    """Spell the options that a conversion's record has."""
    options = job.options
    expected: dict[str, Any] = {
        "max_position_embeddings": options.max_position_embeddings,
        "max_shard_size": options.max_shard_bytes,
        "skip_tokenizer": job.tokenizer is None,
        "tokenizer_class": class_named(job, record),
        "variant": options.flavor,
    }
    if job.weights is None:
        return expected
    recognised = job.weights.checkpoint.recognised
    factor = recognised.rope_scaling_factor
    return expected | {
        "dtype": job.weights.plan.dtype.name,
        "max_position_embeddings": recognised.max_position_embeddings,
        "variant": recognised.flavor,
        **({} if factor is None else {_FACTOR: factor}),
    }


def _compare_model(record: Record, job: Job, problems: Problems) -> None:
    recognised = None if job.weights is None else job.weights.checkpoint.recognised
    expected = None if recognised is None else recognised.name
    is_a_guess = recognised is not None and recognised.family is None
    # Another version of this program may call a model otherwise.
    if record.version == __version__ and record.model != expected and not is_a_guess:
        problems.add(f"model is {shown(record.model)}, expected {expected!r}", file=RECORD_NAME)


def _compare_original(record: Record, job: Job, problems: Problems) -> None:
    """Compare how the ranks were saved, of which an older version of this program says nothing."""
    if job.weights is None or (record.original is None and record.version != __version__):
        return
    expected = find_original(job.weights.checkpoint, job.weights.plan.dtype)
    if record.original == expected:
        return
    if record.original is None or expected is None:
        is_there = "missing, and the ranks could" if expected else "there, and the ranks cannot"
        problems.add(f"original is {is_there} come back byte for byte", file=RECORD_NAME)
        return
    for one in fields(Original):
        if getattr(record.original, one.name) != getattr(expected, one.name):
            problems.add(f"original: {one.name} is not as the ranks have it", file=RECORD_NAME)


def _compare_places(record: Record, stored: Mapping[str, StoredOutput], problems: Problems) -> None:
    """Compare what the record says is where, and look whether it speaks of all."""
    for name in sorted({*record.tensors, *stored}):
        listed, found = record.tensors.get(name), stored.get(name)
        said = listed and _place(listed.file, listed.dtype, listed.shape, listed.size)
        seen = found and _place(found.file.name, found.dtype.code, found.shape, found.n_bytes)
        if said != seen:
            problems.add(
                f"tensor {shown(name)}: {seen or 'not found'}, the record says {said or 'nothing'}"
            )
    model_files = {listed.file for listed in record.tensors.values()}
    needed = model_files | set(CONFIG_NAMES if model_files else TOKENIZER_NAMES)
    if len(model_files) > 1:
        needed.add(INDEX_NAME)
    if record.options.get("skip_tokenizer") is not True:
        needed.update(TOKENIZER_NAMES)
    for name in sorted(needed - set(record.files)):
        problems.add(f"its files lack {name}", file=RECORD_NAME)
    for name in sorted(set(record.files) - needed):
        what = "which holds no tensor" if name.endswith(MODEL_SUFFIX) else "which it did not write"
        problems.add(f"files names {name}, {what}", file=RECORD_NAME)


def _place(file: str, dtype: str, shape: tuple[int, ...], n_bytes: int) -> str:
    return f"{dtype} {shape} of {n_bytes} bytes in {file}"
