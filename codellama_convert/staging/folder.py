"""Own the output folder: a lock, a staging folder inside it, and the order of publishing.

Until the last rename nothing in the folder can be loaded; after it, all of it can. Know nothing of
what the files hold.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import zlib
from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from codellama_convert.errors import ConvertError, Interrupted, OutputError
from codellama_convert.staging.crash_points import step
from codellama_convert.staging.occupied import (
    ANOTHER_PLACE,
    may_be_ours,
    refuse_content,
    refuse_small_disk,
    space_for,
)
from codellama_convert.staging.publish import publish, rename, unpublish
from codellama_convert.staging.record_values import FileSum, SealedFile
from codellama_convert.staging.records import (
    Journal,
    append_publishing,
    append_sealed,
    write_journal,
)
from codellama_convert.staging.staged import (
    STAGING_NAME,
    begin_staging,
    clear_staging,
    drop_all_but,
    drop_parts,
    drop_staging,
    find_moved,
    hold_staging,
    is_whole,
    read_staged,
    refuse_other_work,
)
from codellama_convert.storage.blocks import IoMode, first_line
from codellama_convert.storage.contents import Content, chunks_of
from codellama_convert.storage.folders import make_folder, refuse_promise
from codellama_convert.storage.held_folder import HeldFolder
from codellama_convert.storage.lock import FolderLock
from codellama_convert.storage.output_file import OutputFile
from codellama_convert.storage.sizes import format_size
from codellama_convert.storage.watch import Watch

_NOT_THE_DISK = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_AGAIN = "run the same command again"


class OutputFolder:
    """The folder that receives a converted model.

    Attributes:
        path: The folder.
        staging: Where files stand until all of them are whole.
    """

    def __init__(
        self,
        path: Path,
        fingerprint: Mapping[str, Any],
        sizes: Mapping[str, int],
        *,
        overwrite: bool = False,
        restart: bool = False,
        watch: Watch,
    ) -> None:
        """Name the folder; nothing is touched before `__enter__`.

        Args:
            path: The folder; it need not exist.
            fingerprint: The inputs and options of the conversion; staged work of the same is resumed.
            sizes: Bytes of each file that the conversion may write, 0 for one that it does not this
                time; no others are taken for its own.
            overwrite: Whether a model that it holds may be replaced.
            restart: Whether staged work is dropped.
            watch: May stop the reading of files that an earlier run has left.
        """
        self.path = path
        self.staging = path / STAGING_NAME
        self._journal = Journal(json.loads(json.dumps(fingerprint)))
        self._sizes = dict(sizes)
        self._overwrite, self._restart, self._watch = overwrite, restart, watch
        self._parts: dict[str, Path] = {}
        self._added: dict[str, FileSum] = {}
        self._lock = FolderLock(path)
        self._open = ExitStack()
        self._folder: HeldFolder  # both are held between `__enter__` and `__exit__`
        self._held: HeldFolder

    @property
    def sealed(self) -> Mapping[str, SealedFile]:
        """The staged files that are whole, by name."""
        return self._journal.sealed

    def __enter__(self) -> OutputFolder:  # noqa: PYI034 - typing.Self is not in Python 3.10
        try:
            make_folder(self.path)
            if not os.path.lexists(self.staging):
                self._refuse_content()  # before anything in the folder is touched
            self._folder = self._open.enter_context(HeldFolder(self.path))
            self._lock.take()
            step("locked")
            self._resume_or_begin()
        except OSError as problem:
            self._leave()
            what = f"cannot create: {first_line(problem)}"
            if isinstance(problem, FileExistsError) and self.path.exists():
                what = f"is a {'file' if self.path.is_file() else 'device'}, not a folder"
            raise OutputError(what, path=self.path, hint=ANOTHER_PLACE) from problem
        except BaseException:
            self._leave()
            raise
        return self

    def _resume_or_begin(self) -> None:
        held = hold_staging(self._folder)
        staged = None
        if held is not None:
            self._held = self._open.enter_context(held)
            held.keep_private()
            staged = read_staged(held, restart=self._restart)
        found = self._to_resume(staged)
        if held is not None and staged is None:
            with suppress(OSError):  # an empty one is the trace of a kill at the very end
                self._folder.remove_folder(STAGING_NAME)
                held = None
        self._take_back(staged, found)
        refuse_small_disk(self.path, space_for(self.path, self._sizes, found))
        if found is None:
            if held is not None:
                drop_staging(self._folder, held)
            self._held = self._open.enter_context(begin_staging(self._folder))
        else:
            self._journal = replace(found, publishing={})
            drop_all_but(self._held, self.sealed)
        try:
            # Rewritten: a torn last line must not be followed by whole ones, nor a line whose
            # fsync failed be relied on.
            write_journal(self._held, self._journal)
            self._held.sync()
            self._folder.sync()
        except BaseException:
            if found is None:
                with suppress(OutputError):
                    drop_staging(self._folder, self._held)
            raise
        step("journal begun")

    def _to_resume(self, staged: Journal | None) -> Journal | None:
        """Tell what of the staged work is wanted: this conversion's, unless it is to be dropped."""
        if staged is None or self._restart:
            return None
        if self._overwrite and staged.fingerprint != self._journal.fingerprint:
            return None
        refuse_other_work(self.staging, staged, self._journal.fingerprint, self._sizes)
        return staged

    def _take_back(self, staged: Journal | None, resumed: Journal | None) -> None:
        """Make staged work again of what an earlier run had begun to publish.

        Where staged work is dropped, so is this; with `overwrite` it is replaced like any other.
        """
        moved: set[str] = set()
        if staged is not None and (resumed is not None or not self._overwrite):
            sums = {
                name: one
                for name, one in staged.publishing.items()
                if may_be_ours(name, self._sizes)
            }
            moved = find_moved(self._held, self._folder, sums, self._watch)
            is_done = moved == set(staged.publishing)
            if is_done and staged.fingerprint != self._journal.fingerprint:
                moved = set()  # another conversion came to its end: this is its model
        self._refuse_content(moved, resumed=resumed is not None)
        if moved:
            unpublish(self._held, self._folder, moved)

    def _refuse_content(self, moved: Collection[str] = (), *, resumed: bool = False) -> None:
        written = [name for name, n_bytes in self._sizes.items() if n_bytes]
        refuse_content(self.path, written, overwrite=self._overwrite, moved=moved, resumed=resumed)

    def keeps(self, name: str, header: bytes, buffer: memoryview) -> bool:
        """Tell whether a file was sealed, and is still what its journal line says.

        One that is not, or cannot be read, is forgotten and has to be written again.

        Args:
            name: Its final name.
            header: The bytes that it must begin with.
            buffer: From `aligned_buffer`, to read into.

        Returns:
            Whether it can stay.

        Raises:
            OutputError: If the journal cannot be written.
        """
        sealed = self._journal.sealed.get(name)
        if sealed is None:
            return False
        with suppress(OSError, OutputError):
            if is_whole(self._held, name, sealed, header=header, buffer=buffer, watch=self._watch):
                return True
        self.forget(name)
        return False

    def forget(self, name: str) -> None:
        """Drop the record of a file that has to be written again.

        Raises:
            OutputError: If the journal cannot be written.
        """
        del self._journal.sealed[name]
        write_journal(self._held, self._journal)

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
            part = self.staging / f"{name}.{secrets.token_hex(4)}.part"
            try:
                with OutputFile(part, opener=self._held.open_path) as output:
                    if not output.reserve(n_bytes):
                        n_promised += n_bytes
                        refuse_promise(self.path, n_promised)
            except OutputError as problem:
                cause = problem.__cause__
                if isinstance(cause, OSError) and cause.errno in _NOT_THE_DISK:
                    raise
                # FAT32, as external disks have it, ends at 4 GB a file.
                is_too_large = isinstance(cause, OSError) and cause.errno == errno.EFBIG
                way_out = "set a smaller --max_shard_size" if is_too_large else "free some space"
                raise OutputError(
                    f"cannot reserve {n_bytes} bytes for {name}: {cause_of(problem)}; "
                    f"{format_size(sum(sizes.values()))} are needed in all",
                    path=self.path,
                    hint=f"{way_out}, or {ANOTHER_PLACE}",
                ) from problem
            self._parts[name] = part
            step("space reserved")

    def open_part(self, name: str, *, io_mode: IoMode = "buffered") -> OutputFile:
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
            self._parts[name], io_mode=io_mode, reserved=True, opener=self._held.open_path
        )

    def seal(self, output: OutputFile, name: str, header: bytes) -> None:
        """Write a file's header, save it to the disk and give it its name in the staging folder.

        The data is on the disk before the header is written: a torn file has none, and a file
        without one cannot be loaded.

        Args:
            output: From `open_part`, its data written; this closes it.
            name: Its final name.
            header: The bytes in front of its data.

        Raises:
            OutputError: If the disk did not take all of it.
        """
        output.sync()
        step("data saved")
        output.write_at(0, header)
        output.sync()
        step("header saved")
        output.close()
        rename(self._held, output.path.name, self._held, name)
        self._held.sync()
        step("file named")

    def note_sealed(self, sealed: SealedFile) -> None:
        """Write into the journal that a file is whole.

        Raises:
            OutputError: If the journal cannot be written.
        """
        append_sealed(self._held, sealed)
        self._journal.sealed[sealed.name] = sealed
        step("file journaled")

    def add(self, name: str, content: Content) -> FileSum:
        """Write a small file whole into the staging folder; the errors of `reserve` and `seal`.

        Its name is on the disk after `commit` only: until then it would be written again anyway.

        Returns:
            What it is.
        """
        self.reserve({name: len(content)})
        crc = n_bytes = 0
        with self.open_part(name) as output:
            for chunk in chunks_of(content):
                output.write_at(n_bytes, chunk)
                n_bytes += len(chunk)
                crc = zlib.crc32(chunk, crc)
            assert n_bytes == len(content)
            output.sync()
        rename(self._held, output.path.name, self._held, name)
        self._added[name] = FileSum(n_bytes, crc)
        step("small file named")
        return self._added[name]

    def commit(self) -> None:
        """Write into the journal that everything staged is whole and goes out.

        Raises:
            OutputError: If it would replace what came meanwhile, or the journal cannot be written.
        """
        self._refuse_content(resumed=True)  # what came while this ran
        if not self._held.is_in_its_place():  # what was checked there was not what goes out
            raise OutputError("was moved away while it was in use", path=self.staging, hint=_AGAIN)
        # Not what the folder holds: somebody else may have put something there.
        sums = {one.name: FileSum(one.n_bytes, one.crc32) for one in self.sealed.values()}
        sums |= self._added
        self._held.sync()
        append_publishing(self._held, sums)
        self._journal.publishing = sums
        step("publishing journaled")

    def publish(self) -> tuple[str, ...]:
        """Move everything that was committed into place, what loaders begin with last.

        Returns:
            The names of the published files.

        Raises:
            OutputError: If a file cannot be moved; the folder then holds nothing that loads.
        """
        names = tuple(sorted(self._journal.publishing))
        publish(self._held, self._folder, names)
        clear_staging(self._folder, self._held)
        return names

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if value is None:
            self._lock.release()
            self._open.close()
            return
        # What matters is the problem that is under way, not those of cleaning up after it.
        with suppress(OSError, OutputError):
            if not self._journal.publishing:
                self._keep_what_can_go_on(value)
        self._leave()

    def _keep_what_can_go_on(self, problem: BaseException) -> None:
        """Drop what is staged, unless the same command can resume it.

        It can after a signal, on a disk that was full, or when the source can be read again. What
        a damaged source or a failing cast has left is not worth keeping.
        """
        can_go_on = (
            not isinstance(problem, ConvertError)
            or isinstance(problem, Interrupted | OutputError)
            or isinstance(problem.__cause__, OSError)
        )
        if can_go_on and (self.sealed or isinstance(problem, Interrupted)):
            drop_parts(self._held)
        else:
            drop_staging(self._folder, self._held)

    def _leave(self) -> None:
        self._lock.release()
        self._open.close()
        with suppress(OSError):
            self.path.rmdir()  # only if it is empty


def cause_of(problem: OutputError) -> str:
    """Give the system's words behind a problem, or its own."""
    cause = problem.__cause__
    return first_line(cause) if isinstance(cause, OSError) else problem.message
