"""Own the question whether there is space for an output, what is staged already included."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from codellama_convert.errors import OutputError
from codellama_convert.staging.record_values import SealedFile
from codellama_convert.staging.records import Journal
from codellama_convert.staging.staged import STAGING_NAME
from codellama_convert.storage.folders import block_bytes, free_bytes, names_a_folder, names_in
from codellama_convert.storage.sizes import format_size

_OWN_BLOCKS = 3  # the output folder, the staging folder, and the journal
ANOTHER_PLACE = "name another place with --output_dir"
NOT_THE_DISK = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # no other place would help


@dataclass(frozen=True, slots=True)
class Space:
    """What an output needs of the disk and what there is.

    Attributes:
        needed: Bytes that what is still to be written takes, in whole blocks.
        staged: Bytes of the files that an earlier run has left whole.
        free: Bytes that its file system has for them, what is staged and not wanted included; None
            where it does not say.
    """

    needed: int
    staged: int
    free: int | None

    @property
    def missing(self) -> int:
        """Bytes that are too few."""
        return 0 if self.free is None else max(0, self.needed - self.free)


def space_for(
    folder: Path, sizes: Mapping[str, int], resumed: Journal | None, moved: Collection[str] = ()
) -> Space:
    """Compare what is to be written with what is free; nothing is touched.

    Args:
        folder: Where it goes; it need not exist.
        sizes: Bytes of each file, by name.
        resumed: What of the staged work is kept: its files are there already.
        moved: Those of them that are in the folder itself.

    Returns:
        Both figures.

    Raises:
        OutputError: If they cannot be looked up.
    """
    staging = folder / STAGING_NAME
    kept = set() if resumed is None else _kept_names(staging, resumed.sealed).union(moved)
    block = block_bytes(folder)
    blocks = [-(-n_bytes // block) for name, n_bytes in sizes.items() if name not in kept]
    needed = (sum(blocks) + _OWN_BLOCKS) * block if any(blocks) else 0
    staged = sum(n_bytes for name, n_bytes in sizes.items() if name in kept)
    free = free_bytes(folder)
    return Space(needed, staged, None if free is None else free + _dropped_bytes(staging, kept))


def refuse_small_disk(folder: Path, space: Space) -> None:
    """Refuse to begin what cannot come to its end; nothing is reserved.

    Raises:
        OutputError: With both figures.
    """
    if space.missing:
        raise OutputError(
            f"needs {_figure(space.needed)} and has {_figure(space.free or 0)} free",
            path=folder,
            hint=f"free some space, or {ANOTHER_PLACE}",
        )


def _figure(n_bytes: int) -> str:
    return f"{format_size(n_bytes)} ({n_bytes:,} bytes)"


def _kept_names(staging: Path, sealed: Mapping[str, SealedFile]) -> set[str]:
    """Name the staged files of the recorded size: their space is taken already."""
    return {
        name
        for name, one in sealed.items()
        if (status := _status(staging / name)) is not None and status.st_size == one.n_bytes
    }


def _dropped_bytes(staging: Path, kept: Collection[str]) -> int:
    """Report what the disk gets back when all staged files but some are dropped."""
    if not names_a_folder(staging):
        return 0
    dropped = (_status(staging / name) for name in sorted(names_in(staging).difference(kept)))
    return sum(_disk_bytes(status) for status in dropped if status is not None)


def _status(path: Path) -> os.stat_result | None:
    """Look at a file itself; None where there is none of its own, that would free its space."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else None


def _disk_bytes(status: os.stat_result) -> int:
    blocks: int | None = getattr(status, "st_blocks", None)  # not on Windows
    return status.st_size if blocks is None else blocks * 512
