"""Own the output folder: a lock, a staging folder inside it, and the order of publishing.

Until the last rename nothing in the folder can be loaded; after it, all of it can.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from codellama_convert.errors import ConvertError, Interrupted, OutputError
from codellama_convert.staging.crash_points import step
from codellama_convert.staging.part_files import PartFiles
from codellama_convert.staging.publish import publish
from codellama_convert.staging.record_values import FileSum, SealedFile
from codellama_convert.staging.records import (
    Journal,
    append_publishing,
    append_sealed,
    as_journaled,
    write_journal,
)
from codellama_convert.staging.resume import Wanted, resume_or_begin
from codellama_convert.staging.run_token import drop_token, put_token
from codellama_convert.staging.space import ANOTHER_PLACE, NOT_THE_DISK
from codellama_convert.staging.staged import (
    STAGING_NAME,
    clear_staging,
    drop_entries,
    drop_parts,
    drop_staging,
    is_whole,
)
from codellama_convert.storage.blocks import first_line
from codellama_convert.storage.contents import Content
from codellama_convert.storage.folders import make_folder
from codellama_convert.storage.held_folder import HeldFolder
from codellama_convert.storage.lock import FolderLock

_AGAIN = "run the same command again"


class OutputFolder:
    """The folder that receives a converted model.

    Attributes:
        path: The folder.
        staging: Where files stand until all of them are whole.
        parts: Writes files there.
    """

    def __init__(self, path: Path, wanted: Wanted) -> None:
        """Name the folder; nothing is touched before `__enter__`.

        Args:
            path: The folder; it need not exist.
            wanted: The conversion that it is to receive; staged work of the same is resumed.
        """
        self.path = path
        self.staging = path / STAGING_NAME
        self.parts: PartFiles  # these are there between `__enter__` and `__exit__`
        self._folder: HeldFolder
        self._held: HeldFolder
        fingerprint = as_journaled(wanted.fingerprint)
        self._wanted = replace(wanted, fingerprint=fingerprint)
        self._journal = Journal(fingerprint)
        self._added: dict[str, FileSum] = {}
        self._lock = FolderLock(path)
        self._open = ExitStack()

    @property
    def sealed(self) -> Mapping[str, SealedFile]:
        """The staged files that are whole, by name."""
        return self._journal.sealed

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """The inputs and options of the conversion, as a journal gives them back."""
        return self._wanted.fingerprint

    def begin_run(self) -> str:
        """Let workers elsewhere know that the run goes; the errors of `put_token`.

        Returns:
            What they are given.
        """
        return put_token(self._held)

    def end_run(self) -> None:
        """Let them know that it is over."""
        drop_token(self._held)

    def __enter__(self) -> OutputFolder:  # noqa: PYI034 - typing.Self is not in Python 3.10
        try:
            make_folder(self.path)
            if not os.path.lexists(self.staging):
                self._wanted.refuse_content(self.path)  # before anything in the folder is touched
            self._folder = self._open.enter_context(HeldFolder(self.path))
            self._lock.take()
            step("locked")
            self._resume_or_begin()
        except OSError as problem:
            self._leave()
            what = f"cannot create: {first_line(problem)}"
            if isinstance(problem, FileExistsError) and self.path.exists():
                what = f"is a {'file' if self.path.is_file() else 'device'}, not a folder"
            hint = None if problem.errno in NOT_THE_DISK else ANOTHER_PLACE
            raise OutputError(what, path=self.path, hint=hint) from problem
        except BaseException:
            self._leave()
            raise
        return self

    def _resume_or_begin(self) -> None:
        self._held, self._journal = resume_or_begin(self._folder, self._wanted, self._open)
        self.parts = PartFiles(self._held, self._wanted.side)

    def keeps(
        self, name: str, header: bytes, buffer: memoryview, *, is_seen_whole: bool | None = None
    ) -> bool:
        """Return whether a file was sealed, and is still what its journal line says.

        One that is not, or cannot be read, is forgotten and has to be written again.

        Args:
            name: Its final name.
            header: The bytes that it must begin with.
            buffer: From `aligned_buffer`, to read into.
            is_seen_whole: Whether somebody else has just read it and found it so; None reads it.

        Returns:
            Whether it can stay.

        Raises:
            OutputError: As of `forget`.
        """
        sealed = self._journal.sealed.get(name)
        if sealed is None:
            return False
        with suppress(OSError, OutputError):
            if is_seen_whole or (
                is_seen_whole is None
                and is_whole(
                    self._held,
                    name,
                    sealed,
                    header=header,
                    buffer=buffer,
                    check=self._wanted.watch.check,
                )
            ):
                return True
        self.forget(name)
        return False

    def forget(self, name: str) -> None:
        """Drop the record of a file that has to be written again, and what is in its place.

        Raises:
            OutputError: If the journal cannot be written, or what is there cannot be removed.
        """
        del self._journal.sealed[name]
        write_journal(self._held, self._journal)
        drop_entries(self._held, [name])  # no file can take the name of a folder

    def note_sealed(self, sealed: SealedFile) -> None:
        """Write into the journal that a file is whole.

        Raises:
            OutputError: If the journal cannot be written.
        """
        append_sealed(self._held, sealed)
        # What was read for it is for a later run, which reads it from the file: of 405B in 16 ranks
        # it takes 4 MB. Nothing is forgotten, and so written anew, after this.
        self._journal.sealed[sealed.name] = replace(sealed, source=[])
        step("file journaled")

    def add(self, name: str, content: Content) -> FileSum:
        """Write a small file whole into the staging folder; the errors of `PartFiles`.

        Its name is on the disk after `commit` only: until then it would be written again anyway.

        Returns:
            What it is.
        """
        self._added[name] = self.parts.write(name, content)
        step("small file named")
        return self._added[name]

    def commit(self) -> None:
        """Write into the journal that everything staged is whole and goes out.

        Raises:
            OutputError: If it would replace what came meanwhile, or the journal cannot be written.
        """
        self._wanted.refuse_content(self.path, resumed=True)  # what came while this ran
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
        publish(self._held, self._folder, names, self._wanted.side)
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
                self._keep_what_can_be_resumed(value)
        self._leave()

    def _keep_what_can_be_resumed(self, problem: BaseException) -> None:
        """Drop what is staged, unless the same command can resume it."""
        can_resume = not isinstance(problem, ConvertError) or problem.can_resume
        if can_resume and (self.sealed or isinstance(problem, Interrupted)):
            drop_parts(self._held)
        else:
            drop_staging(self._folder, self._held)

    def _leave(self) -> None:
        self._lock.release()
        self._open.close()
        with suppress(OSError):
            self.path.rmdir()  # only if it is empty
