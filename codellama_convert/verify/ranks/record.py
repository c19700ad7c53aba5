"""Own the check of ranks against the record beside them, conversion.json, with and without a source."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from codellama_convert import __version__
from codellama_convert.errors import shown
from codellama_convert.formats.pth.reader import RankIndex
from codellama_convert.meta.target_names import is_taken
from codellama_convert.model.asked import RECORD_NAME, AskedRanks
from codellama_convert.plan.ranks.job import ReverseJob
from codellama_convert.plan.tiles import TensorPlan
from codellama_convert.storage.threads import default_workers
from codellama_convert.storage.watch import Watch
from codellama_convert.verify.against_record import (
    Measured,
    compare_source,
    record_needed,
    wrong_counts,
)
from codellama_convert.verify.folder_reader import StoredOutput
from codellama_convert.verify.output_files import complain_of_strays
from codellama_convert.verify.ranks.folder import (
    CHECKLIST_NAME,
    PARAMS_NAME,
    TOKENIZER_NAME,
    Ranks,
    as_stored,
    is_rank,
    rank_name,
    read_ranks,
)
from codellama_convert.verify.ranks.job import ExpectedRanks
from codellama_convert.verify.record_reader import PartSums, Record, TensorSums
from codellama_convert.verify.report import Problems, VerifyReport
from codellama_convert.verify.sums import FileReading, compare_file, compare_shard


@dataclass(frozen=True, slots=True)
class Found:
    """What was found out about both sides while they were compared.

    Attributes:
        ranks: Those that were read.
        crcs: By rank and tensor, of the data that is right.
        measured: Of the source's files, and of each tensor.
    """

    ranks: Ranks
    crcs: Mapping[int, Mapping[str, int]]
    measured: Measured


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
        stored = {} if number is None else _stored(ranks[number])
        of_file = record if number is None else _of_rank(record, number)
        n_bytes += compare_file(output_dir / name, of_file, stored, problems, reading)
    return VerifyReport(output_dir, "record", len(record.parts), n_bytes, problems.lines())


def check_ranks_record(
    output_dir: Path,
    record: Record,
    *,
    job: ReverseJob,
    expected: ExpectedRanks,
    tensors: Collection[TensorPlan],
    found: Found,
    problems: Problems,
) -> None:
    """Compare a record with the ranks beside it and with their source.

    Args:
        output_dir: What was converted.
        record: Its record.
        job: The conversion.
        expected: What must be there.
        tensors: Its tensors.
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
            crcs = found.crcs.get(number, {})
            stored = _stored(found.ranks[number])
            if expected.original is not None:  # what lies beside the weights has no sum of its own
                weights = {tensor.spec.name for tensor in tensors}
                stored = {name: one for name, one in stored.items() if name in weights}
            compare_shard(path, record, stored, crcs, problems)
    problems.add_differences(RECORD_NAME, record.options, expected.options(), part="options")
    # Another version of this program may call a model otherwise.
    if record.version == __version__ and record.model != job.model_name:
        what = f"model is {shown(record.model)}, expected {job.model_name!r}"
        problems.add(what, file=RECORD_NAME)
    if record.original != expected.original:
        problems.add("original is not what the source's record says", file=RECORD_NAME)
    _compare_files(record, expected.n_ranks, AskedRanks(**expected.options()), problems)
    _compare_tensors(record, tensors, found, problems)
    compare_source(record, found.measured, problems)


def _compare_tensors(
    record: Record, tensors: Collection[TensorPlan], found: Found, problems: Problems
) -> None:
    """Compare what the record says of each tensor, and look whether it speaks of all."""
    wanted = {tensor.spec.name: tensor.spec for tensor in tensors}
    for name in sorted({*record.parts, *wanted}):
        listed, spec = record.parts.get(name), wanted.get(name)
        said = listed and f"{listed.dtype} {listed.shape}"
        needed = spec and f"{spec.dtype.code} {spec.shape}"
        if said != needed:
            what = f"tensor {shown(name)} is {said or 'missing'}, expected {needed or 'nothing'}"
            problems.add(what, file=RECORD_NAME)
    for name, one in sorted(found.measured.tensors.items()):
        listed = record.parts.get(name)
        if listed is None or one.difference is not None:
            continue
        crcs = " ".join(f"{crc:08x}" for _, crc in sorted(one.crcs.items()))
        for line in wrong_counts(" ".join(listed.crc32s), crcs, listed, one):
            problems.add(f"tensor {name!r} {line}", file=RECORD_NAME)


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
        what = "of which no tensor is" if is_rank(name) else "which it did not write"
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


def _stored(rank: RankIndex) -> dict[str, StoredOutput]:
    """Say where the tensors of a rank lie, those whose bytes are theirs alone and in order."""
    stored: dict[str, StoredOutput] = {}
    end = 0
    tensors = rank.tensors.items()
    for name, tensor in sorted(tensors, key=lambda one: as_stored(rank.path, one[1]).offset):
        one = as_stored(rank.path, tensor)
        if tensor.row_major and one.offset >= end:
            stored[name], end = one, one.offset + one.n_bytes
    return stored


def _of_rank(record: Record, number: int) -> Record:
    """Take from a record what it says of one rank."""
    tensors = {
        name: TensorSums(rank_name(number), one.dtype, one.shape, 0, one.crc32s[number])
        for name, one in record.parts.items()
        if number < len(one.crc32s)
    }
    return replace(record, tensors=tensors)
