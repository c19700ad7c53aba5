"""What happens between two runs: to staged files, the journal, moved files and the source."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults.differential.reference import INDEX, SINGLE
from tests.faults.differential.sources import OnDisk, draw_params
from tests.faults.differential.tokenizers import draw_tokenizer
from tests.outputs import LOCK, STAGING

_JOURNAL = "journal.jsonl"
Damage = Callable[[random.Random], str]


@dataclass(frozen=True)
class Place:
    """What may be damaged.

    Attributes:
        folder: The source's.
        on_disk: What it holds; kept up to date.
        target: The output folder.
        mtime_ns: Of every file of the source, damaged or not.
        ours: Names that a run may have moved into the output folder.
    """

    folder: Path
    on_disk: OnDisk
    target: Path
    mtime_ns: int
    ours: frozenset[str]

    def something(self, rng: random.Random) -> str:
        """Damage something of what lies there now, and say what."""
        weights, damages = zip(*self._choices(), strict=True)
        damage: Damage = rng.choices(damages, weights)[0]
        return damage(rng)

    def _choices(self) -> Iterator[tuple[int, Damage]]:
        """List what can be done, and how often relative to each other."""
        yield 3, self._other_source
        staging = self.target / STAGING
        if not staging.is_dir():
            return
        staged = _files(staging)
        weights = [path for path in staged if path.suffix == ".safetensors"]
        if weights:
            yield 3, lambda rng: self._spoil_file(rng.choice(weights), rng)
            yield 1, lambda rng: self._spoil_file(weights[-1], rng)
            yield 1, lambda rng: _swap(weights, rng)
        others = [path for path in staged if path not in weights and path.name != _JOURNAL]
        if others:
            yield 1, lambda rng: self._spoil_file(rng.choice(others), rng)
        if (staging / _JOURNAL).is_file():
            yield 2, lambda rng: _spoil_journal(staging / _JOURNAL, rng)
            yield 1, lambda rng: _stray(staging, rng)
            moved = [path for path in _files(self.target) if path.name in self.ours]
            if moved:
                yield 3, lambda rng: self._spoil_file(rng.choice(moved), rng)

    def write(self, number: int | None = None) -> None:
        """Write the source, or one of its ranks, as `on_disk` says."""
        self.folder.mkdir(exist_ok=True)
        for n, (name, raw) in enumerate(self.on_disk.files()):
            if number in (None, n):
                (self.folder / name).write_bytes(raw)
                os.utime(self.folder / name, ns=(self.mtime_ns, self.mtime_ns))

    def _other_source(self, rng: random.Random) -> str:
        kind = rng.randrange(8)
        if kind == 0:
            return self._other_params(rng)
        if kind == 1 and self.on_disk.tokenizer is not None:
            self.on_disk.tokenizer = draw_tokenizer(rng, self.on_disk.checkpoint.shape.vocab)
            self.write()
            return "tokenizer.model is another of as many pieces"
        number = rng.randrange(len(self.on_disk.ranks))
        if kind <= 4:
            return self._flip_source(number, rng)
        twin = self.on_disk.checkpoint.twins[number]
        if self.on_disk.ranks[number] is twin:
            twin = self.on_disk.checkpoint.ranks[number]
        self.on_disk.ranks[number], self.on_disk.raw[number] = twin, twin.raw
        self.write(number)
        return f"{twin.name} is another model's rank of {len(twin.raw)} bytes"

    def _other_params(self, rng: random.Random) -> str:
        raw = draw_params(rng, self.on_disk.checkpoint.shape)
        if rng.random() < 0.2:
            raw = raw[: len(raw) // 2]
        self.on_disk.params = raw
        self.write()
        return f"params.json is {raw!r}"

    def _flip_source(self, number: int, rng: random.Random) -> str:
        rank = self.on_disk.ranks[number]
        start, end = rng.choice(rank.records)
        if rank.summed and rng.random() < 0.2:
            start, end = 0, len(rank.raw)
        raw = bytearray(self.on_disk.raw[number])
        at, bit = rng.randrange(start, end), rng.randrange(8)
        raw[at] ^= 1 << bit
        self.on_disk.raw[number] = bytes(raw)
        self.write(number)
        return f"{rank.name}: bit {bit} of byte {at} flipped"

    def _spoil_file(self, path: Path, rng: random.Random) -> str:
        raw = path.read_bytes()
        kind = rng.choice(("flip", "flip", "flip", "cut", "longer", "gone", "link", "empty"))
        what = f"{path.parent.name}/{path.name}"
        if kind == "flip" and raw:
            at, bit = rng.randrange(len(raw)), rng.randrange(8)
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :])
            return f"{what}: bit {bit} of byte {at} of {len(raw)} flipped"
        path.unlink()
        if kind == "link":
            aside = self.folder.parent / f"aside-{path.name}"
            aside.write_bytes(raw)
            path.symlink_to(aside)
            return f"{what} is a link to a file of the same bytes"
        if kind != "gone":
            cut = rng.randrange(len(raw) + 1) if kind == "cut" else 0
            path.write_bytes(raw + b"\0" if kind == "longer" else raw[:cut])
            return f"{what} has {path.stat().st_size} bytes instead of {len(raw)}"
        return f"{what} is gone"

    def heal(self) -> str:
        """Put the checkpoint back as it was first written."""
        vars(self.on_disk).update(vars(OnDisk.whole(self.on_disk.checkpoint)))
        self.write()
        return "the source is intact again"


def _files(folder: Path) -> list[Path]:
    """List files; not the lock, nor what is not whole: its name is another one in each run."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.name != LOCK and path.suffix != ".part"
    )


def _swap(weights: list[Path], rng: random.Random) -> str:
    one, other = rng.choice(weights), rng.choice(weights)
    raw, other_raw = one.read_bytes(), other.read_bytes()
    one.write_bytes(other_raw)
    other.write_bytes(raw)
    return f"staged {one.name} and {other.name} have changed places"


def _spoil_journal(path: Path, rng: random.Random) -> str:
    raw = path.read_bytes()
    lines = raw.splitlines(keepends=True)
    kind = rng.choice(("cut", "cut lines", "flip", "lose", "twice", "gone"))
    number = rng.randrange(len(lines)) if lines else 0
    if kind == "gone" or not lines:
        path.unlink()
        return "the journal is gone"
    if kind == "cut":
        raw = raw[: rng.randrange(len(raw))]
    elif kind == "flip":
        at = rng.randrange(len(raw))
        raw = raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :]
    elif kind == "cut lines":
        raw = b"".join(lines[:number])
    elif kind == "lose":
        raw = b"".join(lines[:number] + lines[number + 1 :])
    else:
        raw = b"".join(lines[:number] + [lines[number]] * 2 + lines[number + 1 :])
    path.write_bytes(raw)
    return f"the journal of {len(lines)} lines: {kind}, at line {number + 1}"


def _stray(staging: Path, rng: random.Random) -> str:
    name = rng.choice(("notes.txt", f"{SINGLE}.0123abcd.part", "config.json.part", "folder", INDEX))
    path = staging / name
    if name == "folder":
        path.mkdir(exist_ok=True)
        (path / "inside").write_bytes(b"x")
    elif not path.exists():
        path.write_bytes(b"not of this run")
    return f"somebody put {name} into the staging folder"
