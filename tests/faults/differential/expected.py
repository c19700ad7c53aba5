"""What a folder must hold, and how it is compared: to the byte, by value, or by its words."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from tests.faults.differential.tokenizers import Tokenizer

RECORD, CARD = "conversion.json", "README.md"


@dataclass(frozen=True)
class Expected:
    """What a run must leave.

    Attributes:
        exact: Files to the byte.
        values: JSON files by their values; conversion.json without sums of files and notes.
        words: Text files by what they must contain.
        notes: What each note must contain.
        refusal: Why it must be refused, or None.
        sources: Each rank's possible CRC-32: of the whole file, and of what lies there now.
        report: What `--json` must print, beside times and notes.
        tokenizer: Renders a chat template.
        sha256: Whether the record has digests.
    """

    exact: Mapping[str, bytes] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: Sequence[Sequence[str]] = ()
    refusal: str | None = None
    sources: Mapping[str, set[str]] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    sha256: bool = False

    @property
    def names(self) -> set[str]:
        return {*self.exact, *self.values, *self.words}

    def problems(self, folder: Path) -> Iterator[str]:
        """Compare a folder; files of other names are not looked at."""
        missing = sorted(name for name in self.names if not (folder / name).is_file())
        if missing:
            yield f"{missing[0]} is missing"
            return
        if any((folder / name).is_symlink() for name in self.names):
            yield "a file is a link"
        for name, raw in self.exact.items():
            if (folder / name).read_bytes() != raw:
                yield f"{name} has other bytes ({_where(raw, (folder / name).read_bytes())})"
        for name, wanted in self.values.items():
            yield from self._value_problems(folder, name, wanted)
        for name, words in self.words.items():
            text = (folder / name).read_text(encoding="utf-8", errors="replace")
            yield from (f"{name} does not say {word!r}" for word in words if word not in text)

    def report_problems(self, printed: str) -> Iterator[str]:
        """Compare what `--json` printed."""
        found = _parse(printed.encode())
        wanted = {"files": sorted(self.names), **self.report}
        yield from _differences(wanted, {key: found.get(key) for key in wanted}, "--json")

    def _value_problems(self, folder: Path, name: str, wanted: Any) -> Iterator[str]:
        """Compare a JSON file's values; one that is damaged may hold anything."""
        try:
            found = _parse((folder / name).read_bytes())
            yield from self._differences(folder, name, wanted, found)
        except (ValueError, AttributeError, TypeError, jinja2.TemplateError) as problem:
            yield f"{name}: {problem}"

    def _differences(self, folder: Path, name: str, wanted: Any, found: Any) -> Iterator[str]:
        if name == RECORD:
            yield from _own_sum_problems((folder / name).read_bytes(), found.pop("crc32", None))
            yield from self._note_problems(found.pop("notes", None))
            for rank, sums in self.sources.items():
                said = found.get("source", {}).get(rank, {})
                if said.pop("crc32", None) not in sums:
                    yield f"{name}: the sum of {rank} is none of {sorted(sums)}"
            wanted = wanted | {"files": self._sums_of(folder)}
        elif name == "tokenizer_config.json" and "chat_template" in found:
            assert self.tokenizer is not None
            found["chat_template"] = self.tokenizer.rendered(found["chat_template"])
        yield from (f"{name}: {problem}" for problem in _differences(wanted, found))

    def _sums_of(self, folder: Path) -> dict[str, Any]:
        """Describe every file but the record and the card, as the folder has it."""
        files = {}
        for name in self.names - {RECORD, CARD}:
            raw = (folder / name).read_bytes()
            files[name] = {"size": len(raw), "crc32": f"{zlib.crc32(raw):08x}"}
            if self.sha256:
                files[name]["sha256"] = hashlib.sha256(raw).hexdigest()
        return files

    def _note_problems(self, found: Any) -> Iterator[str]:
        left = list(found) if isinstance(found, list) else []
        for facts in self.notes:
            note = next((n for n in left if all(fact in n for fact in facts)), None)
            if note is None:
                yield f"{RECORD}: no note says {facts}, but {found}"
            else:
                left.remove(note)
        if left:
            yield f"{RECORD}: the note {left[0]!r} has no reason"


def _own_sum_problems(raw: bytes, said: Any) -> Iterator[str]:
    """Check the record's CRC-32 of itself, which is taken with zeros in its place."""
    before, line, after = raw.partition(f'\n  "crc32": "{said}",\n'.encode())
    zeroed = before + b'\n  "crc32": "00000000",\n' + after
    if not line or said != f"{zlib.crc32(zeroed):08x}":
        yield f"{RECORD}: its own sum is {said}"


def _where(wanted: bytes, found: bytes) -> str:
    if len(wanted) != len(found):
        return f"{len(found)} of them, not {len(wanted)}"
    at = next(n for n, (a, b) in enumerate(zip(wanted, found, strict=True)) if a != b)
    return f"first at {at}"


def _parse(raw: bytes) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a key stands there twice")
        return dict(pairs)

    return json.loads(raw.decode("utf-8"), object_pairs_hook=once)


def _differences(wanted: Any, found: Any, at: str = "") -> Iterator[str]:
    """Name the values that differ; 1 is not 1.0, nor True."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in sorted({*wanted, *found}):
            if key not in found or key not in wanted:
                yield f"{at}/{key} is {'missing' if key in wanted else 'one too many'}"
            else:
                yield from _differences(wanted[key], found[key], f"{at}/{key}")
    elif json.dumps(wanted) != json.dumps(found):
        yield f"{at} is {str(found)[:200]}, not {str(wanted)[:200]}"
