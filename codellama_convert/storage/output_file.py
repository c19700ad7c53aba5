"""Own the writing of files at positions: reserved space, whole blocks, fsync, honest failures."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from codellama_convert.errors import OutputError
from codellama_convert.storage.blocks import (
    BLOCK_BYTES,
    IoMode,
    Opener,
    block_floor,
    drop_cached,
    first_line,
    flags_of,
    no_direct_io,
    open_by_path,
    open_past_cache,
    some_written,
    take_space,
    write_at,
)

_DROP_BEHIND_BYTES = 8 << 20


class OutputFile:
    """A file that is written at positions.

    Attributes:
        path: As it was given.
        direct: Whether `write_blocks` goes past the page cache.
    """

    def __init__(
        self,
        path: Path,
        *,
        io_mode: IoMode = "buffered",
        reserved: bool = False,
        opener: Opener = open_by_path,
    ) -> None:
        """Create a file with the user's umask, or open one whose space was reserved.

        Args:
            path: The file; it must not exist yet, unless it was reserved.
            io_mode: How `write_blocks` writes. "auto" takes direct where the file system has it.
            reserved: Whether it was created before, to reserve its space.
            opener: Opens or creates it; that of a held folder lets nobody else's file be written.

        Raises:
            OutputError: If it exists or cannot be created.
        """
        self.path = path
        self._lock = threading.Lock()
        self._io_mode, self._opener = io_mode, opener
        self._direct_fd: int | None = None
        self._direct_writes_work = True
        self._dropped_until = 0
        self._fd = -1
        self._fd = self._open(0 if reserved else os.O_CREAT | os.O_EXCL)
        try:
            if io_mode != "buffered":
                self._direct_fd = open_past_cache(self._open, OutputError)
            if io_mode == "direct" and self._direct_fd is None:
                raise no_direct_io(path, OutputError)  # noqa: TRY301 - the cleanup is below
        except BaseException:
            self.abandon()
            raise

    @property
    def direct(self) -> bool:
        """Whether `write_blocks` goes past the page cache."""
        return self._direct_fd is not None and self._direct_writes_work

    def _failed(self, what: str, problem: OSError) -> OutputError:
        return OutputError(f"cannot {what}: {first_line(problem)}", path=self.path)

    def _open(self, extra_flags: int) -> int:
        flags = os.O_WRONLY | extra_flags | flags_of("O_CLOEXEC", "O_BINARY", "O_NOFOLLOW")
        try:
            return self._opener(self.path, flags)
        except OSError as problem:
            what = "create" if extra_flags & os.O_CREAT else "open"
            raise self._failed(what, problem) from problem

    def reserve(self, n_bytes: int) -> bool:
        """Give the file its final size, and reserve its space now rather than in an hour.

        Args:
            n_bytes: Final size.

        Returns:
            Whether the space was taken; False where the file system cannot do that.

        Raises:
            OutputError: If the space is not there, or the file would be larger than allowed.
        """
        try:
            if n_bytes and take_space(self._fd, n_bytes):
                return True
            os.ftruncate(self._fd, n_bytes)
        except OSError as problem:
            raise self._failed(f"reserve {n_bytes} bytes", problem) from problem
        return n_bytes == 0

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
        if fd is None or not self._direct_writes_work:
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
            # The file system took the flag and refuses the write: continue through the page cache.
            # The descriptor stays open: other threads are writing to it, and a file that is opened
            # meanwhile would get its number.
            self._direct_writes_work = False
            self.write_at(offset, blocks)

    def _drain(self, fd: int, offset: int, piece: memoryview) -> None:
        done = 0
        try:
            while done < len(piece):
                done += some_written(write_at(fd, piece[done:], offset + done, self._lock))
        except OSError as problem:
            raise self._failed(f"write at byte {offset + done}", problem) from problem

    def _drop_cached(self, offset: int) -> None:
        """Let written pages go: the first call on a range starts its write-back, a later one drops it."""
        if offset < self._dropped_until + _DROP_BEHIND_BYTES:
            return
        start = max(0, self._dropped_until - _DROP_BEHIND_BYTES)
        self._dropped_until = offset
        drop_cached(self._fd, start, offset - start)

    def sync(self) -> None:
        """Wait until the bytes are on the disk.

        Raises:
            OutputError: If the disk says that they are not. The kernel has then forgotten which
                pages it lost, so a second fsync would lie: the file must be written again.
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
        """Return the memory in which the next `n_bytes` bytes of the range are to be put."""
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
