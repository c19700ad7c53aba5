"""Set measurements in relation and lay them out as a table; part of benchmark.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from benchmark_cases import Case


def summarize(
    cases: Sequence[Case], runs: Sequence[Mapping[str, Any]], checkpoint_bytes: int
) -> list[dict[str, Any]]:
    """Take medians over the rounds and set them in relation.

    Args:
        cases: What was measured.
        runs: All measurements.
        checkpoint_bytes: Of the weights as they are read.

    Returns:
        One row a case; the ratios are those of the medians, None where there is nothing to compare.
    """

    def middle(name: str, key: str) -> float | None:
        values = [run[key] for run in runs if run["case"] == name]
        return median(values) if values else None

    def ratio(case: Case, other: str) -> float | None:
        seconds, compared = middle(case.name, "seconds"), middle(other, "seconds")
        return seconds / compared if seconds and compared else None

    return [
        {
            "case": case.name,
            "title": case.title,
            "bytes": (case.read_times + case.write_times) * checkpoint_bytes,
            **{key: middle(case.name, key) for key in ("seconds", "cpu_seconds")},
            "to_floor": ratio(case, case.floor),
            "to_cp": ratio(case, "cp") if case.floor == "floor" else None,
            "to_reference": ratio(case, "reference") if case.floor == "floor" else None,
            "peak_rss_bytes": max(r["peak_rss_bytes"] for r in runs if r["case"] == case.name),
            "temporary_bytes": max(r["temporary_bytes"] for r in runs if r["case"] == case.name),
        }
        for case in cases
    ]


def table_lines(results: Mapping[str, Any]) -> Iterator[str]:
    """Lay the results out as a Markdown table.

    Args:
        results: The content of the JSON file.

    Yields:
        Lines.
    """
    machine, model = results["machine"], results["checkpoint"]
    caches = "dropped" if results["settings"]["caches_dropped"] else "not dropped (needs root)"
    yield (
        f"{model['size']}, {model['layers']} layers, {'sparse' if model['sparse'] else 'filled'}, "
        f"{model['ranks']} rank(s), {model['bytes'] / 1e9:.2f} GB; {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 1e9:.0f} GB RAM, {machine['file_system']}, "
        f"medians of {results['settings']['rounds']} round(s), other caches {caches}"
    )
    yield ""
    yield "| run | read + written | seconds | x floor | x cp | x reference | CPU s | peak RSS | temporary disk |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    for row in results["summary"]:
        ratios = (row["to_floor"], row["to_cp"], row["to_reference"])
        cells = (
            row["title"],
            f"{row['bytes'] / 1e9:.1f} GB",
            f"{row['seconds']:.2f}",
            *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
            f"{row['cpu_seconds']:.2f}",
            f"{row['peak_rss_bytes'] / 1e6:.0f} MB",
            f"{row['temporary_bytes'] / 1e6:.0f} MB",
        )
        yield f"| {' | '.join(cells)} |"
