"""Draw what benchmark.py measured; part of benchmark.py.

The pictures have no background and grey text, so that they can be read on light and dark pages; the
same results give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

TEXT = "#7a828c"  # 4 : 1 or nearly on white and on near-black alike
OURS = "#2f8fd8"
OTHERS = "#d9822b"
FLOOR = "#8a929c"
LINES = {
    "auto": ("#2f8fd8", "-"),
    "verify": ("#3aa675", "-"),
    "float16": ("#9a6fd0", "-"),
    "float32": ("#9a6fd0", "--"),
    "reference": ("#d9822b", "-"),
    "cp": ("#d05a5a", "-"),
    "floor": (FLOOR, "-"),
}
MEMORY_TICKS = {10**7: "10 MB", 10**8: "100 MB", 10**9: "1 GB", 10**10: "10 GB", 10**11: "100 GB"}


def colour(case: str) -> str:
    """Choose a bar's colour: ours, another program's, or a floor."""
    if case.startswith("floor"):
        return FLOOR
    return OTHERS if case in ("cp", "reference") else OURS


def new_axes(width: float, height: float) -> tuple[Any, Any]:
    """Make a figure with one pair of axes in the house style."""
    import matplotlib as mpl  # noqa: PLC0415 - a development dependency
    from matplotlib.figure import Figure  # noqa: PLC0415

    mpl.rcParams.update({
        "svg.hashsalt": "codellama-convert",
        "svg.fonttype": "none",  # text stays text: small, and in the reader's font
        "font.family": "sans-serif",
        "font.size": 10,
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), TEXT
        ),
    })  # fmt: skip
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def save(figure: Any, path: Path) -> None:
    """Write a picture without anything that changes from run to run."""
    figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})


def draw_times(results: Mapping[str, Any], path: Path) -> None:
    """Draw the time of every run as a ratio to its floor.

    Args:
        results: From benchmark.py.
        path: The new picture.
    """
    rows = [row for row in results["summary"] if row["to_floor"] is not None]
    rows = [row for row in rows if row["case"] == "floor" or not row["case"].startswith("floor")]
    rows.sort(key=lambda row: (row["case"] != "floor", row["to_floor"]), reverse=True)
    figure, axes = new_axes(7.5, 0.6 + 0.34 * max(2, len(rows)))
    ratios = [row["to_floor"] for row in rows]
    bars = axes.barh(
        [row["title"] for row in rows], ratios, color=[colour(row["case"]) for row in rows]
    )
    labels = [f"{row['to_floor']:.2f}   {row['seconds']:.1f} s" for row in rows]
    axes.bar_label(bars, labels, padding=4)
    axes.axvline(1, color=TEXT, linewidth=0.8, linestyle=":")
    axes.set_xlim(0, 1.2 * max(ratios, default=1))
    axes.set_xlabel("time, as a ratio to a plain copy of the same bytes (shorter is better)")
    axes.tick_params(axis="y", length=0)
    save(figure, path)


def middle_run(runs: Sequence[Mapping[str, Any]], case: str) -> Mapping[str, Any] | None:
    """Pick the run of a case whose time is the median, or the one below it."""
    of_case = sorted((run for run in runs if run["case"] == case), key=lambda run: run["seconds"])
    return of_case[(len(of_case) - 1) // 2] if of_case else None


def memory_lines(results: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield case, title and the run to draw, in the order of `LINES`."""
    titles = {row["case"]: row["title"] for row in results["summary"]}
    for case in LINES:
        run = middle_run(results["runs"], case)
        if run is not None and run["samples"]:
            yield case, titles[case], run


def draw_memory(results: Mapping[str, Any], path: Path) -> None:
    """Draw the resident memory of the runs over time.

    Args:
        results: From benchmark.py.
        path: The new picture.
    """
    figure, axes = new_axes(7.5, 4.0)
    highest = 10**8
    for case, title, run in memory_lines(results):
        seconds, resident = zip(*run["samples"], strict=True)
        line_colour, style = LINES[case]
        label = f"{title}, {max(resident) / 1e6:,.0f} MB"
        axes.plot(seconds, resident, color=line_colour, linestyle=style, label=label, linewidth=1.6)
        highest = max(highest, *resident)
    ticks = [tick for tick in MEMORY_TICKS if tick <= 2 * highest]
    axes.set_yscale("log")
    axes.set_yticks(ticks, [MEMORY_TICKS[tick] for tick in ticks])
    axes.set_ylim(bottom=2e6)
    axes.minorticks_off()
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds")
    axes.set_ylabel("resident memory")
    axes.grid(axis="y", color=TEXT, alpha=0.3, linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    save(figure, path)


def draw(results: Mapping[str, Any], folder: Path) -> None:
    """Draw both pictures.

    Args:
        results: From benchmark.py.
        folder: Made if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw_times(results, folder / "benchmark-time.svg")
    draw_memory(results, folder / "benchmark-memory.svg")
