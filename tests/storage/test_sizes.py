"""Sizes as people write them, and as the program does."""

from __future__ import annotations

import re

import pytest

from codellama_convert.storage.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("1B", 1),
        ("999B", 999),
        ("1000", 1_000),
        ("4096", 4096),
        ("4096B", 4096),
        ("5G", 5_000_000_000),
        ("5g", 5_000_000_000),
        ("200M", 200_000_000),
        ("64k", 64_000),
        ("2T", 2_000_000_000_000),
        ("5Gi", 5_368_709_120),
        ("5GiB", 5_368_709_120),
        ("5e9", 5_000_000_000),
        ("5E+9", 5_000_000_000),
        ("1.5e9", 1_500_000_000),
        ("5e9B", 5_000_000_000),
        ("5e0MB", 5_000_000),
        ("5kb", 5_000),
        ("200MB", 200_000_000),
        ("5GB", 5_000_000_000),
        ("1.5GB", 1_500_000_000),
        (" 5 GB ", 5_000_000_000),
        ("2TB", 2_000_000_000_000),
        ("3KiB", 3_072),
        ("1.5GiB", 1_610_612_736),
        ("1TiB", 1_099_511_627_776),
        ("1.0009765625KiB", 1_025),
        ("0.30000000000000004GB", 300_000_000),  # a part of a byte is left out
        ("1.2345e2MB", 123_450_000),
        ("9007199254740993", 9_007_199_254_740_993),  # not by way of a float
    ],
)
def test_a_size_is_read(text, n_bytes):
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GB",
        "5XB",
        "5 GB GB",
        "-5GB",
        "5.GB",
        ".5GB",
        "5e",
        "e9",
        "5e-3",
        "5e100",
        "5BB",
        "5iB",
        "5 G B",
        "\uff15GB",
    ],
)
def test_what_is_no_size_is_told_how_one_is_written(text):
    with pytest.raises(ValueError, match="is not a size; write it like 5GB, 200MB or 1GiB"):
        parse_size(text)


@pytest.mark.parametrize("text", ["5", "1", "512", "999", "5.5", "5e0", " 5 "])
def test_a_few_bytes_are_asked_back(text):
    """`--max_shard_size 5` was five bytes: each tensor got a file of its own."""
    number = text.strip()
    with pytest.raises(ValueError, match=re.escape(f"{number} bytes? write {number}GB, ")):
        parse_size(text)


@pytest.mark.parametrize("text", ["0", "0GB", "0.0MB", "0.1B"])
def test_a_size_of_nothing_is_refused(text):
    with pytest.raises(ValueError, match=f"'{text}' is not positive"):
        parse_size(text)


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (16_809_984, "16.8 MB"),
        (13_477_093_376, "13.5 GB"),
        (2_000_000_000_000, "2.0 TB"),
    ],
)
def test_a_size_is_written(n_bytes, text):
    assert format_size(n_bytes) == text
