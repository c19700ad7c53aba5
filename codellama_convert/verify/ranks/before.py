"""Own what is known of ranks that come back as they were: how they were saved, and their sums.

The sums were taken of the files themselves, so they find what both the writer and this program's
idea of such files have wrong.
"""

from __future__ import annotations

from collections.abc import Mapping

from codellama_convert.plan.ranks.find_original import find_original
from codellama_convert.plan.ranks.job import ReverseJob
from codellama_convert.plan.ranks.original import Original
from codellama_convert.plan.source import Source
from codellama_convert.verify.against_record import told_sums
from codellama_convert.verify.ranks.expected import ExpectedRanks
from codellama_convert.verify.ranks.folder import Ranks
from codellama_convert.verify.ranks.found import Found
from codellama_convert.verify.record_reader import FileSums, Record, readable_record
from codellama_convert.verify.report import Problems
from codellama_convert.verify.sums import sum_file


def original_of(job: ReverseJob, record: Record | None, ranks: Ranks) -> Original | None:
    """Find out how ranks were saved before, if they are to come back so.

    Args:
        job: Of a Hugging Face folder, whose record says it, or of the ranks themselves.
        record: The output's, which says whether they came back; without it, what it holds does.
        ranks: Those that were read.

    Returns:
        It; None where they are laid out as torch would.
    """
    checkpoint = job.weights.source.checkpoint
    if checkpoint is None:
        return job.original
    if record is not None:
        came_back = record.original is not None
    else:
        came_back = any(
            (one.n_bytes, one.pickle_sha256) == (before.n_bytes, before.pickle_sha256)
            for number, before in enumerate(checkpoint.ranks)
            if (one := ranks.get(number)) is not None
        )
    return find_original(checkpoint, job.weights.plan.dtype) if came_back else None


def sums_before(source: Source, measured: Mapping[str, FileSums]) -> Mapping[str, FileSums] | None:
    """Find the sums of the ranks that come back.

    Args:
        source: What they are made of.
        measured: The sums of its files.

    Returns:
        By name; None where the weights are not those that were converted.
    """
    if source.is_metas:
        return measured
    record = readable_record(source.folder, Problems())
    if record is None:
        return None
    converted = {name: (one.size, one.crc32) for name, one in record.files.items()}
    is_unchanged = all(
        converted.get(name) == (one.size, one.crc32) for name, one in measured.items()
    )
    return record.source if is_unchanged else None


def compare_sums(
    sums: Mapping[str, FileSums], expected: ExpectedRanks, found: Found, problems: Problems
) -> None:
    """Compare each rank with the sums of the file that comes back.

    Args:
        sums: From `sums_before`.
        expected: What must be there.
        found: What was found of both sides.
        problems: Gets what differs, of ranks of which nothing else was found to differ.
    """
    for number, name in enumerate(expected.names):
        if number not in found.ranks or problems.are_about(name):
            continue
        path = found.ranks[number].path
        now = sum_file(path, found.weights(number), found.crcs(number))
        if now is not None and now != sums.get(name):
            problems.add(
                f"{told_sums(now)}; the original file {told_sums(sums.get(name))}", file=name
            )
