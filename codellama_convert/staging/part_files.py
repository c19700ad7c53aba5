"""Own the writing of staged files: their space, their bytes, and the name that says they are whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from codellama_convert.errors import OutputError
from codellama_convert.plan.side import TargetSide
from codellama_convert.staging.crash_points import step
from codellama_convert.staging.publish import rename
from codellama_convert.staging.record_values import FileSum
from codellama_convert.staging.space import ANOTHER_PLACE, NOT_THE_DISK
from codellama_convert.staging.staged import PART_SUFFIX, drop_entries
from codellama_convert.storage.blocks import IoMode, first_line
from codellama_convert.storage.checksums import crc32
from codellama_convert.storage.contents import Content, chunks_of
from codellama_convert.storage.folders import refuse_promise
from codellama_convert.storage.held_folder import HeldFolder
from codellama_convert.storage.output_file import OutputFile
from codellama_convert.storage.sizes import format_size


class PartFiles:
    """The files of a staging folder that are not whole yet, under names that nothing takes for it."""

    def __init__(self, staging: HeldFolder, side: TargetSide) -> None:
        """Take the open staging folder and the side that is written; nothing is touched."""
        self._staging, self._side = staging, side
        self._parts: dict[str, Path] = {}

    def reserve(self, sizes: Mapping[str, int]) -> None:
        """Take the space of all files from the disk, before an hour is spent on the first.

        Args:
            sizes: Each file's name and size in bytes.

        Raises:
            OutputError: If a file cannot be created, or the disk has not the space.
        """
        n_promised = 0
        for name, n_bytes in sizes.items():
            # A name that no other run uses: without working locks, two runs waste work only.
            part = self._staging.path / f"{name}.{os.urandom(4).hex()}{PART_SUFFIX}"
            try:
                with OutputFile(part, opener=self._staging.open_path) as output:
                    if not output.reserve(n_bytes):
                        n_promised += n_bytes
                        refuse_promise(self._staging.path.parent, n_promised)
            except OutputError as problem:
                cause = problem.__cause__
                if isinstance(cause, OSError) and cause.errno in NOT_THE_DISK:
                    raise
                # FAT32, as external disks have it, ends at 4 GB a file.
                is_too_large = isinstance(cause, OSError) and cause.errno == errno.EFBIG
                way_out = self._side.smaller_files if is_too_large else "free some space"
                raise OutputError(
                    f"cannot reserve {n_bytes} bytes for {name}: {_cause_of(problem)}; "
                    f"{format_size(sum(sizes.values()))} are needed in all",
                    path=self._staging.path.parent,
                    hint=f"{way_out}, or {ANOTHER_PLACE}",
                ) from problem
            self._parts[name] = part
            step("space reserved")

    def open(self, name: str, *, io_mode: IoMode = "buffered") -> OutputFile:
        """Open a file whose space was reserved.

        Args:
            name: Its final name.
            io_mode: How it is written.

        Returns:
            The open file.

        Raises:
            OutputError: If it cannot be opened.
        """
        return OutputFile(
            self._parts[name], io_mode=io_mode, reserved=True, opener=self._staging.open_path
        )

    def seal(self, output: OutputFile, seal: Sequence[tuple[int, bytes]]) -> None:
        """Write what makes a file loadable, and save it to the disk.

        All else is on the disk before the seal is written: a torn file has none, and a file
        without one cannot be loaded.

        Args:
            output: From `open`, all else written; this closes it.
            seal: Position and bytes of each piece.

        Raises:
            OutputError: If the disk did not take all of it.
        """
        output.sync()
        step("data saved")
        for position, piece in seal:
            output.write_at(position, piece)
        output.sync()
        step("header saved")
        output.close()

    def name(self, part: str, name: str) -> None:
        """Give a sealed file its name here, which is on the disk when this returns.

        Args:
            part: Its name so far.
            name: Its final name.

        Raises:
            OutputError: If the file system does not.
        """
        rename(self._staging, part, self._staging, name)
        self._staging.sync()
        step("file named")

    def n_bytes_of(self, part: str) -> int:
        """Look from here at a part that somebody else has written.

        Args:
            part: Its name.

        Returns:
            Its size.

        Raises:
            OSError: If there is none, or it is not a file of ours.
        """
        self._staging.refuse_strangers(part)
        return self._staging.status(part).st_size

    def drop_of(self, name: str) -> None:
        """Remove every part of a file, whoever wrote it.

        Raises:
            OutputError: If one cannot be removed.
        """
        parts = (one for one in self._staging.names() if one.endswith(PART_SUFFIX))
        drop_entries(self._staging, (one for one in parts if one.startswith(f"{name}.")))

    def drop_own(self) -> None:
        """Remove the parts that were reserved here, as far as that can be done."""
        for part in self._parts.values():
            with suppress(OSError):
                self._staging.remove(part.name)

    def write(self, name: str, content: Content) -> FileSum:
        """Write a small file whole; the errors of `reserve` and `seal`.

        Returns:
            What it is.
        """
        self.reserve({name: len(content)})
        crc = n_bytes = 0
        with self.open(name) as output:
            for chunk in chunks_of(content):
                output.write_at(n_bytes, chunk)
                n_bytes += len(chunk)
                crc = crc32(chunk, crc)
            assert n_bytes == len(content)
            output.sync()
        rename(self._staging, output.path.name, self._staging, name)
        return FileSum(n_bytes, crc)


def _cause_of(problem: OutputError) -> str:
    """Return the system's words behind a problem, or its own."""
    cause = problem.__cause__
    return first_line(cause) if isinstance(cause, OSError) else problem.message
