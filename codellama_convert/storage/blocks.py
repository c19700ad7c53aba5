"""Own what reading and writing share: blocks, positions, direct I/O.

Both sides work at positions in a file, from several threads at once, through the page cache or past
it (O_DIRECT, F_NOCACHE): large sequential work is faster past it, and leaves the user's cache alone.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from codellama_convert.errors import ConvertError

IoMode = Literal["auto", "direct", "buffered"]
IO_MODES: tuple[IoMode, ...] = get_args(IoMode)
DEFAULT_IO_MODE: IoMode = "auto"

# Direct I/O wants offsets, lengths and addresses at multiples of the device's block. 4096 is a
# multiple of every block size that Linux's file systems report, and the size of a page.
BLOCK_BYTES = 4096
# Whole blocks around a piece: up to one more at either end.
SLACK_BYTES = 2 * BLOCK_BYTES

# Windows has neither, and macOS before version 11 no preadv. `sys.platform` stands beside it for
# mypy, which checks the package as each platform sees it.
_HAS_POSITIONAL_IO = hasattr(os, "preadv") and hasattr(os, "pwrite")
_REFUSES_DIRECT = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EPERM)
_CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
# Beside the system's words, which say it of a file although it is not the file's fault.
_WHAT_TO_DO = {
    errno.EMFILE: " (ulimit -n allows more)",
    errno.ENFILE: " (of all users of this machine)",
}
_F_NOCACHE = 48  # <sys/fcntl.h> on macOS
_IN_MEMORY = (0x01021994, 0x858458F6)  # TMPFS_MAGIC, RAMFS_MAGIC of <linux/magic.h>


def block_floor(position: int) -> int:
    """Return the last block boundary at or before a byte position."""
    return position - position % BLOCK_BYTES


def block_ceil(position: int) -> int:
    """Return the first block boundary at or after a byte position."""
    return block_floor(position + BLOCK_BYTES - 1)


Opener = Callable[[Path, int], int]


def flags_of(*names: str) -> int:
    """Join those flags of `os.open` that this platform has."""
    return sum(getattr(os, name, 0) for name in names)


def open_by_path(path: Path, flags: int) -> int:
    """Open or create a file wherever its path leads, with the user's umask.

    Raises:
        OSError: If the system says so.
    """
    return os.open(path, flags, 0o666)


def first_line(error: OSError) -> str:
    """Return the system's own words for an OSError, without the number and the path."""
    words = error.strerror or str(error) or type(error).__name__
    return words + _WHAT_TO_DO.get(error.errno or 0, "")


def read_at(fd: int, target: memoryview, offset: int, lock: threading.Lock) -> int:
    """Read once at a position.

    Args:
        fd: The open file.
        target: Writable bytes.
        offset: First byte's position in the file.
        lock: Of this file: where the platform cannot read at a position, seeking needs it.

    Returns:
        How many bytes were read; 0 at the end of the file.

    Raises:
        OSError: If the system says so.
    """
    if sys.platform != "win32" and _HAS_POSITIONAL_IO:
        return os.preadv(fd, [target], offset)
    with lock:
        os.lseek(fd, offset, os.SEEK_SET)
        return io.FileIO(fd, closefd=False).readinto(target) or 0


def write_at(fd: int, piece: memoryview, offset: int, lock: threading.Lock) -> int:
    """Write once at a position; the arguments and errors of `read_at`.

    Returns:
        How many bytes were written.
    """
    if sys.platform != "win32" and _HAS_POSITIONAL_IO:
        return os.pwrite(fd, piece, offset)
    with lock:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, piece)


def some_written(n_bytes: int | None) -> int:
    """Refuse a write that took nothing and said nothing, which would be tried for ever.

    Args:
        n_bytes: How many bytes the system says that it took, of some.

    Returns:
        The same.

    Raises:
        OSError: If it took none.
    """
    if not n_bytes:
        raise OSError(errno.EIO, "nothing was written")
    return n_bytes


def take_space(fd: int, n_bytes: int) -> bool:
    """Take a file's space from the disk, and give the file that size.

    Args:
        fd: The open file, empty.
        n_bytes: Its size to be, more than 0.

    Returns:
        False where the system or the file system cannot; the file is then as it was.

    Raises:
        OSError: If the space is not there, or the file would be larger than allowed.
    """
    allocate = _allocator()
    if allocate is None:
        return False
    try:
        allocate(fd, 0, n_bytes)
    except OSError as problem:
        if problem.errno in _CANNOT_RESERVE:
            return False
        raise
    return True


@cache
def _allocator() -> Callable[[int, int, int], None] | None:
    allocate: Callable[[int, int, int], None] | None = getattr(os, "posix_fallocate", None)
    if sys.platform == "linux":
        allocate = _fallocate()
    return allocate


def _fallocate() -> Callable[[int, int, int], None] | None:
    import ctypes  # noqa: PLC0415 - only writers need it

    # Not posix_fallocate: where a file system cannot reserve (NFS before 4.2, some FUSE), glibc's
    # writes a byte into every block instead, and all of the disk would be written twice.
    system = ctypes.CDLL(None, use_errno=True)
    fallocate = getattr(system, "fallocate64", None) or getattr(system, "fallocate", None)
    if fallocate is None:
        return None
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

    def allocate(fd: int, offset: int, n_bytes: int) -> None:
        while fallocate(fd, 0, offset, n_bytes):
            number = ctypes.get_errno()
            if number != errno.EINTR:  # of a signal: its handler has run, so continue
                raise OSError(number, os.strerror(number))

    return allocate


def drop_cached(fd: int, offset: int, n_bytes: int) -> None:
    """Give back the page cache of a range that nobody will read soon, where the system can.

    Pages that are not on the disk yet stay: for those the call begins to write them back.
    """
    if sys.platform == "linux":
        with suppress(OSError):  # advice: a file system may refuse it
            os.posix_fadvise(fd, offset, n_bytes, os.POSIX_FADV_DONTNEED)


def read_ahead(fd: int, offset: int, n_bytes: int) -> None:
    """Have the system begin to read a range into the page cache, where it can."""
    if sys.platform == "linux":
        with suppress(OSError):  # advice: a file system may refuse it
            os.posix_fadvise(fd, offset, n_bytes, os.POSIX_FADV_WILLNEED)


def open_past_cache(open_with: Callable[[int], int], error: type[ConvertError]) -> int | None:
    """Open a file a second time, past the page cache.

    Args:
        open_with: Opens the file with extra flags and returns a descriptor.
        error: The kind of problem that `open_with` raises.

    Returns:
        A descriptor, or None where the platform or the file system has no such thing.
    """
    if not _HAS_POSITIONAL_IO:
        return None
    if hasattr(os, "O_DIRECT"):
        try:
            direct_fd = open_with(os.O_DIRECT)
        except error as problem:
            if refuses_direct(problem.__cause__):
                return None
            raise
        if not _lies_in_memory(direct_fd):
            return direct_fd
        os.close(direct_fd)
        return None
    fd = None
    if sys.platform == "darwin":
        import fcntl  # noqa: PLC0415 - the module does not exist on Windows

        fd = open_with(0)
        try:
            fcntl.fcntl(fd, _F_NOCACHE, 1)
        except OSError:  # a file system may refuse it
            os.close(fd)
            fd = None
    return fd


def _lies_in_memory(fd: int) -> bool:
    """Return whether an open file's cache is all that there is of it, so nothing can pass it by.

    From Linux 6.6 on, tmpfs takes O_DIRECT and ignores it.
    """
    kind = 0
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - only direct I/O needs it

        status = (ctypes.c_uint32 * 64)()  # struct statfs has 120 bytes, and begins with the kind
        if ctypes.CDLL(None).fstatfs(fd, status) == 0:
            kind = status[0]
    return kind in _IN_MEMORY


def no_direct_io(path: Path, error: type[ConvertError]) -> ConvertError:
    """Say that `--io direct` cannot be had for a file."""
    return error(
        "its file system refuses direct I/O", path=path, hint="use --io auto or --io buffered"
    )


def refuses_direct(problem: BaseException | None) -> bool:
    """Return whether a problem means that direct I/O is not to be had, rather than a broken disk."""
    return isinstance(problem, OSError) and problem.errno in _REFUSES_DIRECT
