"""Own how bytes get from and to a disk; know nothing of what the bytes mean.

Inputs are opened so that a FIFO, a device or a folder ends in an error and not in a hang. Both
sides work at positions in a file, from several threads at once, through the page cache or past it
(O_DIRECT, F_NOCACHE): large sequential work is faster past it, and leaves the user's cache alone.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal

from codellama_convert.errors import CheckpointError, ConvertError, OutputError

IoMode = Literal["auto", "direct", "buffered"]

# Direct I/O wants offsets, lengths and addresses at multiples of the device's block. 4096 is a
# multiple of every block size that Linux's file systems report, and the size of a page.
BLOCK_BYTES = 4096
# Whole blocks around a piece: up to one more at either end.
SLACK_BYTES = 2 * BLOCK_BYTES

_HAS_POSITIONAL_IO = hasattr(os, "preadv") and hasattr(os, "pwrite")
_REFUSES_DIRECT = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EPERM)
_F_NOCACHE = 48  # <sys/fcntl.h> on macOS
_DROP_BEHIND_BYTES = 8 << 20


def block_floor(position: int) -> int:
    """Give the last block boundary at or before a byte position."""
    return position - position % BLOCK_BYTES


def block_ceil(position: int) -> int:
    """Give the first block boundary at or after a byte position."""
    return block_floor(position + BLOCK_BYTES - 1)


def aligned_buffer(n_bytes: int) -> memoryview:
    """Allocate page-aligned memory for direct I/O.

    Args:
        n_bytes: Wanted size; `SLACK_BYTES` are added.

    Returns:
        Writable bytes, zeroed; freed with the last reference.
    """
    return memoryview(mmap.mmap(-1, block_ceil(n_bytes) + SLACK_BYTES))


def first_line(error: OSError) -> str:
    """Give the system's own words for an OSError, without the number and the path."""
    return error.strerror or str(error) or type(error).__name__


class InputFile:
    """A regular file that is read at positions.

    Attributes:
        path: As it was given.
        n_bytes: Its size when it was opened.
        identity: Device and inode, equal for two names of one file.
        direct: Whether `read_window` goes past the page cache.
    """

    def __init__(
        self,
        path: Path,
        *,
        io_mode: IoMode = "buffered",
        error: type[ConvertError] = CheckpointError,
    ) -> None:
        """Open a file.

        Args:
            path: The file; symbolic links are followed.
            io_mode: How `read_window` reads. "auto" takes direct where the file system has it.
            error: What kind of problem an unreadable file is here.

        Raises:
            ConvertError: (the given kind) If it cannot be opened or is no regular file.
        """
        self.path = path
        self._error = error
        self._lock = threading.Lock()
        self._direct_fd: int | None = None
        self._fd = self._open(0)
        try:
            status = os.fstat(self._fd)
            self._refuse_irregular(status.st_mode)
            self.n_bytes = status.st_size
            self.identity = (status.st_dev, status.st_ino)
            self.mtime_ns = status.st_mtime_ns
            self._open_direct(io_mode)
        except BaseException:
            self.close()
            raise

    @property
    def direct(self) -> bool:
        """Whether `read_window` goes past the page cache."""
        return self._direct_fd is not None

    def _open(self, extra_flags: int) -> int:
        # O_NONBLOCK: opening a FIFO without a writer would wait for one for ever.
        flags = os.O_RDONLY | extra_flags
        for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOCTTY"):
            flags |= getattr(os, name, 0)
        try:
            return os.open(self.path, flags)
        except OSError as problem:
            raise self._error(f"cannot open: {first_line(problem)}", path=self.path) from problem
        except ValueError as problem:  # a NUL in the name
            raise self._error("is not a usable file name", path=self.path) from problem

    def _refuse_irregular(self, mode: int) -> None:
        if stat.S_ISDIR(mode):
            raise self._error("is a folder, not a file", path=self.path)
        if not stat.S_ISREG(mode):
            raise self._error("is not a regular file", path=self.path)

    def _open_direct(self, io_mode: IoMode) -> None:
        if io_mode == "buffered":
            return
        direct_fd = open_past_cache(self._open, self._error)
        if direct_fd is not None:
            status = os.fstat(direct_fd)
            same = (status.st_dev, status.st_ino) == self.identity
            if same and _direct_read_works(direct_fd):
                self._direct_fd = direct_fd
                return
            os.close(direct_fd)
        if io_mode == "direct":
            raise _no_direct_io(self.path, self._error)

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill `target` from a position, through the page cache.

        Args:
            target: Writable bytes; all of them are filled.
            offset: First byte's position in the file.

        Raises:
            ConvertError: If the file ends before, or cannot be read.
        """
        self._fill(self._fd, target, offset, wanted=len(target))

    def read_exact(self, offset: int, n_bytes: int) -> bytes:
        """Read `n_bytes` bytes from a position; the arguments and errors of `read_into`."""
        target = bytearray(n_bytes)
        self.read_into(memoryview(target), offset)
        return bytes(target)

    def read_window(self, offset: int, n_bytes: int, buffer: memoryview) -> memoryview:
        """Read bytes into a reused buffer, past the page cache where this file was opened so.

        Args:
            offset: First byte's position in the file.
            n_bytes: How many.
            buffer: From `aligned_buffer(n_bytes)` or larger.

        Returns:
            The part of `buffer` that now holds the bytes.

        Raises:
            ConvertError: If the file ends before, or cannot be read.
        """
        if self._direct_fd is None:
            window = buffer[:n_bytes]
            self._fill(self._fd, window, offset, wanted=n_bytes)
            self._drop_cached(offset, n_bytes)
            return window
        start = block_floor(offset)
        phase = offset - start
        whole_blocks = buffer[: block_ceil(phase + n_bytes)]
        self._fill(self._direct_fd, whole_blocks, start, wanted=phase + n_bytes)
        return whole_blocks[phase : phase + n_bytes]

    def read_pieces(
        self, buffer: memoryview, start: int = 0, end: int | None = None
    ) -> Iterator[memoryview]:
        """Read a range from front to back through one reused buffer.

        Args:
            buffer: From `aligned_buffer`; its size less `SLACK_BYTES` is the size of a piece.
            start: First byte's position in the file.
            end: Behind the last one; None is the end of the file.

        Yields:
            Parts of `buffer`, each good until the next one is asked for.

        Raises:
            ConvertError: If the file ends before, or cannot be read.
        """
        stop = self.n_bytes if end is None else end
        piece_bytes = len(buffer) - SLACK_BYTES
        for at in range(start, stop, piece_bytes):
            yield self.read_window(at, min(piece_bytes, stop - at), buffer)

    def _fill(self, fd: int, target: memoryview, offset: int, *, wanted: int) -> None:
        done = 0
        count = -1
        try:
            while done < wanted and count != 0:
                count = self._read_once(fd, target[done:], offset + done)
                done += count
        except OSError as problem:
            raise self._error(
                f"cannot read at byte {offset + done}: {first_line(problem)}", path=self.path
            ) from problem
        if done < wanted:
            raise self._error(
                f"unexpected end of file at byte {offset + done}",
                path=self.path,
                hint="the file is truncated or changed while reading",
            )

    def _read_once(self, fd: int, target: memoryview, offset: int) -> int:
        if _HAS_POSITIONAL_IO:
            return os.preadv(fd, [target], offset)
        with self._lock:
            os.lseek(fd, offset, os.SEEK_SET)
            count = io.FileIO(fd, closefd=False).readinto(target)
        return count or 0

    def _drop_cached(self, offset: int, n_bytes: int) -> None:
        """Give back the cache pages of bytes that are read once."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # advice: a file system may refuse it
                os.posix_fadvise(self._fd, offset, n_bytes, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the file; may be called twice."""
        for name in ("_fd", "_direct_fd"):
            fd = getattr(self, name, None)
            if fd is not None and fd >= 0:
                os.close(fd)
        self._fd, self._direct_fd = -1, None

    def __enter__(self) -> InputFile:  # noqa: PYI034 - typing.Self is not in Python 3.10
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_past_cache(open_with: Callable[[int], int], error: type[ConvertError]) -> int | None:
    """Open a file a second time, past the page cache.

    Args:
        open_with: Opens the file with extra flags and returns a descriptor.
        error: The kind of problem that `open_with` raises.

    Returns:
        A descriptor, or None where the platform or the file system has no such thing.
    """
    if hasattr(os, "O_DIRECT"):
        try:
            return open_with(os.O_DIRECT)
        except error as problem:
            if (
                isinstance(problem.__cause__, OSError)
                and problem.__cause__.errno in _REFUSES_DIRECT
            ):
                return None
            raise
    if sys.platform == "darwin":
        import fcntl  # noqa: PLC0415 - the module does not exist on Windows

        fd = open_with(0)
        fcntl.fcntl(fd, _F_NOCACHE, 1)
        return fd
    return None


def _no_direct_io(path: Path, error: type[ConvertError]) -> ConvertError:
    return error(
        "its file system refuses direct I/O", path=path, hint="use --io auto or --io buffered"
    )


def _direct_read_works(fd: int) -> bool:
    """Try one block: some file systems accept the flag and refuse the read."""
    if not _HAS_POSITIONAL_IO:
        return False
    try:
        os.preadv(fd, [aligned_buffer(BLOCK_BYTES)[:BLOCK_BYTES]], 0)
    except OSError as problem:
        if problem.errno in _REFUSES_DIRECT:
            return False
        raise
    return True


class OutputFile:
    """A file that is written at positions.

    Attributes:
        path: As it was given.
        direct: Whether `write_blocks` goes past the page cache.
    """

    def __init__(self, path: Path, *, io_mode: IoMode = "buffered", reserved: bool = False) -> None:
        """Create a file with the user's umask, or open one whose space was reserved.

        Args:
            path: The file; it must not exist yet, unless it was reserved.
            io_mode: How `write_blocks` writes. "auto" takes direct where the file system has it.
            reserved: Whether it was created before, to reserve its space.

        Raises:
            OutputError: If it exists or cannot be created.
        """
        self.path = path
        self._lock = threading.Lock()
        self._io_mode = io_mode
        self._direct_fd: int | None = None
        self._dropped_until = 0
        self._fd = -1
        self._fd = self._open(0 if reserved else os.O_CREAT | os.O_EXCL)
        try:
            if io_mode != "buffered" and _HAS_POSITIONAL_IO:
                self._direct_fd = open_past_cache(self._open, OutputError)
            if io_mode == "direct" and self._direct_fd is None:
                raise _no_direct_io(path, OutputError)  # noqa: TRY301 - the cleanup is below
        except BaseException:
            self.abandon()
            raise

    @property
    def direct(self) -> bool:
        """Whether `write_blocks` goes past the page cache."""
        return self._direct_fd is not None

    def _failed(self, what: str, problem: OSError) -> OutputError:
        return OutputError(f"cannot {what}: {first_line(problem)}", path=self.path)

    def _open(self, extra_flags: int) -> int:
        flags = os.O_WRONLY | extra_flags
        for name in ("O_CLOEXEC", "O_BINARY", "O_NOFOLLOW"):
            flags |= getattr(os, name, 0)
        try:
            return os.open(self.path, flags, 0o666)  # less the user's umask
        except OSError as problem:
            raise self._failed("create", problem) from problem

    def reserve(self, n_bytes: int) -> None:
        """Give the file its final size, its space taken from the disk now and not an hour later.

        Args:
            n_bytes: Final size.

        Raises:
            OutputError: If the space is not there, or the file would be larger than allowed.
        """
        try:
            if hasattr(os, "posix_fallocate") and n_bytes:
                os.posix_fallocate(self._fd, 0, n_bytes)
            else:
                os.ftruncate(self._fd, n_bytes)
        except OSError as problem:
            if problem.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                self._truncate(n_bytes)  # the file system cannot reserve, but it can write
                return
            raise self._failed(f"reserve {n_bytes} bytes", problem) from problem

    def _truncate(self, n_bytes: int) -> None:
        try:
            os.ftruncate(self._fd, n_bytes)
        except OSError as problem:
            raise self._failed(f"reserve {n_bytes} bytes", problem) from problem

    def write_at(self, offset: int, piece: bytes | memoryview) -> None:
        """Write bytes at a position through the page cache.

        Args:
            offset: First byte's position in the file.
            piece: The bytes.

        Raises:
            OutputError: If they cannot be written.
        """
        self._drain(self._fd, offset, memoryview(piece))

    def write_blocks(self, offset: int, blocks: memoryview) -> None:
        """Write whole blocks, past the page cache where the file system has it.

        Args:
            offset: A multiple of `BLOCK_BYTES`.
            blocks: Whole blocks, at a page-aligned address.

        Raises:
            OutputError: If they cannot be written.
        """
        fd = self._direct_fd
        if fd is None:
            self.write_at(offset, blocks)
            self._drop_cached(offset)
            return
        try:
            self._drain(fd, offset, blocks)
        except OutputError as problem:
            cause = problem.__cause__
            refused = isinstance(cause, OSError) and cause.errno == errno.EINVAL
            if not refused or self._io_mode == "direct":
                raise
            # The file system took the flag and refuses the write: go on through the page cache.
            self._direct_fd = None
            os.close(fd)
            self.write_at(offset, blocks)

    def _drain(self, fd: int, offset: int, piece: memoryview) -> None:
        done = 0
        try:
            while done < len(piece):
                done += self._write_once(fd, piece[done:], offset + done)
        except OSError as problem:
            raise self._failed(f"write at byte {offset + done}", problem) from problem

    def _write_once(self, fd: int, piece: memoryview, offset: int) -> int:
        if _HAS_POSITIONAL_IO:
            return os.pwrite(fd, piece, offset)
        with self._lock:
            os.lseek(fd, offset, os.SEEK_SET)
            return os.write(fd, piece)

    def _drop_cached(self, offset: int) -> None:
        """Let written pages go: the first call on a range starts its write-back, a later one drops it."""
        if not hasattr(os, "posix_fadvise") or offset < self._dropped_until + _DROP_BEHIND_BYTES:
            return
        start = max(0, self._dropped_until - _DROP_BEHIND_BYTES)
        self._dropped_until = offset
        with suppress(OSError):  # advice: a file system may refuse it
            os.posix_fadvise(self._fd, start, offset - start, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Wait until the bytes are on the disk.

        Raises:
            OutputError: If the disk says that they are not. The kernel has then forgotten which
                pages it lost, so a second fsync would lie: the file must be written anew.
        """
        try:
            os.fsync(self._fd)
        except OSError as problem:
            raise self._failed("save to disk (fsync)", problem) from problem

    def close(self) -> None:
        """Close the file; some file systems report a failed write only here.

        Raises:
            OutputError: If the file system reports one.
        """
        fd, direct_fd = self._fd, self._direct_fd
        self._fd, self._direct_fd = -1, None
        try:
            if direct_fd is not None:
                os.close(direct_fd)
            if fd >= 0:
                os.close(fd)
        except OSError as problem:
            raise self._failed("close", problem) from problem

    def abandon(self) -> None:
        """Close without caring whether the bytes arrived; may be called twice."""
        with suppress(OutputError):
            self.close()

    def __enter__(self) -> OutputFile:  # noqa: PYI034 - typing.Self is not in Python 3.10
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if value is None:
            self.close()
        else:
            self.abandon()


class SpanWriter:
    """One contiguous range of an output file, filled from front to back through one small buffer.

    Whole blocks inside the range go to `OutputFile.write_blocks`; the blocks at its two edges,
    which a neighbouring range may share, go through the page cache. So a block of the file is
    written in one mode only, whatever thread writes its neighbour.
    """

    def __init__(self, output: OutputFile, start: int, buffer: memoryview) -> None:
        """Begin a range.

        Args:
            output: The file.
            start: The range's first byte in the file.
            buffer: From `aligned_buffer(n)`, for pieces of up to `n` bytes.
        """
        self._output = output
        self._buffer = buffer
        self._start = start  # of what is not written yet
        self._end = start
        self._at_edge = start % BLOCK_BYTES != 0

    def space(self, n_bytes: int) -> memoryview:
        """Give the memory in which the next `n_bytes` bytes of the range are to be put."""
        first = self._end - block_floor(self._start)
        return self._buffer[first : first + n_bytes]

    def commit(self, n_bytes: int) -> None:
        """Take the bytes put into `space(n_bytes)`; write what makes whole blocks.

        Args:
            n_bytes: As given to `space`.

        Raises:
            OutputError: If they cannot be written.
        """
        self._end += n_bytes
        base = block_floor(self._start)
        if self._at_edge and self._end >= base + BLOCK_BYTES:
            edge_end = base + BLOCK_BYTES
            self._output.write_at(self._start, self._buffer[self._start - base : edge_end - base])
            self._start, self._at_edge = edge_end, False
        if self._at_edge:
            return
        whole_end = block_floor(self._end)
        if whole_end > self._start:
            self._output.write_blocks(
                self._start, self._buffer[self._start - base : whole_end - base]
            )
            self._start = whole_end
        rest = self._end - self._start
        if self._start > base and rest:
            self._buffer[:rest] = self._buffer[self._start - base : self._start - base + rest]

    def finish(self) -> None:
        """Write the bytes of the last, partial block.

        Raises:
            OutputError: If they cannot be written.
        """
        first = self._start - block_floor(self._start)
        rest = self._end - self._start
        if rest:
            self._output.write_at(self._start, self._buffer[first : first + rest])
        self._start = self._end
