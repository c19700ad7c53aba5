"""Own the proof of a folder of ranks: bit for bit against its source.

Loaders of ranks take what they are given: they say nothing of a missing weight or of a dropped
`rope_theta`. So every byte of every file is compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

from codellama_convert.meta.target_names import is_taken
from codellama_convert.model.asked import RECORD_NAME, AskedRanks
from codellama_convert.model.tensor_table import FREQUENCIES_NAME
from codellama_convert.plan.ranks.job import ReverseJob
from codellama_convert.storage.watch import Watch
from codellama_convert.verify.output_files import complain_of_strays
from codellama_convert.verify.ranks.asked import asked_of_ranks, without_impossible
from codellama_convert.verify.ranks.before import compare_sums, original_of, sums_before
from codellama_convert.verify.ranks.expected import ExpectedRanks, expected_ranks
from codellama_convert.verify.ranks.folder import (
    CHECKLIST_NAME,
    PARAMS_NAME,
    TOKENIZER_NAME,
    read_ranks,
    shown_by,
)
from codellama_convert.verify.ranks.found import Found
from codellama_convert.verify.ranks.layouts import compare_layouts
from codellama_convert.verify.ranks.parts import compare_frequencies, compare_parts
from codellama_convert.verify.ranks.record import check_ranks_record, compare_source_of_ranks
from codellama_convert.verify.ranks.small_files import (
    check_checklist,
    check_params,
    check_tokenizer_model,
)
from codellama_convert.verify.record_reader import readable_record
from codellama_convert.verify.report import Problems, VerifyReport
from codellama_convert.verify.sums import FileReading
from codellama_convert.verify.weights import compare_tensors


def verify_ranks(
    output_dir: Path,
    job: ReverseJob,
    asked: AskedRanks | None,
    watch: Watch,
    executor: Executor | None = None,
) -> VerifyReport:
    """Compare a folder of ranks with the folder that it was made of.

    Args:
        output_dir: What was converted.
        job: The source, from `plan_reverse`.
        asked: What the conversion was asked for, where that is known; by default what the job's
            options say. The rest is what the record says, or what the ranks show.
        watch: Whom each tile of the output is reported to.
        executor: Whose workers compare the tensors; None is threads of this process.

    Returns:
        What was found.

    Raises:
        ConvertError: If a side cannot be read at all.
    """
    problems = Problems()
    record = readable_record(output_dir, problems)
    ranks = read_ranks(output_dir, problems.add)
    shown = shown_by(ranks, job.weights.source.config)
    told = shown if record is None or record.asked_ranks is None else record.asked_ranks
    asked = (asked_of_ranks(job.options) if asked is None else asked).or_else(told)
    asked = without_impossible(asked, job, problems)
    expected = expected_ranks(job, asked, original_of(job, record, ranks))
    _compare_forms(expected, shown, problems)
    plan = job.weights.plan
    tensors = expected.tensors(plan.tile_bytes)
    parts = compare_parts(expected, tensors, ranks, problems)
    beside = (*expected.others, *expected.second_names)
    others = {spec.name: parts.pop(spec.name) for spec in beside}
    if expected.original is None:
        compare_frequencies(expected, others.get(FREQUENCIES_NAME, {}), problems)
    compared = [tensor for tensor in tensors if parts[tensor.spec.name]]
    reading = FileReading(
        job.options.io_mode, plan.workers, watch, executor, job.options.max_ram_bytes
    )
    measured = compare_tensors(compared, parts, expected.source.files, problems, reading)
    found = Found(ranks, tensors, measured)
    compare_layouts(expected, found, problems)
    notes = list(_compare_with_before(expected, found, problems))
    _check_other_files(output_dir, expected, problems)
    if record is not None:
        check_ranks_record(
            output_dir, record, job=job, expected=expected, found=found, problems=problems
        )
        notes += compare_source_of_ranks(record, measured, problems)
    read = sum(tensor.spec.n_elements * tensor.read_dtype.itemsize for tensor in compared)
    written = sum(one.n_bytes for by_rank in parts.values() for one in by_rank.values())
    return VerifyReport(
        output_dir, "source", len(compared), read + written, problems.lines(), tuple(notes)
    )


def _compare_forms(expected: ExpectedRanks, shown: AskedRanks, problems: Problems) -> None:
    """Say in one line what every tensor will show in many."""
    if shown.dtype not in (None, expected.dtype.name):
        problems.add(f"the tensors are {shown.dtype}, not {expected.dtype.name} as asked for")
    if shown.ranks not in (None, expected.n_ranks):
        problems.add(
            f"the tensors are split over {shown.ranks} ranks, not over {expected.n_ranks} as "
            "asked for"
        )


def _compare_with_before(
    expected: ExpectedRanks, found: Found, problems: Problems
) -> Iterator[str]:
    """Compare ranks that come back with the sums of the files before; yield why not, if so."""
    if expected.original is None:
        return
    sums = sums_before(expected.source, found.measured.sources)
    if sums is not None:
        compare_sums(sums, expected, found, problems)
    else:
        yield (
            f"the source's weights changed since its {RECORD_NAME} was written: the ranks were not "
            "compared with the original files"
        )


def _check_other_files(output_dir: Path, expected: ExpectedRanks, problems: Problems) -> None:
    """Compare the files beside the ranks, and name those that do not belong there."""
    comes_back = expected.original is not None
    own = expected.source.params if expected.original is None else expected.original.params.encode()
    check_params(output_dir, expected.config, own, problems, comes_back=comes_back)
    names = {*expected.names, PARAMS_NAME}
    if expected.tokenizer is not None:
        names.add(TOKENIZER_NAME)
        n_rows = expected.config.vocab_size
        check_tokenizer_model(output_dir, expected.tokenizer, n_rows, problems)
    if expected.checklist:
        check_checklist(output_dir, sorted(names), problems)
        names.add(CHECKLIST_NAME)
    complain_of_strays(output_dir, names, problems.add, is_taken)
