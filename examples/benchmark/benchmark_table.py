"""Set measurements in relation, and lay them out for a README; part of benchmark.py."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
from benchmark_results import PICTURED, summarize

TABLED = ("ram", "disk", "llama3")  # the series that have a table of their own


def table(*rows: Sequence[str]) -> str:
    """Lay out rows as a Markdown table: the first has the names, the first column is text."""
    head, *others = rows
    ruler = ("---", *("--:" for _ in head[1:]))
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ruler, *others))


def gigabytes(n_bytes: float) -> str:
    """Spell a size; what a journal takes for a moment is 0."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 5e7 else "0"


def machine_text(machine: Mapping[str, Any]) -> str:
    """Name the machine and the versions."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['cores']} cores ({machine['processor']}, {machine['machine']}), "
        f"{machine['memory_bytes'] / 1e9:.0f} GB of memory, Linux {machine['kernel']}; {versions}."
    )


def model_text(series: Mapping[str, Any]) -> str:
    """Name the model, and how much of it there is."""
    layers, all_layers = series["layers"], series["all_layers"]
    cut = "" if layers == all_layers else f" with {layers} of its {all_layers} layers"
    return f"{series['model']}{cut}"


def series_text(name: str, series: Mapping[str, Any]) -> str:
    """Say what was measured, lay out one row a case that moves bytes, and show the pictures."""
    way = " past the page cache" if series["direct_io"] else ""
    head = (
        "", "time, as a ratio to its floor", "seconds", "CPU seconds per GB of weights",
        "peak memory", "temporary disk", "rounds",
    )  # fmt: skip
    rows = [
        (
            row["title"],
            f"{row['to_floor']:.2f}",
            f"{row['seconds']:.2f}",
            f"{row['cpu_per_gb']:.2f}",
            f"{row['peak_rss_bytes'] / 1e6:,.0f} MB",
            gigabytes(row["temporary_bytes"]),
            str(row["rounds"]),
        )
        for row in summarize(series)
        if row["to_floor"] is not None
    ]
    if not rows:
        return "Not measured."
    text = (
        f"{model_text(series)}, {series['bytes'] / 1e9:.1f} GB in bfloat16, on "
        f"{series['file_system']}; copies{way} with {series['workers']} threads.\n\n"
        f"{table(head, *rows)}"
    )
    if name in PICTURED:
        text += (
            "\n\n![Time of each run as a ratio to its floor, and processor seconds per GB of weights]"
            f"(pictures/{name}.svg)"
        )
    if name == "disk" and any(run["samples"] for run in series["runs"]):
        text += "\n\n![Resident memory of each run over time](pictures/memory.svg)"
    return text


def sizes_text(all_series: Mapping[str, Any]) -> str:
    """Lay out one row a model of all its layers: how its plan and its conversion grow."""
    head = (
        "", "ranks", "weights", "`plan`, seconds", "`plan`, peak memory", "conversion", "its peak memory"
    )  # fmt: skip
    rows, start = [], ""
    for name, series in sorted(all_series.items(), key=lambda item: int(item[1]["bytes"])):
        found = {row["case"]: row for row in summarize(series)}
        plan, converted = found.get("plan"), found.get("convert") or found.get("part")
        if "help" in found:
            start = f"\n\n`--help` takes {found['help']['seconds']:.2f} s."
        if name == "ram" or plan is None or converted is None:
            continue
        rows.append(
            (
                model_text(series),
                str(series["ranks"]),
                gigabytes(series["bytes"]),
                f"{plan['seconds']:.2f}",
                f"{plan['peak_rss_bytes'] / 1e6:.0f} MB",
                converted["title"],
                f"{converted['peak_rss_bytes'] / 1e6:.0f} MB",
            )
        )
    return (table(head, *rows) if rows else "Not measured.") + start


def regions(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what stands between a README's marks.

    Args:
        results: The content of the JSON file.

    Yields:
        The mark's name, and Markdown.
    """
    all_series = results["series"]
    yield "machine", machine_text(results["machine"])
    for name in TABLED:
        measured = all_series.get(name)
        yield name, series_text(name, measured) if measured else "Not measured."
    yield "sizes", sizes_text(all_series)


def written_between_marks(text: str, results: Mapping[str, Any]) -> str:
    """Put the results between the marks of a README, and leave everything else alone.

    Args:
        text: With marks such as `<!-- disk -->` and `<!-- end of disk -->`.
        results: The content of the JSON file.

    Returns:
        The new text.

    Raises:
        click.ClickException: If a mark is missing, or there twice.
    """
    for name, region in regions(results):
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        written = region.replace("\\", r"\\")
        text, n_places = mark.subn(rf"\g<1>\n{written}\n\n\g<2>", text)
        if n_places != 1:
            raise click.ClickException(
                f"--readme: {n_places} places between <!-- {name} --> and <!-- end of {name} -->; "
                "there must be one"
            )
    return text
