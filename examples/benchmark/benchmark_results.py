"""Keep the results in a JSON file, and set them in relation; part of benchmark.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import click

FORMAT = 2  # of the JSON file
PICTURED = ("ram", "disk")  # series whose bars are drawn


def save(results: Mapping[str, Any], json_file: Path) -> None:
    """Write the JSON file, of which there is always a whole one."""
    new = json_file.with_name(f"{json_file.name}.new")
    new.write_text(json.dumps(results) + "\n", encoding="utf-8")
    new.replace(json_file)


def load(json_file: Path) -> dict[str, Any]:
    """Read the results of an earlier run.

    Raises:
        click.ClickException: If they are in another format.
    """
    results: dict[str, Any] = json.loads(json_file.read_text(encoding="utf-8"))
    if results.get("format") != FORMAT:
        raise click.ClickException(f"{json_file} was written by another version of this benchmark")
    return results


def results_to_add_to(json_file: Path, machine: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results that a file holds of other series, measured on the same machine.

    Raises:
        click.ClickException: If they are those of another machine, or of other versions.
    """
    if not json_file.exists():
        return {"format": FORMAT, "machine": machine, "series": {}}
    results = load(json_file)
    if results["machine"] != machine:
        raise click.ClickException(
            f"{json_file} has results of another machine, or of other versions; name another --json"
        )
    return results


def summarize(series: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Take medians over the rounds and set them in relation.

    Args:
        series: From the JSON file.

    Returns:
        One row for each case that was measured; the ratio is that of the medians, None where there
        is nothing to compare.
    """

    def values(name: str, key: str) -> list[float]:
        return [run[key] for run in series["runs"] if run["case"] == name]

    rows = []
    for name, case in series["cases"].items():
        if not (seconds := values(name, "seconds")):
            continue
        floor = values(case["floor"], "seconds")
        rows.append(
            {
                "case": name,
                "title": case["title"],
                "rounds": len(seconds),
                "seconds": median(seconds),
                "to_floor": median(seconds) / median(floor) if floor else None,
                "cpu_per_gb": 1e9 * median(values(name, "cpu_seconds")) / series["bytes"],
                "peak_rss_bytes": max(values(name, "peak_rss_bytes")),
                "temporary_bytes": max(values(name, "temporary_bytes")),
            }
        )
    return rows
