"""Own the lock that keeps two runs out of one folder; know nothing of what they do there."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from codellama_convert.errors import OutputError

LOCK_NAME = ".codellama-convert.lock"


class FolderLock:
    """A lock file in a folder, gone when the run is over."""

    def __init__(self, folder: Path) -> None:
        """Name the folder; nothing is touched before `take`."""
        self._folder = folder
        self._fd: int | None = None

    def take(self) -> None:
        """Take it, where the platform has locks.

        Raises:
            OutputError: If another run holds it.
            OSError: If it cannot be created.
        """
        try:
            import fcntl  # noqa: PLC0415 - the module does not exist on Windows
        except ImportError:
            return
        path = self._folder / LOCK_NAME
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        self._fd = fd
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between open and flock the other run may have finished and removed its lock.
            is_held = os.fstat(fd).st_ino == path.stat().st_ino
        except (BlockingIOError, FileNotFoundError):
            is_held = False
        except OSError as problem:
            # Some network mounts have no locks: unique names still keep two runs apart.
            is_held = problem.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
            if not is_held:
                self.release()
                raise
        if not is_held:
            self._close()
            raise OutputError(
                "another conversion is running in this folder",
                path=self._folder,
                hint="wait for it",
            )

    def release(self) -> None:
        """Remove it, if this run holds it."""
        if self._fd is not None:
            with suppress(OSError):
                (self._folder / LOCK_NAME).unlink()
            self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            with suppress(OSError):  # it holds no bytes that could be lost
                os.close(fd)
