"""Own the lock that keeps two runs out of one folder; know nothing of what they do there."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path

from codellama_convert.errors import OutputError
from codellama_convert.storage.blocks import flags_of

LOCK_NAME = ".codellama-convert.lock"

_IS_LOCKED = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)  # the last two are Windows' words
_HAS_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FolderLock:
    """A lock file in a folder, gone when the run is over."""

    def __init__(self, folder: Path) -> None:
        """Name the folder; nothing is touched before `take`."""
        self._folder = folder
        self._fd: int | None = None

    def take(self) -> None:
        """Take it, where the file system has locks.

        Raises:
            OutputError: If another run holds it.
            OSError: If it cannot be created.
        """
        path = self._folder / LOCK_NAME
        flags = os.O_RDWR | os.O_CREAT | flags_of("O_CLOEXEC", "O_NOFOLLOW", "O_BINARY")
        fd = os.open(path, flags, 0o666)
        self._fd = fd
        try:
            _lock(fd)
            # Between opening and locking the other run may have finished and removed its lock. Not
            # on Windows, where an open file cannot be removed.
            is_held = sys.platform == "win32" or os.path.samestat(os.fstat(fd), path.stat())
        except FileNotFoundError:
            is_held = False
        except OSError as problem:
            # Some network mounts have no locks: unique names still keep two runs apart.
            is_held = problem.errno in _HAS_NO_LOCKS
            if not is_held and problem.errno not in _IS_LOCKED:
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
        if self._fd is None:
            return
        if sys.platform == "win32":
            self._close()
        with suppress(OSError):
            (self._folder / LOCK_NAME).unlink()
        self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            with suppress(OSError):  # it holds no bytes that could be lost
                os.close(fd)


def _lock(fd: int) -> None:
    """Lock an open file until it is closed; where another one holds it, fail at once."""
    if sys.platform == "win32":
        import msvcrt  # noqa: PLC0415 - the module exists on Windows only

        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl  # noqa: PLC0415 - the module does not exist on Windows

        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
