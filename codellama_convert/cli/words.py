"""Own the words about what will be done, was done and was found; print nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from codellama_convert.storage.sizes import format_size

if TYPE_CHECKING:
    from codellama_convert.verify.report import VerifyReport


def count(number: int, noun: str) -> str:
    """Say how many of something, in English."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def plan_lines(described: Mapping[str, Any]) -> Iterator[str]:
    """Lay a described job out for a terminal of 80 columns.

    Args:
        described: From `describe_job`.

    Yields:
        Lines.
    """
    yield f"checkpoint  {described['input_dir']}"
    yield from _output_lines(described)
    if "files" in described:
        yield from _model_lines(described)
        yield ""
        yield from _file_lines(described)
        yield ""
        yield from _memory_lines(described)
    else:
        yield "model       none: only the tokenizer"
    yield from _disk_lines(described)
    if "run_memory" in described:
        yield from _run_memory_lines(described["run_memory"])


def ranks_plan_lines(described: Mapping[str, Any]) -> Iterator[str]:
    """Lay out for a terminal of 80 columns which ranks will be written.

    Args:
        described: From `describe_ranks`.

    Yields:
        Lines.
    """
    yield f"input       {described['input_dir']}"
    yield from _output_lines(described)
    yield f"model       {described['variant'] or 'not a released one'}"
    yield from _weights_lines(described)
    yield f"vocabulary  {described['vocab_size']}, rope_theta {described['rope_theta']:g}"
    yield f"layout      that of PyTorch {described['torch_layout']}"
    if described["jobs"] > 1:
        yield (
            f"reading     {described['jobs']} jobs read {format_size(described['read_bytes'])} "
            f"in all; the source has {format_size(described['source_bytes'])}"
        )
    yield ""
    yield from _file_lines(described)
    yield ""
    yield from _memory_lines(described)
    yield from _disk_lines(described)


def _output_lines(described: Mapping[str, Any]) -> Iterator[str]:
    yield f"output      {described['output_dir']}"
    if described["output_finished"]:
        yield "finished    already converted, nothing to do"
    if described["output_refusal"] is not None:
        yield f"refused     {described['output_refusal']}"
    if described["output_replaced"]:
        first, *others = described["output_replaced"]
        more = f" and {count(len(others), 'other file')}" if others else ""
        yield f"replaced    {first}{more}"


def _memory_lines(described: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"memory      {format_size(described['buffer_bytes'])} of buffers "
        f"({count(described['workers'], 'worker')}, tiles up to "
        f"{format_size(described['largest_tile_bytes'])})"
    )
    needs_torch = "float32" in described["source_dtype"] and described["dtype"] != "float32"
    yield "            plus about 55 MB for Python and numpy" + (
        ", and 200 MB for torch, which the cast needs" if needs_torch else ""
    )


def _disk_lines(described: Mapping[str, Any]) -> Iterator[str]:
    needed, free = described["disk_needed_bytes"], described["disk_free_bytes"]
    missing, staged = described["disk_missing_bytes"], described["staged_bytes"]
    if staged:
        yield f"resumed     {format_size(staged)} left by an earlier run"
    yield (
        f"disk        {format_size(needed)} needed, "
        f"{'unknown' if free is None else format_size(free)} free"
        + (f": {format_size(missing)} too little" if missing else "")
    )


def _model_lines(described: Mapping[str, Any]) -> Iterator[str]:
    yield f"model       {described['variant']}"
    yield from _weights_lines(described)
    yield (
        f"context     {described['max_position_embeddings']} positions, rope_theta "
        f"{described['rope_theta']:g}, vocabulary {described['vocab_size']}"
    )
    if described["rope_scaling_factor"] is not None:
        yield f"scaling     rope_type llama3, factor {described['rope_scaling_factor']:g}"
    if described["dropped"]:
        yield f"dropped     {_dropped(described['dropped'])}"


def _weights_lines(described: Mapping[str, Any]) -> Iterator[str]:
    dtype, source_dtype = described["dtype"], described["source_dtype"]
    yield (
        f"weights     {described['parameters']:,} parameters, "
        f"{count(described['ranks'], 'rank')}, {source_dtype}"
        + ("" if dtype == source_dtype else f" -> {dtype}")
    )


def _dropped(names: Sequence[str]) -> str:
    """Count tensors that were left out, those of all layers together."""
    kinds = Counter(
        re.sub(r"layers\.[0-9]+\.(?:.*\.)?(?=rope\.|[^.]+$)", "", name) for name in names
    )
    return ", ".join(f"{n} x {kind}" for kind, n in kinds.items())


def _file_lines(described: Mapping[str, Any]) -> Iterator[str]:
    yield f"{'file':<36}{'tensors':>9}{'bytes':>18}"
    for file in described["files"]:
        yield (
            f"{file['name']:<36}{len(file['tensors']):>9}{file['bytes']:>18,}"
            f"{format_size(file['bytes']):>12}"
        )


def _run_memory_lines(run_memory: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    half, single = run_memory["bfloat16"], run_memory["float32"]
    yield (
        f"to run it   {format_size(half['weight_bytes'])} of weights in bfloat16 or float16, "
        f"{format_size(single['weight_bytes'])} in float32;"
    )
    yield (
        f"            {format_size(half['kv_cache_bytes_per_1000_tokens'])} more per 1,000 tokens of "
        f"context, {format_size(single['kv_cache_bytes_per_1000_tokens'])} in float32"
    )


def value_notes(described: Mapping[str, Any]) -> Iterator[str]:
    """Say what is odd about the values of a conversion's tensors.

    Args:
        described: From `describe_report`.

    Yields:
        One note for values that became zero, and one for infinities and NaNs.
    """
    for counts, what in (
        (described["became_zero"], "too small for the new dtype became zero"),
        (described["nonfinite"], "infinite or NaN, kept as stored"),
    ):
        if counts:
            yield (
                f"{count(sum(counts.values()), 'value')} in {count(len(counts), 'tensor')} {what} "
                f"(first in {next(iter(counts))})"
            )


def _format_rate(bytes_per_second: float) -> str:
    """Write a rate in GB/s; below 0.1 of them in MB/s, so that a tiny model's is not 0.00."""
    if bytes_per_second < 1e8:
        return f"{bytes_per_second / 1e6:.1f} MB/s"
    return f"{bytes_per_second / 1e9:.2f} GB/s"


def _format_wait(seconds: float) -> str:
    if seconds <= 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds <= 90 * 60 else f"{seconds / 3600:.1f} h"


def progress_line(what: str, n_done: int, n_total: int | None, seconds: float) -> str:
    """Say how far long work is.

    Args:
        what: What progresses, such as "converting".
        n_done: Bytes until now.
        n_total: Bytes in the end, where that is known.
        seconds: Since it began.

    Returns:
        Such as "converting: 4.2 GB of 13.5 GB (31%), 0.45 GB/s, 21 s left".
    """
    parts = [f"{what}: {format_size(n_done)}"]
    if n_total:
        parts[0] += f" of {format_size(n_total)} ({100 * n_done // n_total}%)"
    if n_done and seconds:
        parts.append(_format_rate(n_done / seconds))
        if n_total:
            parts.append(f"{_format_wait(max(0, n_total - n_done) * seconds / n_done)} left")
    return ", ".join(parts)


def summary_line(described: Mapping[str, Any]) -> str:
    """Say in one line what a conversion did.

    Args:
        described: From `describe_report`.

    Returns:
        Such as "wrote CodeLlama-7b-hf: 13.5 GB in 18.2 s (0.74 GB/s), peak memory 61.3 MB".
    """
    if described["already_converted"]:
        where = described["output_dir"]
        return f"{where}: already converted, nothing to do; --overwrite converts it again"
    what = format_size(described["tensor_bytes"])
    if not described["tensor_bytes"]:
        what = f"the tokenizer, {count(len(described['files']), 'file')}"
    parts = [f"wrote {described['output_dir']}: {what}"]
    n_new = described["tensor_bytes"] - described["kept_bytes"]
    if n_new and described["seconds"]:
        seconds = described["seconds"]
        parts[0] += f" in {seconds:.1f} s ({_format_rate(n_new / seconds)})"
    if described["kept_bytes"]:
        parts.append(f"{format_size(described['kept_bytes'])} of it kept from an earlier run")
    if described["peak_rss_bytes"]:
        parts.append(f"peak memory {format_size(described['peak_rss_bytes'])}")
    if described["cast"]:
        parts.append(f"cast {described['cast']}")
    if described["dropped"]:
        parts.append(f"dropped {_dropped(described['dropped'])}")
    if described["notes"]:
        parts.append(count(len(described["notes"]), "note"))
    return ", ".join(parts)


def verify_lines(
    report: VerifyReport, seconds: float, *, source: str = "the checkpoint"
) -> Iterator[str]:
    """Say what a verification found.

    Args:
        report: What it found.
        seconds: How long it took.
        source: What the output was made of.

    Yields:
        One line for each problem, and a last one.
    """
    yield from report.problems
    against = {"source": source, "record": "conversion.json", "ranks": "Meta's ranks"}
    verdict = "DIFFERS from" if report.problems else "equals"
    rate = f" ({_format_rate(report.n_bytes / seconds)})" if seconds else ""
    what = count(report.n_tensors, "tensor") if report.n_tensors else "no weights"
    yield (
        f"{report.output_dir} {verdict} {against[report.against]}: {what}, "
        f"{format_size(report.n_bytes)} read in {seconds:.1f} s{rate}"
    )
