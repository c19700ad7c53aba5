"""Own what an earlier run has left staged: whose it is, whether it is whole, how it goes away."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from codellama_convert.errors import OutputError, shown
from codellama_convert.staging.crash_points import step
from codellama_convert.staging.record_values import FileSum, SealedFile
from codellama_convert.staging.records import (
    JOURNAL_NAME,
    Journal,
    differences,
    is_of_other_inputs,
    read_journal,
)
from codellama_convert.staging.task_journals import join_journals
from codellama_convert.storage.blocks import first_line
from codellama_convert.storage.buffers import aligned_buffer
from codellama_convert.storage.checksums import crc32
from codellama_convert.storage.held_folder import HeldFolder
from codellama_convert.storage.input_file import InputFile
from codellama_convert.storage.watch import Watch

STAGING_NAME = ".codellama-convert.partial"
PART_SUFFIX = ".part"  # of what is not whole
_PIECE_BYTES = 1 << 20


def hold_staging(folder: HeldFolder) -> HeldFolder | None:
    """Open the staging folder.

    Args:
        folder: The output folder.

    Returns:
        It, or None where there is none.

    Raises:
        OutputError: If it is not ours: a link would lead us to delete and to write somewhere else,
            and what another user has staged is not what we have converted.
    """
    path = folder.path / STAGING_NAME
    try:
        if not folder.is_folder(STAGING_NAME):
            folder.status(STAGING_NAME)
            raise OutputError("is not a folder", path=path, hint="remove it")
        folder.refuse_another_owner_of(STAGING_NAME)
        staging = HeldFolder(path, within=folder)
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise OutputError(f"cannot open: {first_line(problem)}", path=path) from problem
    try:
        staging.refuse_another_owner()
    except BaseException:
        staging.close()
        raise
    return staging


def look_at_staged(folder: Path, *, restart: bool = False) -> Journal | None:
    """Read what an earlier run has left, and leave all as it is.

    Args:
        folder: The output folder; it need not exist.
        restart: As of `read_staged`.

    Returns:
        What its journal says, or None where there is none.

    Raises:
        OutputError: If it is not ours, or cannot be read.
    """
    try:
        held = HeldFolder(folder, is_looked_at=True)
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise OutputError(f"cannot open: {first_line(problem)}", path=folder) from problem
    with held:
        staging = hold_staging(held)
        if staging is None:
            return None
        with staging:
            return read_staged(staging, restart=restart)


def begin_staging(folder: HeldFolder) -> HeldFolder:
    """Make the staging folder.

    Args:
        folder: The output folder.

    Raises:
        OSError: If the system says so.
        OutputError: If somebody put another one in its place.
    """
    folder.make_folder(STAGING_NAME)
    staging = hold_staging(folder)
    if staging is None:
        raise OutputError("was removed", path=folder.path / STAGING_NAME)
    return staging


def read_staged(staging: HeldFolder, *, restart: bool) -> Journal | None:
    """Read what an earlier run has left.

    Args:
        staging: The staging folder.
        restart: Whether it is dropped anyhow: a journal that cannot be read says nothing then.

    Returns:
        What its journal says, or None where there is none.

    Raises:
        OutputError: If its journal cannot be read.
    """
    try:
        return join_journals(staging, read_journal(staging))
    except OutputError:
        if restart:
            return None
        raise


def refuse_other_work(
    staging: Path,
    found: Journal,
    fingerprint: Mapping[str, Any],
    names: Collection[str],
    *,
    discard: str = "with --restart",
) -> None:
    """Refuse to resume what is not of this conversion.

    Args:
        staging: The staging folder.
        found: What its journal says.
        fingerprint: The inputs and options of the conversion that is to be done.
        names: The files that it writes.
        discard: How the user discards it.

    Raises:
        OutputError: If either differs.
    """
    if found.fingerprint != fingerprint:
        named = "; ".join(differences(found.fingerprint, fingerprint))
        is_other = is_of_other_inputs(found.fingerprint, fingerprint)
        raise OutputError(
            f"holds staged work of another {'checkpoint' if is_other else 'conversion'}: {named}",
            path=staging.parent,
            hint=f"name another place with --output_dir, or discard the unfinished work {discard}"
            if is_other
            else f"use the same options to resume it, or discard it {discard}",
        )
    others = sorted({*found.sealed, *found.publishing}.difference(names))
    if others:
        raise OutputError(
            f"names {shown(others[0])}, which this conversion does not write",
            path=staging / JOURNAL_NAME,
            hint=f"discard the staged work {discard}",
        )


def find_moved(
    staging: HeldFolder, folder: HeldFolder, sums: Mapping[str, FileSum], watch: Watch
) -> set[str]:
    """Find what an earlier run has published: it is staged no more, and in the folder as recorded.

    Args:
        staging: Where the files stood.
        folder: Where they went.
        sums: What was to be published, by name; none leads out of the folder.
        watch: May stop the reading.

    Returns:
        Their names. Another file of such a name, an older model's or a damaged one, is not ours.

    Raises:
        OutputError: If a folder cannot be listed.
    """
    away = set(sums).intersection(folder.names()) - staging.names()
    buffer = aligned_buffer(_PIECE_BYTES)
    moved = set()
    for name in sorted(away):
        with suppress(OSError, OutputError):
            if is_whole(folder, name, sums[name], buffer=buffer, check=watch.check):
                moved.add(name)
    return moved


def is_whole(
    folder: HeldFolder,
    name: str,
    wanted: SealedFile | FileSum,
    *,
    header: bytes = b"",
    buffer: memoryview,
    check: Callable[[], None],
) -> bool:
    """Return whether a file has the size, the header and the bytes of its journal line.

    Args:
        folder: Where it is.
        name: Its name there.
        wanted: Its journal line.
        header: The bytes that it must begin with.
        buffer: From `aligned_buffer`, to read into.
        check: Called before each piece; what it raises ends the reading.

    Raises:
        OutputError: If it cannot be read, or is not a file of ours.
    """
    crc = 0
    with InputFile(
        folder.path / name, io_mode="auto", error=OutputError, opener=folder.open_path
    ) as staged:
        if staged.n_bytes != wanted.n_bytes or staged.n_bytes < len(header):
            return False
        if staged.read_exact(0, len(header)) != header:
            return False
        for piece in staged.read_pieces(buffer):
            check()
            crc = crc32(piece, crc)
    return crc == wanted.crc32


def clear_staging(folder: HeldFolder, staging: HeldFolder) -> None:
    """Remove what is left when all is published, the journal last: it can tell what happened.

    What cannot be removed stays: the model is whole, and the same command tries again.
    """
    with suppress(OSError, OutputError):
        for name in staging.names() - {JOURNAL_NAME}:
            staging.remove(name)
        step("staging emptied")
        staging.remove(JOURNAL_NAME)
        folder.remove_folder(STAGING_NAME)


def drop_parts(staging: HeldFolder) -> None:
    """Remove what is not whole, and its space with it.

    Raises:
        OutputError: If one cannot be removed.
    """
    drop_entries(staging, (name for name in staging.names() if name.endswith(PART_SUFFIX)))


def drop_all_but(staging: HeldFolder, names: Collection[str]) -> None:
    """Remove what is written again anyhow, and what somebody else put there.

    A loader or `verify` would take an index that is not of this run for its own.

    Args:
        staging: The staging folder.
        names: What stays beside the journal.

    Raises:
        OutputError: If something cannot be removed.
    """
    drop_entries(staging, staging.names().difference(names, (JOURNAL_NAME,)))


def drop_entries(staging: HeldFolder, names: Iterable[str]) -> None:
    """Remove what stands under some names; a folder with what is in it.

    Raises:
        OutputError: If one cannot be removed.
    """
    for name in sorted(names):
        try:
            staging.remove(name)
        except OSError as problem:  # noqa: PERF203 - a handful of names
            raise OutputError(
                f"cannot remove: {first_line(problem)}", path=staging.path / name
            ) from problem


def drop_staging(folder: HeldFolder, staging: HeldFolder) -> None:
    """Remove staged work that is not wanted, the journal first, because it no longer holds.

    Raises:
        OutputError: If something of it cannot be removed.
    """
    try:
        staging.remove(JOURNAL_NAME)
        staging.sync()
        for name in staging.names():
            staging.remove(name)
        folder.remove_folder(STAGING_NAME)
    except OSError as problem:
        raise OutputError(
            f"cannot remove the staged work: {first_line(problem)}", path=staging.path
        ) from problem
