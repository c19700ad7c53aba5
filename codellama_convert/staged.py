"""Own what an earlier run has left staged: whose it is, whether it is whole, how it goes away."""

from __future__ import annotations

import os
import shutil
import stat
import zlib
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from codellama_convert.errors import OutputError, shown
from codellama_convert.faults import step
from codellama_convert.files import aligned_buffer, first_line
from codellama_convert.folders import names_a_folder, names_in, sync_folder
from codellama_convert.input_file import InputFile
from codellama_convert.interrupt import Look
from codellama_convert.journal import JOURNAL_NAME, Journal, differences, read_journal
from codellama_convert.journal_values import FileSum, SealedFile

STAGING_NAME = ".codellama-convert.partial"
_PIECE_BYTES = 1 << 20


def read_staged(staging: Path, *, restart: bool) -> Journal | None:
    """Read what an earlier run has left.

    Args:
        staging: The staging folder; it need not exist.
        restart: Whether it is dropped anyhow: a journal that cannot be read says nothing then.

    Returns:
        What its journal says, or None where there is none.

    Raises:
        OutputError: If the folder is not ours, or its journal cannot be read.
    """
    try:
        is_folder = stat.S_ISDIR(staging.lstat().st_mode)
    except FileNotFoundError:
        return None
    if not is_folder:  # a link would lead us to delete and to write somewhere else
        raise OutputError("is not a folder", path=staging, hint="remove it")
    try:
        return read_journal(staging / JOURNAL_NAME)
    except OutputError:
        if restart:
            return None
        raise


def refuse_other_work(
    staging: Path, found: Journal, identity: Mapping[str, Any], names: Collection[str]
) -> None:
    """Refuse to resume what is not of this conversion.

    Args:
        staging: The staging folder.
        found: What its journal says.
        identity: The inputs and options of the conversion that is to be done.
        names: The files that it writes.

    Raises:
        OutputError: If either differs.
    """
    if found.identity != identity:
        named = "; ".join(differences(found.identity, identity))
        raise OutputError(
            f"holds staged work of another conversion: {named}",
            path=staging.parent,
            hint="give the same options to resume it, or --restart to drop it",
        )
    others = sorted({*found.sealed, *found.publishing}.difference(names))
    if others:
        raise OutputError(
            f"names {shown(others[0])}, which this conversion does not write",
            path=staging / JOURNAL_NAME,
            hint="--restart drops the staged work",
        )


def kept_names(staging: Path, sealed: Mapping[str, SealedFile]) -> set[str]:
    """Name the staged files of the recorded size: their space is taken already."""
    return {
        name
        for name, one in sealed.items()
        if (status := _status(staging / name)) is not None and status.st_size == one.n_bytes
    }


def dropped_bytes(staging: Path, kept: Collection[str]) -> int:
    """Tell what the disk gets back when all staged files but some are dropped."""
    if not names_a_folder(staging):
        return 0
    dropped = (_status(staging / name) for name in names_in(staging).difference(kept))
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


def find_moved(staging: Path, folder: Path, sums: Mapping[str, FileSum], look: Look) -> set[str]:
    """Find what an earlier run has published: it is staged no more, and in the folder as recorded.

    Args:
        staging: Where the files stood.
        folder: Where they went.
        sums: What was to be published, by name; none leads out of the folder.
        look: Called at each piece that is read.

    Returns:
        Their names. Another file of such a name, an older model's or a damaged one, is not ours.

    Raises:
        OutputError: If a folder cannot be listed.
    """
    away = set(sums).intersection(names_in(folder)) - names_in(staging)
    buffer = aligned_buffer(_PIECE_BYTES)
    moved = set()
    for name in sorted(away):
        with suppress(OSError, OutputError):
            if is_whole(folder / name, b"", sums[name], buffer, look):
                moved.add(name)
    return moved


def is_whole(
    path: Path, header: bytes, wanted: SealedFile | FileSum, buffer: memoryview, look: Look
) -> bool:
    """Tell whether a file has the size, the header and the bytes of its journal line.

    Args:
        path: The file.
        header: The bytes that it must begin with.
        wanted: Its journal line.
        buffer: From `aligned_buffer`, to read into.
        look: Called at each piece.

    Raises:
        OutputError: If it cannot be read.
    """
    if path.is_symlink():  # it would be published as one
        return False
    crc = 0
    with InputFile(path, io_mode="auto", error=OutputError) as staged:
        if staged.n_bytes != wanted.n_bytes or staged.n_bytes < len(header):
            return False
        if staged.read_exact(0, len(header)) != header:
            return False
        for piece in staged.read_pieces(buffer):
            look()
            crc = zlib.crc32(piece, crc)
    return crc == wanted.crc32


def clear_staging(staging: Path) -> None:
    """Remove what is left when all is published, the journal last: it can tell what happened.

    What cannot be removed stays: the model is whole, and the same command tries again.
    """
    with suppress(OSError):
        for entry in staging.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != JOURNAL_NAME:
                entry.unlink()
        step("staging emptied")
        (staging / JOURNAL_NAME).unlink(missing_ok=True)
        staging.rmdir()


def drop_parts(staging: Path) -> None:
    """Remove what is not whole, and its space with it.

    Raises:
        OutputError: If one cannot be removed.
    """
    _remove(staging, (name for name in names_in(staging) if name.endswith(".part")))


def drop_all_but(staging: Path, names: Collection[str]) -> None:
    """Remove what is written again anyhow, and what somebody else put there.

    A loader or `verify` would take an index that is not of this run for its own.

    Args:
        staging: The staging folder.
        names: What stays beside the journal.

    Raises:
        OutputError: If something cannot be removed.
    """
    _remove(staging, names_in(staging).difference(names, (JOURNAL_NAME,)))


def _remove(staging: Path, names: Iterable[str]) -> None:
    for name in sorted(names):
        path = staging / name
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError as problem:
            raise OutputError(f"cannot remove: {first_line(problem)}", path=path) from problem


def drop_staging(staging: Path) -> None:
    """Remove staged work that is not wanted, the journal first: what it says holds no longer.

    Raises:
        OutputError: If something of it cannot be removed.
    """
    if not os.path.lexists(staging):
        return
    journal = staging / JOURNAL_NAME
    try:
        if not journal.is_dir():
            journal.unlink(missing_ok=True)
            sync_folder(staging)
        shutil.rmtree(staging)
    except OSError as problem:
        raise OutputError(
            f"cannot remove the staged work: {first_line(problem)}", path=staging
        ) from problem
