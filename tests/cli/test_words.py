"""The words of a report, spelled by hand: what no run on a tiny model shows, or no two alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from codellama_convert.cli.words import summary_line, verify_lines
from codellama_convert.verify.report import VerifyReport

RATES = pytest.mark.parametrize(
    ("n_bytes", "seconds", "shown"),
    [
        (13_500_000_000, 18.2, "13.5 GB in 18.2 s (0.74 GB/s)"),
        (100_000_000, 1.0, "100.0 MB in 1.0 s (0.10 GB/s)"),
        (99_900_000, 1.0, "99.9 MB in 1.0 s (99.9 MB/s)"),
        (1_200_000, 0.3, "1.2 MB in 0.3 s (4.0 MB/s)"),
    ],
)


@RATES
def test_a_conversion_below_a_tenth_of_a_gigabyte_each_second_tells_megabytes(
    n_bytes, seconds, shown
):
    described = {
        "output_dir": "out", "files": ["model.safetensors"], "tensor_bytes": n_bytes,
        "kept_bytes": 0, "seconds": seconds, "peak_rss_bytes": 61_300_000, "cast": None,
        "dropped": [], "notes": [], "already_converted": False,
    }  # fmt: skip
    assert summary_line(described) == f"wrote out: {shown}, peak memory 61.3 MB"


@RATES
def test_a_verification_tells_its_rate_in_the_same_way(n_bytes, seconds, shown):
    report = VerifyReport(
        output_dir=Path("out"), against="source", n_tensors=30, n_bytes=n_bytes, problems=()
    )
    size, rest = shown.split(" in ")
    (line,) = verify_lines(report, seconds)
    assert line == f"out equals the checkpoint: 30 tensors, {size} read in {rest}"
