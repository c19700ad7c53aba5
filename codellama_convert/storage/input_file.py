"""Own the reading of regular files at positions.

A FIFO, a device or a folder ends in an error and not in a hang.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from codellama_convert.errors import CheckpointError, ConvertError
from codellama_convert.storage.blocks import (
    BLOCK_BYTES,
    SLACK_BYTES,
    IoMode,
    Opener,
    block_ceil,
    block_floor,
    drop_cached,
    first_line,
    flags_of,
    no_direct_io,
    open_by_path,
    open_past_cache,
    read_ahead,
    read_at,
    refuses_direct,
)
from codellama_convert.storage.buffers import aligned_buffer


class InputFile:
    """A regular file that is read at positions.

    Attributes:
        path: As it was given.
        n_bytes: Its size when it was opened.
        inode: Device and inode, equal for two names of one file.
        direct: Whether `read_window` goes past the page cache.
    """

    def __init__(
        self,
        path: Path,
        *,
        io_mode: IoMode = "buffered",
        error: type[ConvertError] = CheckpointError,
        hint: str | None = None,
        opener: Opener = open_by_path,
    ) -> None:
        """Open a file.

        Args:
            path: The file; symbolic links are followed.
            io_mode: How `read_window` reads. "auto" takes direct where the file system has it.
            error: What kind of problem an unreadable file is here.
            hint: What to do where it cannot be opened, if the system's reason does not say it.
            opener: Opens it; that of a held folder follows no links.

        Raises:
            ConvertError: (the given kind) If it cannot be opened or is no regular file.
        """
        self.path = path
        self._error, self._hint, self._opener = error, hint, opener
        self._lock = threading.Lock()
        self._direct_fd: int | None = None
        self._fd = self._open(0)
        try:
            status = os.fstat(self._fd)
            self._refuse_irregular(status.st_mode)
            self.n_bytes = status.st_size
            self.inode = (status.st_dev, status.st_ino)
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
        flags = os.O_RDONLY | flags_of("O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOCTTY")
        try:
            return self._opener(self.path, flags | extra_flags)
        except OSError as problem:
            raise self._error(
                f"cannot open: {first_line(problem)}", path=self.path, hint=self._hint
            ) from problem
        except ValueError as problem:  # a NUL in the name
            raise self._error(
                "is not a usable file name", path=self.path, hint=self._hint
            ) from problem

    def _refuse_irregular(self, mode: int) -> None:
        if stat.S_ISDIR(mode):
            raise self._error("is a folder, not a file", path=self.path, hint=self._hint)
        if not stat.S_ISREG(mode):
            raise self._error("is not a regular file", path=self.path, hint=self._hint)

    def _open_direct(self, io_mode: IoMode) -> None:
        if io_mode == "buffered":
            return
        direct_fd = open_past_cache(self._open, self._error)
        if direct_fd is not None:
            status = os.fstat(direct_fd)
            same = (status.st_dev, status.st_ino) == self.inode
            if same and self._direct_read_works(direct_fd):
                self._direct_fd = direct_fd
                return
            os.close(direct_fd)
        if io_mode == "direct":
            raise no_direct_io(self.path, self._error)

    def _direct_read_works(self, direct_fd: int) -> bool:
        """Try one block: some file systems accept the flag and refuse the read."""
        try:
            read_at(direct_fd, aligned_buffer(BLOCK_BYTES)[:BLOCK_BYTES], 0, self._lock)
        except OSError as problem:
            if refuses_direct(problem):
                return False
            raise
        return True

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
        self._refuse_beyond_end(offset, n_bytes)
        target = bytearray(n_bytes)
        self.read_into(memoryview(target), offset)
        return bytes(target)

    def read_ahead(self, offsets: Iterable[int], n_bytes: int) -> None:
        """Have short ranges read from the disk together, before each is asked for through the cache.

        Args:
            offsets: Where they begin.
            n_bytes: The length of each.
        """
        for offset in offsets:
            read_ahead(self._fd, offset, n_bytes)

    def read_whole(self, max_bytes: int, *, hint: str | None = None) -> bytes:
        """Read a small file whole.

        Args:
            max_bytes: The largest size that such a file may have.
            hint: What to do where it is larger.

        Returns:
            Its bytes.

        Raises:
            ConvertError: If it is larger, or cannot be read.
        """
        if self.n_bytes > max_bytes:
            raise self._error(
                f"has {self.n_bytes} bytes, which is too large: a file of this kind is not larger "
                f"than {max_bytes} bytes",
                path=self.path,
                hint=hint,
            )
        return self.read_exact(0, self.n_bytes)

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
            drop_cached(self._fd, offset, n_bytes)
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
        self._refuse_beyond_end(offset, wanted)
        done = 0
        count = -1
        try:
            while done < wanted and count != 0:
                count = read_at(fd, target[done:], offset + done, self._lock)
                done += count
        except OSError as problem:
            raise self._error(
                f"cannot read at byte {offset + done}: {first_line(problem)}", path=self.path
            ) from problem
        if done < wanted:
            raise self._ended(offset + done)

    def _refuse_beyond_end(self, offset: int, n_bytes: int) -> None:
        """Refuse positions that no system call takes, and sizes that no memory holds."""
        if offset + n_bytes > self.n_bytes:
            raise self._ended(self.n_bytes)

    def _ended(self, position: int) -> ConvertError:
        return self._error(
            f"unexpected end of file at byte {position}",
            path=self.path,
            hint="the file is truncated, or changed while it was read",
        )

    def close(self) -> None:
        """Close the file; may be called twice."""
        for name in ("_fd", "_direct_fd"):
            fd = getattr(self, name, None)
            if fd is not None and fd >= 0:
                with suppress(OSError):  # nothing was written that could be lost
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
