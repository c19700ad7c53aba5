"""Own what is reported of a conversion: what was written, and what a user should know of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from codellama_convert.plan.job import Job
from codellama_convert.plan.ranks.job import ReverseJob
from codellama_convert.staging.record_values import SealedFile


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
        already_converted: Whether an earlier run had done all of it, and nothing was to do.
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
    already_converted: bool = False


def report_on(
    job: Job | ReverseJob,
    output_dir: Path,
    names: Collection[str],
    sealed: Mapping[str, SealedFile],
    *,
    kept_bytes: int,
    direct: bool = False,
    notes: tuple[str, ...],
    already_converted: bool = False,
) -> ConversionReport:
    """Report what was done, or had been.

    Args:
        job: What was asked for.
        output_dir: Where it went.
        names: The files of the output.
        sealed: Those of them that hold weights.
        kept_bytes: Of the tensors that an earlier run had written.
        direct: Whether the page cache was passed by.
        notes: What the user should know.
        already_converted: Whether nothing was to do.

    Returns:
        The report.
    """
    return ConversionReport(
        output_dir=output_dir,
        files=tuple(sorted(names)),
        tensor_bytes=job.tensor_bytes,
        kept_bytes=kept_bytes,
        direct=direct,
        dropped=job.dropped,
        cast=job.cast,
        became_zero=_added_up(one.became_zero for one in sealed.values()),
        nonfinite=_added_up(one.nonfinite for one in sealed.values()),
        notes=notes,
        already_converted=already_converted,
    )


def _added_up(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add the counts of an output's files: each element is counted once, a copy in the first file."""
    found: Counter[str] = Counter()
    for one in counts:
        found.update(one)
    return dict(found)
