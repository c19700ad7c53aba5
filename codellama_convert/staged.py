"""Own what an earlier run has left staged: whose it is, whether it is whole, how it goes away."""

from __future__ import annotations

import os
import shutil
import stat
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from codellama_convert.errors import OutputError
from codellama_convert.faults import step
from codellama_convert.files import first_line
from codellama_convert.folders import names_in, sync_folder
from codellama_convert.input_file import InputFile
from codellama_convert.interrupt import Look
from codellama_convert.journal import (
    JOURNAL_NAME,
    Journal,
    SealedFile,
    differences,
    read_journal,
)


def find_staged_work(
    staging: Path, identity: Mapping[str, Any], *, restart: bool, replace: bool
) -> Journal | None:
    """Find staged work to go on with.

    Args:
        staging: The staging folder; it need not exist.
        identity: The inputs and options of the conversion that is to be done.
        restart: Whether staged work is not wanted.
        replace: Whether that of another conversion may be dropped.

    Returns:
        What it is, or None where there is none, or none that is wanted.

    Raises:
        OutputError: If it is not ours, cannot be read, or is of another conversion.
    """
    try:
        is_folder = stat.S_ISDIR(staging.lstat().st_mode)
    except FileNotFoundError:
        return None
    if not is_folder:  # a link would lead us to delete and to write somewhere else
        raise OutputError("is not a folder", path=staging, hint="remove it")
    found = None if restart else read_journal(staging / JOURNAL_NAME)
    if found is None or found.identity == identity:
        return found
    if replace:
        return None
    named = "; ".join(differences(found.identity, identity))
    raise OutputError(
        f"holds staged work of another conversion: {named}",
        path=staging.parent,
        hint="give the same options to resume it, or --restart to drop it",
    )


def is_whole(path: Path, header: bytes, sealed: SealedFile, buffer: memoryview, look: Look) -> bool:
    """Tell whether a staged file has the size, the header and the bytes of its journal line.

    Args:
        path: The file.
        header: The bytes that it must begin with.
        sealed: Its journal line.
        buffer: From `aligned_buffer`, to read into.
        look: Called at each piece.

    Raises:
        OutputError: If it cannot be read.
    """
    if path.is_symlink():  # it would be published as one
        return False
    crc = 0
    with InputFile(path, io_mode="auto", error=OutputError) as staged:
        if staged.n_bytes != sealed.n_bytes or staged.n_bytes < len(header):
            return False
        if staged.read_exact(0, len(header)) != header:
            return False
        for piece in staged.read_pieces(buffer):
            look()
            crc = zlib.crc32(piece, crc)
    return crc == sealed.crc32


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
    for name in sorted(names_in(staging)):
        if name.endswith(".part"):
            try:
                (staging / name).unlink()
            except OSError as problem:
                raise OutputError(
                    f"cannot remove: {first_line(problem)}", path=staging / name
                ) from problem


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
