"""Own what is asked of folders and done to them; know nothing of what they are for."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from codellama_convert.errors import OutputError
from codellama_convert.files import first_line


def sync_folder(folder: Path) -> None:
    """Wait until a folder's entries are on the disk; nothing to do where folders cannot be opened.

    Raises:
        OutputError: If the disk says that they are not.
    """
    if os.name == "nt":
        return
    try:
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as problem:
        if problem.errno in (errno.EINVAL, errno.ENOTSUP):  # some network mounts
            return
        raise OutputError(
            f"cannot save to disk (fsync): {first_line(problem)}", path=folder
        ) from problem


def refuse_same_folder(output_dir: Path, input_dir: Path) -> None:
    """Refuse to write into the checkpoint's own folder.

    Raises:
        OutputError: If the two are one folder.
    """
    if output_dir.exists() and output_dir.resolve() == input_dir.resolve():
        raise OutputError(
            "the output folder is the input folder",
            path=output_dir,
            hint="name another with --output_dir",
        )


def free_bytes(folder: Path) -> int:
    """Tell how much space a folder's file system has for this user.

    Args:
        folder: It need not exist yet; the nearest parent that does is asked.

    Returns:
        Bytes.
    """
    for place in (folder.absolute(), *folder.absolute().parents):
        if place.exists():
            return shutil.disk_usage(place).free
    return 0
