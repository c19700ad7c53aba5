"""Draw what benchmark.py measured; part of benchmark.py.

The pictures have no background and grey text, so that they can be read on light and dark pages; the
same results give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark_results import PICTURED, summarize

TEXT = "#7a828c"  # 4 : 1 or nearly on white and on near-black alike
OURS = "#2f8fd8"
OTHERS = "#d9822b"
FLOOR = "#8a929c"
MEMORY_LINES = {
    "convert": (OURS, "-"),
    "float16": ("#9a6fd0", "-"),
    "float32": ("#9a6fd0", "--"),
    "verify": ("#3aa675", "-"),
    "reverse": ("#d05a5a", "-"),
    "floor": (FLOOR, ":"),
}


def colour(case: str) -> str:
    """Choose a bar's colour: ours, another program's, or a floor."""
    if case.startswith("floor"):
        return FLOOR
    return OTHERS if case in ("cp", "reference") else OURS


def plain(title: str) -> str:
    """Leave out Markdown's marks."""
    return title.replace("`", "")


def new_figure(width: float, height: float) -> Any:
    """Make a figure in the house style."""
    import matplotlib as mpl  # noqa: PLC0415 - a development dependency
    from matplotlib.figure import Figure  # noqa: PLC0415

    mpl.rcParams.update({
        "svg.hashsalt": "codellama-convert",
        "svg.fonttype": "none",  # text stays text: small, and in the reader's font
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), TEXT
        ),
    })  # fmt: skip
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path) -> None:
    """Write a picture without anything that changes from run to run."""
    figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})


def draw_bars(axes: Any, rows: Sequence[Mapping[str, Any]], key: str, label: str) -> None:
    """Draw one bar a row, from zero, with its value at its end."""
    values = [row[key] for row in rows]
    bars = axes.barh(
        [plain(row["title"]) for row in rows],
        values,
        color=[colour(row["case"]) for row in rows],
        height=0.7,
    )
    axes.bar_label(bars, fmt="%.2f", padding=4)
    axes.set_xlim(0, 1.2 * max(values))
    axes.set_xlabel(label)
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(axis="y", length=0)


def draw_series(series: Mapping[str, Any], path: Path) -> None:
    """Draw time and processor time of the cases of a series, side by side.

    Args:
        series: From the results.
        path: The new picture.
    """
    rows = [row for row in summarize(series) if row["to_floor"] is not None]
    if not rows:
        return
    figure = new_figure(9, 0.8 + 0.3 * max(2, len(rows)))
    figure.get_layout_engine().set(wspace=0.06)
    left, right = figure.subplots(1, 2, sharey=True)
    left.invert_yaxis()  # in the order of the table
    draw_bars(left, rows, "to_floor", "time, as a ratio to its floor")
    left.axvline(1, color=TEXT, linewidth=0.8, linestyle=":")
    draw_bars(right, rows, "cpu_per_gb", "processor seconds per GB of weights")
    save(figure, path)


def draw_memory(series: Mapping[str, Any], path: Path) -> None:
    """Draw the resident memory of the first round's runs over time.

    Args:
        series: From the results.
        path: The new picture.
    """
    runs = {run["case"]: run for run in series["runs"] if run["round"] == 0 and run["samples"]}
    shown = [case for case in MEMORY_LINES if case in runs]
    if not shown:
        return
    figure = new_figure(9, 3.6)
    axes = figure.subplots()
    for case in shown:
        seconds, resident = zip(*runs[case]["samples"], strict=True)
        line_colour, style = MEMORY_LINES[case]
        megabytes = [n_bytes / 1e6 for n_bytes in resident]
        peak = runs[case]["peak_rss_bytes"] / 1e6
        label = f"{plain(series['cases'][case]['title'])}, {peak:.0f} MB"
        axes.plot(seconds, megabytes, color=line_colour, linestyle=style, label=label)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds")
    axes.set_ylabel("resident memory, MB")
    axes.grid(axis="y", color=TEXT, alpha=0.3, linewidth=0.6)
    figure.legend(loc="outside right center", frameon=False)
    save(figure, path)


def draw(results: Mapping[str, Any], folder: Path) -> None:
    """Draw a picture of each series with many bars, and one of the memory.

    Args:
        results: From benchmark.py.
        folder: Made if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in PICTURED:
        if name in results["series"]:
            draw_series(results["series"][name], folder / f"{name}.svg")
    if "disk" in results["series"]:
        draw_memory(results["series"]["disk"], folder / "memory.svg")
