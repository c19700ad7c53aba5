"""Own what a verification found, and the words for a value that differs."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from codellama_convert.errors import ConvertError, VerifyError, one_line, shown
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
        against: "source"; "record" where the output's own conversion.json was used; "ranks" where
            the weights alone were compared.
        n_tensors: Tensors compared.
        n_bytes: Bytes read, of both sides.
        problems: One line each, the first ones; empty where everything is right.
        notes: What was not compared, or not as it is.
    """

    output_dir: Path
    against: str
    n_tensors: int
    n_bytes: int
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        text: What, in one line of bounded length.
        files: Names of the output's files that it is about.
    """

    text: str
    files: frozenset[str]


@dataclass(slots=True)
class Problems:
    """Problems as they are found, from several threads; the first ones are kept."""

    _kept: list[Problem] = field(default_factory=list)
    _n_more: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, what: str, *, file: str | None = None, about: Collection[str] = ()) -> None:
        """Take one, as one line of bounded length, whatever names it quotes.

        Args:
            what: What is wrong.
            file: Name of the file that it is wrong with; the line begins with it.
            about: Names of other files that it is about too.
        """
        line = one_line(what if file is None else f"{file}: {what}")
        files = about if file is None else (file, *about)
        if len(line) > _MAX_PROBLEM_LENGTH:
            line = f"{line[:_MAX_PROBLEM_LENGTH]}..."
        with self._lock:
            if line in (known.text for known in self._kept):  # two checks met the same missing file
                return
            if len(self._kept) < _MAX_PROBLEMS:
                self._kept.append(Problem(line, frozenset(files)))
            else:
                self._n_more += 1

    def add_error(self, problem: ConvertError) -> None:
        """Take what ended a check, with the whole path of the file that it is about."""
        self.add(str(problem), about=() if problem.path is None else [PurePath(problem.path).name])

    def add_differences(
        self, file: str, found: Mapping[str, Any], expected: Mapping[str, Any], *, part: str = ""
    ) -> bool:
        """Compare a JSON object of the output, key by key, with what it should be.

        Args:
            file: Name of the file.
            found: What it holds.
            expected: What it should hold: these keys, of these types, with these values.
            part: The key of the object in it, such as "model.options"; empty for the whole file.

        Returns:
            Whether anything differs.
        """
        wrong = False
        for key in sorted({*found, *expected}):
            if key not in expected:
                what = f"has {key} {_as_json(found[key])}, which does not belong there"
            elif key not in found:
                what = f"{key} is missing, expected {_as_json(expected[key])}"
            elif identical(found[key], expected[key]):
                continue
            elif _are_alike(found[key], expected[key]):
                inside = f"{part}.{key}" if part else key
                wrong |= self.add_differences(file, found[key], expected[key], part=inside)
                continue
            else:
                what = f"{key} is {_as_json(found[key])}, expected {_as_json(expected[key])}"
            wrong = True
            self.add(f"{part}: {what}" if part else what, file=file)
        return wrong

    def add_spelling(self, file: str, found: bytes, expected: Iterable[bytes]) -> None:
        """Say where a file of the right values is spelled otherwise than it was written."""
        other = first_other_byte(found, expected)
        if other is not None:
            self.add(f"{SPELLED_OTHERWISE}: {other}", file=file)

    def are_about(self, file: str) -> bool:
        """Return whether one of those that are kept is about a file of that name."""
        with self._lock:
            return any(file in problem.files for problem in self._kept)

    def lines(self) -> tuple[str, ...]:
        """Return them, and how many more there were."""
        more = (f"... and {self._n_more} more",) if self._n_more else ()
        return (*(problem.text for problem in self._kept), *more)


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
        problems.add_error(problem)
        return
    if not problems.add_differences(path.name, found, expected):
        problems.add_spelling(path.name, raw, [sorted_json(expected)])


def _are_alike(found: object, expected: object) -> bool:
    """Return whether both are objects of the same keys: what differs is inside."""
    return (
        isinstance(found, dict) and isinstance(expected, dict) and found.keys() == expected.keys()
    )


def _as_json(value: object) -> str:
    """Write a value as its file spells it, cut where it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return shown(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
