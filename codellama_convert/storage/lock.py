"""Own the lock that keeps two runs out of one folder."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from codellama_convert.errors import OutputError
from codellama_convert.storage.blocks import flags_of

# Not when the lock is taken: an error of the import (too many open files) is not one of the lock.
if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK_NAME = ".codellama-convert.lock"

_IS_LOCKED = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)  # the last two are Windows' words
_HAS_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_TRIES = 3


class FolderLock:
    """A lock file in a folder, gone when the run is over."""

    def __init__(self, folder: Path, *, shared: bool = False) -> None:
        """Name the folder; nothing is touched before `take`.

        Args:
            folder: Where the file is.
            shared: Whether others may hold it so too; the file stays then when this run is over.
        """
        self._folder, self._shared = folder, shared
        self._fd: int | None = None

    def take(self) -> None:
        """Take it, where the file system has locks.

        Raises:
            OutputError: If another run holds it.
            OSError: If it cannot be created.
        """
        # One that was removed while it was taken belonged to a run that has just ended.
        if not any(self._take() for _ in range(_TRIES)):
            self._refuse()

    def _take(self) -> bool:
        """Take it; False where the other run removed it between our opening and our locking it."""
        path = self._folder / LOCK_NAME
        flags = os.O_RDWR | os.O_CREAT | flags_of("O_CLOEXEC", "O_NOFOLLOW", "O_BINARY")
        self._fd = fd = os.open(path, flags, 0o666)
        try:
            _lock(fd, shared=self._shared)
        except OSError as problem:
            # Some network mounts have no locks: unique names still keep two runs apart.
            if problem.errno in _HAS_NO_LOCKS:
                return True
            if problem.errno in _IS_LOCKED:
                self._refuse()
            self.release()
            raise
        if _is_at(path, fd):
            return True
        self._close()
        return False

    def _refuse(self) -> NoReturn:
        self._close()
        raise OutputError(
            "another conversion is running in this folder", path=self._folder, hint="wait for it"
        )

    def release(self) -> None:
        """Remove it, if this run holds it."""
        if self._fd is None:
            return
        if sys.platform == "win32":
            self._close()
        if not self._shared:
            with suppress(OSError):
                (self._folder / LOCK_NAME).unlink()
        self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            with suppress(OSError):  # it holds no bytes that could be lost
                os.close(fd)


def _is_at(path: Path, fd: int) -> bool:
    """Return whether a path leads to an open file; on Windows an open one cannot be removed."""
    is_at = True
    if sys.platform != "win32":
        try:
            is_at = os.path.samestat(os.fstat(fd), path.stat())
        except FileNotFoundError:
            is_at = False
    return is_at


def _lock(fd: int, *, shared: bool) -> None:
    """Lock an open file until it is closed; where another one holds it, fail at once."""
    if sys.platform != "win32":
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    elif not shared:  # it has no such locks
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
