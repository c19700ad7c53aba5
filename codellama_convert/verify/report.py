"""Own what a verification found, and the words for a value that differs."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codellama_convert.errors import VerifyError, one_line, shown
from codellama_convert.formats.strict_json import identical
from codellama_convert.verify.output_files import (
    SPELLED_OTHERWISE,
    first_other_byte,
    parse_json,
    read_small,
    sorted_json,
)

_MAX_PROBLEMS = 20
_MAX_PROBLEM_LENGTH = 600
_MAX_SHOWN = 120


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verification found.

    Attributes:
        output_dir: What was verified.
        against: "source", or "record" where the output's own conversion.json was used.
        n_tensors: Tensors compared.
        n_bytes: Bytes read, of both sides.
        problems: One line each, the first ones; empty where everything is right.
    """

    output_dir: Path
    against: str
    n_tensors: int
    n_bytes: int
    problems: tuple[str, ...]


@dataclass(slots=True)
class Problems:
    """Problems as they are found, from several threads; the first ones are kept."""

    _texts: list[str] = field(default_factory=list)
    _n_more: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, text: str) -> None:
        """Take one, as one line of bounded length, whatever names it quotes."""
        line = one_line(text)
        if len(line) > _MAX_PROBLEM_LENGTH:
            line = f"{line[:_MAX_PROBLEM_LENGTH]}..."
        with self._lock:
            if line in self._texts:  # two checks met the same missing file
                return
            if len(self._texts) < _MAX_PROBLEMS:
                self._texts.append(line)
            else:
                self._n_more += 1

    def add_differences(
        self, name: str, found: Mapping[str, Any], expected: Mapping[str, Any]
    ) -> bool:
        """Compare a JSON object of the output, key by key, with what it should be.

        Args:
            name: Of the file.
            found: What it holds.
            expected: What it should hold: these keys, of these types, with these values.

        Returns:
            Whether anything differs.
        """
        wrong = False
        for key in sorted({*found, *expected}):
            if key not in expected:
                what = f"has {key} {_as_json(found[key])}, which does not belong there"
            elif key not in found:
                what = f"{key} is missing, expected {_as_json(expected[key])}"
            elif not identical(found[key], expected[key]):
                what = f"{key} is {_as_json(found[key])}, expected {_as_json(expected[key])}"
            else:
                continue
            wrong = True
            self.add(f"{name}: {what}")
        return wrong

    def add_spelling(self, name: str, found: bytes, expected: Iterable[bytes]) -> None:
        """Say where a file of the right values is spelled otherwise than it was written."""
        other = first_other_byte(found, expected)
        if other is not None:
            self.add(f"{name}: {SPELLED_OTHERWISE}: {other}")

    def tell_of(self, name: str) -> bool:
        """Return whether one of them is about a file of that name."""
        whole = re.compile(rf"(?<![\w.-]){re.escape(name)}\b")
        with self._lock:
            return any(whole.search(text) for text in self._texts)

    def lines(self) -> tuple[str, ...]:
        """Return them, and how many more there were."""
        more = (f"... and {self._n_more} more",) if self._n_more else ()
        return (*self._texts, *more)


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


def _as_json(value: object) -> str:
    """Write a value as its file spells it, cut where it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return shown(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
