"""Own what is asked of folders and done to them."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from codellama_convert.errors import ConvertError, OutputError
from codellama_convert.storage.blocks import first_line

_NO_SYNC = (errno.EINVAL, errno.ENOTSUP)  # some network mounts
_USUAL_BLOCK = 4096
_LARGEST_BLOCK = 64 << 10


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, if they are missing, and wait until all are on the disk.

    Raises:
        OSError: If one of them cannot be made.
        OutputError: If one of them cannot be saved to disk.
    """
    try:
        folder.mkdir()
    except FileNotFoundError:
        if folder.parent == folder:
            raise
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
    except OSError:
        # For a folder that exists, a system may say that the disk is read-only.
        if not folder.is_dir():
            raise
    # A folder that existed too: the run that made it may have died before this line.
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Wait until a folder's entries are on the disk; a folder that cannot be opened is left alone.

    Raises:
        OutputError: If they cannot be saved.
    """
    try:
        fd = os.open(folder, os.O_RDONLY)
    except PermissionError:  # it may be written and not read, or Windows: nobody can sync it
        return
    except OSError as problem:
        _refuse_unsynced(folder, problem)
        return
    try:
        sync_entries(fd, folder)
    finally:
        os.close(fd)


def sync_entries(fd: int, folder: Path) -> None:
    """Wait until the entries of an open folder are on the disk.

    Args:
        fd: Its descriptor.
        folder: Its path, for messages.

    Raises:
        OutputError: If they cannot be saved.
    """
    try:
        os.fsync(fd)
    except OSError as problem:
        _refuse_unsynced(folder, problem)


def _refuse_unsynced(folder: Path, problem: OSError) -> None:
    if problem.errno not in _NO_SYNC:
        raise OutputError(
            f"cannot save to disk (fsync): {first_line(problem)}", path=folder
        ) from problem


def refuse_inputs(output_dir: Path, input_dir: Path, files: Iterable[Path]) -> None:
    """Refuse to write where the input lies: its files could be replaced.

    Args:
        output_dir: It need not exist.
        input_dir: The checkpoint's own folder.
        files: The input's files, wherever they are.

    Raises:
        OutputError: If one of them, or what it is a link to, is directly in the output folder.
    """
    if _is_same(output_dir, input_dir):
        raise OutputError(
            "the output folder is the input folder",
            path=output_dir,
            hint="name another with --output_dir",
        )
    for file in files:
        real = Path(os.path.realpath(file))
        if _is_same(output_dir, file.parent) or _is_same(output_dir, real.parent):
            raise OutputError(
                f"the output folder holds a file of the input, {file.name!r}",
                path=output_dir,
                hint="name another with --output_dir",
            )


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there, or may not be looked at
        return False


def free_bytes(folder: Path) -> int | None:
    """Report how much space a folder's file system has for this user.

    Args:
        folder: It need not exist yet; the nearest parent that does is asked.

    Returns:
        Bytes, or None where the file system does not say: some network mounts say 0 of everything.

    Raises:
        OutputError: If the folder is below a file, or may not be looked at.
    """
    try:
        usage = shutil.disk_usage(_nearest(folder))
    except OSError as problem:
        raise OutputError(
            f"cannot look up the free space: {first_line(problem)}", path=folder
        ) from problem
    return usage.free if usage.total else None


def block_bytes(folder: Path) -> int:
    """Report the unit in which a file system allots space; like `free_bytes`, it may ask a parent.

    Some network mounts report the size of their transfers instead, up to 1 MB; 4096 is taken then.
    """
    if not hasattr(os, "statvfs"):  # Windows
        return _USUAL_BLOCK
    try:
        n_bytes = os.statvfs(_nearest(folder)).f_frsize
    except OSError:
        return _USUAL_BLOCK
    return n_bytes if 0 < n_bytes <= _LARGEST_BLOCK else _USUAL_BLOCK


def _nearest(folder: Path) -> Path:
    """Find the folder itself, or the nearest parent that exists."""
    here = folder.absolute()
    while not here.exists() and here.parent != here:
        here = here.parent
    return here


def refuse_unwritable(folder: Path) -> None:
    """Look whether a folder could be made or written; nothing is touched.

    Raises:
        OutputError: If it could not.
    """
    here = folder.absolute()
    while not os.path.lexists(here) and here.parent != here:
        here = here.parent
    if not here.is_dir():
        raise OutputError("is not a folder", path=here)
    if not os.access(here, os.W_OK | os.X_OK):
        raise OutputError("may not be written", path=here)


def refuse_promise(folder: Path, n_bytes: int) -> None:
    """Compare what is needed with what is free, where the file system cannot reserve space.

    Args:
        folder: Where it will be needed.
        n_bytes: How much.

    Raises:
        OutputError: If there is less.
    """
    free = free_bytes(folder)
    if free is not None and n_bytes > free:
        raise OutputError(os.strerror(errno.ENOSPC), path=folder)


def names_a_folder(path: Path) -> bool:
    """Return whether a path is a folder itself, and not a link to one.

    Raises:
        OutputError: If that cannot be looked up.
    """
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as problem:
        raise OutputError(f"cannot look up: {first_line(problem)}", path=path) from problem


def names_in(folder: Path, *, error: type[ConvertError] = OutputError) -> set[str]:
    """List the names in a folder, including those of dangling links.

    Args:
        folder: The folder.
        error: What is raised if it cannot be read.

    Raises:
        ConvertError: (the given kind) If it cannot be read.
    """
    try:
        return {entry.name for entry in folder.iterdir()}
    except OSError as problem:
        raise error(f"cannot list: {first_line(problem)}", path=folder) from problem
