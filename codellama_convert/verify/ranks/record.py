"""Own the check of ranks against the record beside them, conversion.json, with and without a source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

from codellama_convert import __version__
from codellama_convert.errors import shown
from codellama_convert.meta.target_names import is_taken
from codellama_convert.model.asked import RECORD_NAME, AskedRanks
from codellama_convert.plan.ranks.job import ReverseJob
from codellama_convert.storage.threads import default_workers
from codellama_convert.storage.watch import Watch
from codellama_convert.verify.against_record import (
    Measured,
    compare_source,
    record_needed,
    wrong_counts,
)
from codellama_convert.verify.output_files import complain_of_strays
from codellama_convert.verify.ranks.expected import ExpectedRanks
from codellama_convert.verify.ranks.folder import (
    CHECKLIST_NAME,
    PARAMS_NAME,
    TOKENIZER_NAME,
    Ranks,
    is_rank,
    rank_name,
    read_ranks,
    stored_in,
)
from codellama_convert.verify.ranks.found import Found
from codellama_convert.verify.record_reader import PartSums, Record, TensorSums
from codellama_convert.verify.report import Problems, VerifyReport
from codellama_convert.verify.sums import FileReading, compare_file, compare_shard
from codellama_convert.verify.tensor import Compared


def verify_ranks_record(output_dir: Path, asked: AskedRanks, reading: FileReading) -> VerifyReport:
    """Compare a folder of ranks with its own conversion.json.

    Args:
        output_dir: What was converted.
        asked: What the conversion was asked for, as far as that is known.
        reading: How files are read.

    Returns:
        What was found.

    Raises:
        VerifyError: If there is no record, or nothing to verify.
    """
    problems = Problems()
    record = record_needed(output_dir, problems)
    ranks = read_ranks(output_dir, problems.add)
    options = {field.name: record.options.get(field.name) for field in fields(AskedRanks)}
    expected = options | asked.said()
    problems.add_differences(RECORD_NAME, record.options, expected, part="options")
    said = record.asked_ranks or AskedRanks()
    n_ranks = said.ranks or len(ranks)
    _compare_files(record, n_ranks, said, problems)
    complain_of_strays(output_dir, record.files, problems.add, is_taken)
    for name, listed in sorted(record.parts.items()):
        _compare_forms(name, listed, ranks, n_ranks, problems)
    n_bytes = 0
    numbers = {rank_name(number): number for number in ranks}
    for name in sorted(record.files):
        number = numbers.get(name)
        stored = {} if number is None else stored_in(ranks[number])
        of_file = record if number is None else _of_rank(record, number)
        n_bytes += compare_file(output_dir / name, of_file, stored, problems, reading)
    return VerifyReport(output_dir, "record", len(record.parts), n_bytes, problems.lines())


def check_ranks_record(
    output_dir: Path,
    record: Record,
    *,
    job: ReverseJob,
    expected: ExpectedRanks,
    found: Found,
    problems: Problems,
) -> None:
    """Compare a record with the ranks beside it and with their source.

    Args:
        output_dir: What was converted.
        record: Its record.
        job: The conversion.
        expected: What must be there.
        found: What was found of both sides.
        problems: Gets what differs.
    """
    reading = FileReading(job.options.io_mode, job.options.workers or default_workers(), Watch())
    numbers = {rank_name(number): number for number in found.ranks}
    for name in sorted(record.files):
        # What differs from the source differs from the record too, which says less of it.
        if problems.are_about(name):
            continue
        path, number = output_dir / name, numbers.get(name)
        if number is None:
            compare_file(path, record, {}, problems, reading)
        else:
            # What lies beside the weights has no sum of its own.
            weights, crcs = found.weights(number), found.crcs(number)
            compare_shard(path, record, weights, crcs, problems)
    problems.add_differences(RECORD_NAME, record.options, expected.options(), part="options")
    # Another version of this program may call a model otherwise.
    if record.version == __version__ and record.model != job.model_name:
        what = f"model is {shown(record.model)}, expected {job.model_name!r}"
        problems.add(what, file=RECORD_NAME)
    if record.original != expected.original:
        problems.add("original is not what the source says", file=RECORD_NAME)
    _compare_files(record, expected.n_ranks, AskedRanks(**expected.options()), problems)
    _compare_tensors(record, expected, found, problems)


def compare_source_of_ranks(
    record: Record, measured: Measured, problems: Problems
) -> Iterator[str]:
    """Compare the sums that a record has of the source's files; yield why not, if so.

    Args:
        record: The output's.
        measured: What was found of the source.
        problems: Gets what differs.
    """
    kinds = {Path(name).suffix for name in record.source}
    if kinds and kinds.isdisjoint(Path(name).suffix for name in measured.sources):
        # Ranks that came back are compared with those before, and were made of a folder between.
        yield (
            f"{RECORD_NAME} says that the ranks were made of {min(record.source)}, which this source "
            "does not have: the sums of its files were not compared with it"
        )
    else:
        compare_source(record, measured, problems)


def _compare_tensors(
    record: Record, expected: ExpectedRanks, found: Found, problems: Problems
) -> None:
    """Compare what the record says of each tensor, and look whether it speaks of all."""
    wanted = {tensor.spec.name: tensor.spec for tensor in found.tensors}
    for name in sorted({*record.parts, *wanted}):
        listed, spec = record.parts.get(name), wanted.get(name)
        said = listed and f"{listed.dtype} {listed.shape}"
        needed = spec and f"{spec.dtype.code} {spec.shape}"
        if said != needed:
            what = f"tensor {shown(name)} is {said or 'missing'}, expected {needed or 'nothing'}"
            problems.add(what, file=RECORD_NAME)
    if record.options.get("ranks") != expected.n_ranks:  # one line says so
        return
    for name, one in sorted(found.measured.tensors.items()):
        listed = record.parts.get(name)
        if listed is None or one.difference is not None:
            continue
        for line in _wrong_sums(listed, one, expected.n_ranks):
            problems.add(f"tensor {name!r} {line}", file=RECORD_NAME)


def _wrong_sums(listed: PartSums, found: Compared, n_ranks: int) -> Iterator[str]:
    """Say which sums and counts of a tensor are others; without a rank, those of the other ranks."""
    if len(listed.crc32s) != n_ranks:
        yield f"has {len(listed.crc32s)} sums, expected {n_ranks}"
        return
    for number, crc in sorted(found.crcs.items()):
        if listed.crc32s[number] != f"{crc:08x}":
            yield (
                f"has CRC-32 {crc:08x} in {rank_name(number)}, the record says "
                f"{listed.crc32s[number]}"
            )
    if len(found.crcs) == n_ranks:
        yield from wrong_counts(listed, found)


def _compare_files(record: Record, n_ranks: int, said: AskedRanks, problems: Problems) -> None:
    """Look whether the record speaks of all files, and of no other."""
    needed = {PARAMS_NAME, *map(rank_name, range(n_ranks))}
    if said.skip_tokenizer is not True:
        needed.add(TOKENIZER_NAME)
    if said.checklist:
        needed.add(CHECKLIST_NAME)
    for name in sorted(needed.difference(record.files)):
        problems.add(f"its files lack {name}", file=RECORD_NAME)
    for name in sorted(set(record.files) - needed):
        what = "which holds no tensor" if is_rank(name) else "which it did not write"
        problems.add(f"files names {name}, {what}", file=RECORD_NAME)


def _compare_forms(
    name: str, listed: PartSums, ranks: Ranks, n_ranks: int, problems: Problems
) -> None:
    """Compare the form that the record gives a tensor with what each rank holds of it."""
    if len(listed.crc32s) != n_ranks:
        what = f"tensor {shown(name)} has {len(listed.crc32s)} sums, expected {n_ranks}"
        problems.add(what, file=RECORD_NAME)
    whole = listed.shape
    forms = {whole} | {
        (*whole[:at], whole[at] // n_ranks, *whole[at + 1 :]) for at in range(len(whole))
    }
    for number, rank in sorted(ranks.items()):
        tensor = rank.tensors.get(name)
        if tensor is None or tensor.dtype.code != listed.dtype or tensor.shape not in forms:
            seen = "not found" if tensor is None else f"{tensor.dtype.code} {tensor.shape}"
            problems.add(
                f"tensor {shown(name)}: {seen}, the record says {listed.dtype} {whole} over "
                f"{n_ranks} ranks",
                file=rank_name(number),
            )


def _of_rank(record: Record, number: int) -> Record:
    """Take from a record what it says of one rank."""
    tensors = {
        name: TensorSums(rank_name(number), one.dtype, one.shape, 0, one.crc32s[number])
        for name, one in record.parts.items()
        if number < len(one.crc32s)
    }
    return replace(record, tensors=tensors)
