"""Own the output folder as the tasks of a job array share it: each seals some files, and none publishes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from codellama_convert.errors import OutputError
from codellama_convert.staging.crash_points import step
from codellama_convert.staging.part_files import PartFiles
from codellama_convert.staging.record_values import SealedFile
from codellama_convert.staging.records import Journal, append_sealed, as_journaled, write_journal
from codellama_convert.staging.resume import Wanted
from codellama_convert.staging.space import ANOTHER_PLACE
from codellama_convert.staging.staged import (
    STAGING_NAME,
    hold_staging,
    read_staged,
    refuse_other_work,
)
from codellama_convert.staging.task_journals import new_journal_name
from codellama_convert.storage.blocks import first_line
from codellama_convert.storage.folders import make_folder
from codellama_convert.storage.held_folder import HeldFolder
from codellama_convert.storage.lock import FolderLock


class TaskFolder:
    """The output folder of a conversion, open for one task of several that may run at once.

    Attributes:
        path: The folder.
        parts: Writes files into its staging folder.
        sealed: The files that were whole there when it was opened, by whichever task.
        is_publishing: Whether the conversion has begun to publish, so that no task has anything to do.
    """

    def __init__(self, path: Path, wanted: Wanted) -> None:
        """Name the folder; nothing is touched before `__enter__`.

        Args:
            path: The folder; it need not exist.
            wanted: The conversion that it is to receive.
        """
        self.path = path
        self.parts: PartFiles  # this and `_held` are there between `__enter__` and `__exit__`
        self.sealed: Mapping[str, SealedFile] = {}
        self.is_publishing = False
        self._held: HeldFolder
        fingerprint = as_journaled(wanted.fingerprint)
        self._wanted = replace(wanted, fingerprint=fingerprint)
        self._journal_name = new_journal_name()
        self._has_sealed = False
        self._open = ExitStack()

    def __enter__(self) -> TaskFolder:  # noqa: PYI034 - typing.Self is not in Python 3.10
        try:
            self._enter()
        except OSError as problem:
            self._open.close()
            what = f"cannot create: {first_line(problem)}"
            raise OutputError(what, path=self.path, hint=ANOTHER_PLACE) from problem
        except BaseException:
            self._open.close()
            raise
        return self

    def _enter(self) -> None:
        make_folder(self.path)
        staging = self.path / STAGING_NAME
        if not os.path.lexists(staging):
            self._wanted.refuse_content(self.path)  # before the lock, which stays
        folder = self._open.enter_context(HeldFolder(self.path))
        # Whoever finishes holds it alone, and must not drop what a task is writing.
        lock = FolderLock(self.path, shared=True)
        self._open.callback(lock.release)
        lock.take()
        held = hold_staging(folder)
        if held is None:
            self._wanted.refuse_content(self.path)
            with suppress(FileExistsError):  # of another task
                folder.make_folder(STAGING_NAME)
            held = hold_staging(folder)
        if held is None:
            raise OutputError("was removed", path=staging, hint="run the same command again")
        self._held = self._open.enter_context(held)
        staged = read_staged(held, restart=False)
        if staged is not None and staged.holds_work:
            refuse_other_work(
                staging, staged, self._wanted.fingerprint, self._wanted.sizes,
                discard="with --restart in the command without --part",
            )  # fmt: skip
            self.sealed, self.is_publishing = staged.sealed, bool(staged.publishing)
        self.parts = PartFiles(held, self._wanted.side)
        if self.is_publishing:
            return  # a journal of one that died then is to be left as it is
        write_journal(held, Journal(self._wanted.fingerprint), self._journal_name)
        held.sync()
        step("task journal begun")

    def is_there(self, name: str) -> bool:
        """Return whether a file was sealed and still has its size; its bytes are read at the end."""
        sealed = self.sealed.get(name)
        try:
            return sealed is not None and self._held.status(name).st_size == sealed.n_bytes
        except OSError:
            return False

    def seal(self, part: str, sealed: SealedFile) -> None:
        """Give a file that is whole its name, and note that in this task's journal.

        Another task may have written the same one: its bytes are the same.

        Raises:
            OutputError: If the file system does not.
        """
        self.parts.name(part, sealed.name)
        append_sealed(self._held, sealed, self._journal_name)
        self._has_sealed = True
        step("task file journaled")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.parts.drop_own()
        if not self._has_sealed:
            with suppress(OSError):
                self._held.remove(self._journal_name)
        self._open.close()
