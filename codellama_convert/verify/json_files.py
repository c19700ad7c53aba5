"""Own the check of a small JSON file of an output: every key, value and byte of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codellama_convert.errors import VerifyError
from codellama_convert.verify.output_files import parse_json, read_small, sorted_json
from codellama_convert.verify.report import Problems


def check_json(path: Path, expected: Mapping[str, Any], problems: Problems) -> None:
    """Compare a file with what should stand in it.

    A value that differs is reported with both values, else the first byte that differs: a byte
    order mark, other white space, another order.

    Args:
        path: The file.
        expected: What it should hold.
        problems: Gets what differs.
    """
    try:
        raw = read_small(path)
        found = parse_json(raw, path)
    except VerifyError as problem:
        problems.add(str(problem))
        return
    if not problems.add_differences(path.name, found, expected):
        problems.add_spelling(path.name, raw, [sorted_json(expected)])
