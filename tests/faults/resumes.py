"""Own what happens between two runs: files are damaged, and which of them may not be written again."""

from __future__ import annotations

import os
import random
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

from codellama_convert.convert.run import run
from codellama_convert.errors import Interrupted
from codellama_convert.plan.job import Job
from codellama_convert.staging.folder import OutputFolder
from codellama_convert.staging.record_values import SealedFile
from codellama_convert.storage.checksums import SourceSums
from codellama_convert.storage.watch import Watch
from tests.outputs import STAGING, StopAfter, flip_bit, journal_of


def sealed_files(target: Path) -> dict[Path, int]:
    """Find the staged files that have a record and may not go out yet, and the sum in the record."""
    journal = journal_of(target)
    if journal is None or journal.publishing:
        return {}
    return {target / STAGING / name: one.crc32 for name, one in sorted(journal.sealed.items())}


def damage_some(target: Path, rng: random.Random) -> None:
    """Flip a bit of the first, a middle or the last staged file, of some of them, or of none."""
    files = list(sealed_files(target))
    places = {0, len(files) // 2, len(files) - 1} if files else set()
    for place in places:
        if rng.random() < 0.4:
            flip_bit(files[place], rng.randrange(files[place].stat().st_size))


class Kept:
    """The staged files that are whole when it is made: the next run must not write them again."""

    def __init__(self, target: Path, n_together: int = 1) -> None:
        """Note those of an output folder; fewer than are kept together only are not kept."""
        self._target = target
        whole = {
            path.name: path.stat().st_ino
            for path, crc in sealed_files(target).items()
            if zlib.crc32(path.read_bytes()) == crc
        }
        self._inodes = whole if len(whole) >= n_together else {}

    def problems(self) -> Iterator[str]:
        """List those that were written again, once all is published."""
        for name, inode in self._inodes.items():
            if (self._target / name).stat().st_ino != inode:
                yield f"{name} was whole and was written again"


def stop_and_damage(job: Job, target: Path, stops: list[int], rng: random.Random) -> Kept | None:
    """Begin a conversion, stop it after so many looks each time, and damage what it left.

    Returns:
        What must not be written again; None where the conversion came to its end.
    """
    for looks in stops:
        try:
            run(job, target, watch=Watch(stop=StopAfter(looks)))
        except Interrupted:  # noqa: PERF203 - two or three runs
            damage_some(target, rng)
        else:
            return None
    return Kept(target)


def replace_ranks(folder: Path, new: Path) -> None:
    """Put other ranks in place of a checkpoint's, of the same sizes and times."""
    for path in sorted(new.glob("*.pth")):
        status = (folder / path.name).stat()
        assert path.stat().st_size == status.st_size
        shutil.copyfile(path, folder / path.name)
        os.utime(folder / path.name, ns=(status.st_atime_ns, status.st_mtime_ns))


def spoil_the_records() -> None:
    """Plant a mistake: a file's record holds what was read for all files before it, too."""
    note = OutputFolder.note_sealed

    def note_too_much(folder: OutputFolder, sealed: SealedFile) -> None:
        source = sealed.source
        journal = journal_of(folder.path)
        assert journal is not None
        for other in filter(lambda other: other.source, journal.sealed.values()):
            source = [*map(_both, source, other.source)]
        note(folder, replace(sealed, source=source))

    OutputFolder.note_sealed = note_too_much  # type: ignore[method-assign]


def _both(one: SourceSums, other: SourceSums) -> SourceSums:
    names = sorted({*one, *other})
    return {name: sorted({*one.get(name, []), *other.get(name, [])}) for name in names}


@contextmanager
def spoiled_records() -> Iterator[None]:
    """Plant it for a while."""
    with mock.patch.object(OutputFolder, "note_sealed", OutputFolder.note_sealed):
        spoil_the_records()
        yield
