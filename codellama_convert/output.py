"""Own the output folder: a lock, a staging folder inside it, and the order of publishing.

Until the last rename nothing in the folder can be loaded; after it, all of it can. Know nothing of
what the files hold.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from codellama_convert.errors import ConvertError, Interrupted, OutputError
from codellama_convert.faults import step
from codellama_convert.files import IoMode, first_line
from codellama_convert.folder_lock import LOCK_NAME, FolderLock
from codellama_convert.folders import make_folder, sync_folder
from codellama_convert.journal import (
    Journal,
    SealedFile,
    append_publishing,
    append_sealed,
    differences,
    read_journal,
    write_journal,
)
from codellama_convert.output_file import OutputFile
from codellama_convert.safetensors_io import INDEX_NAME, SINGLE_FILE_NAME
from codellama_convert.sizes import format_size

STAGING_NAME = ".codellama-convert.partial"
JOURNAL_NAME = "journal.jsonl"
# What a conversion writes beside the weights; of an older model, these are removed.
OWN_SMALL_FILES = frozenset(
    {
        "config.json", "conversion.json", "generation_config.json", "special_tokens_map.json",
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    }
)  # fmt: skip
_SHARD_NAME = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_ANOTHER_PLACE = "name another place with --output_dir"
# A loader begins with one of these: they are removed first and appear last.
_ENTRANCES = (INDEX_NAME, SINGLE_FILE_NAME)


class OutputFolder:
    """The folder that receives a converted model.

    Attributes:
        path: The folder.
        staging: Where files stand until all of them are whole.
    """

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, Any],
        *,
        overwrite: bool = False,
        restart: bool = False,
    ) -> None:
        """Name the folder; nothing is touched before `__enter__`.

        Args:
            path: The folder; it need not exist.
            identity: The inputs and options of the conversion; staged work of the same goes on.
            overwrite: Whether a model that it holds may be replaced.
            restart: Whether staged work is dropped.
        """
        self.path = path
        self.staging = path / STAGING_NAME
        self._journal_path = self.staging / JOURNAL_NAME
        self._journal = Journal(json.loads(json.dumps(identity)))
        self._overwrite, self._restart = overwrite, restart
        self._parts: dict[str, Path] = {}
        self._lock = FolderLock(path)

    @property
    def sealed(self) -> Mapping[str, SealedFile]:
        """The staged files that are whole, by name."""
        return self._journal.sealed

    @property
    def publishing(self) -> bool:
        """Whether everything is whole, and an earlier run had begun to publish it."""
        return bool(self._journal.publishing)

    def __enter__(self) -> OutputFolder:  # noqa: PYI034 - typing.Self is not in Python 3.10
        try:
            make_folder(self.path)
            if not self.staging.exists():
                self._refuse_content(None)  # before anything in the folder is touched
            self._lock.take()
            step("locked")
            self._resume_or_begin()
        except OSError as problem:
            self._lock.release()
            raise OutputError(
                f"cannot create: {first_line(problem)}", path=self.path, hint=_ANOTHER_PLACE
            ) from problem
        except BaseException:
            self._lock.release()
            raise
        return self

    def _resume_or_begin(self) -> None:
        found = None if self._restart else read_journal(self._journal_path)
        if found is not None and found.identity != self._journal.identity and not self._overwrite:
            named = "; ".join(differences(found.identity, self._journal.identity))
            raise OutputError(
                f"holds staged work of another conversion: {named}",
                path=self.path,
                hint="give the same options to resume it, or --restart to drop it",
            )
        if found is None or found.identity != self._journal.identity:
            self._refuse_content(None)
            shutil.rmtree(self.staging, ignore_errors=True)
            self.staging.mkdir()
        else:
            self._refuse_content(found)
            self._journal = found
            for part in self.staging.glob("*.part"):
                part.unlink()
        if not self.publishing:
            # Written anew: a torn last line must not be followed by whole ones.
            write_journal(self._journal_path, self._journal)
            sync_folder(self.staging)
            sync_folder(self.path)
        step("journal begun")

    def _refuse_content(self, resumed: Journal | None) -> None:
        """Refuse a folder that holds something, unless it is ours to go on with or to replace."""
        own = {STAGING_NAME, LOCK_NAME}
        content = sorted(entry.name for entry in self.path.iterdir() if entry.name not in own)
        if resumed is not None:
            # Of a resumed run, only a model that somebody put there meanwhile is in the way.
            moved = set(resumed.publishing)
            content = [name for name in content if name in _ENTRANCES and name not in moved]
        if content and not self._overwrite:
            raise OutputError(
                f"the output folder is not empty ({content[0]!r}"
                + (f" and {len(content) - 1} more)" if len(content) > 1 else ")"),
                path=self.path,
                hint="name another with --output_dir, or replace the model in it with --overwrite",
            )

    def forget(self, name: str) -> None:
        """Drop a sealed file that is not what its journal line says; it is written anew."""
        self._journal.sealed.pop(name, None)
        write_journal(self._journal_path, self._journal)

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
                with OutputFile(part) as output:
                    if not output.reserve(n_bytes):
                        n_promised += n_bytes
                        self._refuse_promise(n_promised)
            except OutputError as problem:
                raise OutputError(
                    f"cannot reserve {n_bytes} bytes for {name}: {cause_of(problem)}; "
                    f"{format_size(sum(sizes.values()))} are needed in all",
                    path=self.path,
                    hint=f"free some space, or {_ANOTHER_PLACE}",
                ) from problem
            self._parts[name] = part
            step("space reserved")

    def _refuse_promise(self, n_bytes: int) -> None:
        """Where space cannot be taken, compare at least with what is free now."""
        usage = shutil.disk_usage(self.path)
        if usage.total and n_bytes > usage.free:  # some network mounts say 0 of everything
            raise OutputError(os.strerror(errno.ENOSPC), path=self.path)

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
        return OutputFile(self._parts[name], io_mode=io_mode, reserved=True)

    def seal(self, output: OutputFile, name: str, header: bytes) -> None:
        """Write a file's header, save it to the disk and give it its name in the staging folder.

        The data is on the disk before the header is written: a torn file has none, and a file
        without one cannot be loaded.

        Args:
            output: From `open_part`, its data written; closed hereafter.
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
        self._rename(output.path, self.staging / name)
        sync_folder(self.staging)
        step("file named")

    def note_sealed(self, sealed: SealedFile) -> None:
        """Write into the journal that a file is whole.

        Raises:
            OutputError: If the journal cannot be written.
        """
        append_sealed(self._journal_path, sealed)
        self._journal.sealed[sealed.name] = sealed
        step("file journaled")

    def add(self, name: str, content: bytes) -> None:
        """Write a small file whole into the staging folder; the errors of `reserve` and `seal`.

        Its name is on the disk after `commit` only: until then it would be written anew anyhow.
        """
        self.reserve({name: len(content)})
        with self.open_part(name) as output:
            output.write_at(0, content)
            output.sync()
        self._rename(output.path, self.staging / name)
        step("small file named")

    def _rename(self, source: Path, target: Path) -> None:
        try:
            source.replace(target)
        except OSError as problem:
            raise OutputError(f"cannot rename: {first_line(problem)}", path=target) from problem

    def commit(self) -> None:
        """Write into the journal that everything staged is whole and goes out.

        Raises:
            OutputError: If the journal cannot be written.
        """
        names = tuple(sorted(e.name for e in self.staging.iterdir() if e.name != JOURNAL_NAME))
        sync_folder(self.staging)
        append_publishing(self._journal_path, names)
        self._journal.publishing = names
        step("publishing journaled")

    def publish(self) -> tuple[str, ...]:
        """Move everything that was committed into place, what loaders begin with last.

        Returns:
            The names of the published files.

        Raises:
            OutputError: If a file cannot be moved; the folder then holds nothing that loads.
        """
        names = self._journal.publishing
        waiting = {name for name in names if (self.staging / name).exists()}
        entrances = [name for name in names if name in _ENTRANCES]
        if waiting.intersection(entrances):
            self._remove_old_model(keep={name for name in names if name not in waiting})
        for name in sorted(waiting.difference(entrances)):
            self._rename(self.staging / name, self.path / name)
            step("file moved")
        sync_folder(self.path)
        for name in sorted(waiting.intersection(entrances)):
            self._rename(self.staging / name, self.path / name)
        sync_folder(self.path)
        step("published")
        self._drop_staging()
        return names

    def _remove_old_model(self, keep: Collection[str]) -> None:
        """Remove an older model, first what loaders begin with; `keep` was moved here already."""
        try:
            for name in _ENTRANCES:
                (self.path / name).unlink(missing_ok=True)
            sync_folder(self.path)
            step("old index removed")
            for entry in sorted(self.path.iterdir()):
                is_old = _SHARD_NAME.fullmatch(entry.name) or entry.name in OWN_SMALL_FILES
                if is_old and entry.name not in keep:
                    entry.unlink()
                    step("old file removed")
            sync_folder(self.path)
        except OSError as problem:
            raise OutputError(
                f"cannot remove the old model: {first_line(problem)}", path=self.path
            ) from problem

    def _drop_staging(self) -> None:
        """Remove the staging folder, the journal last: until then it can tell what happened."""
        with suppress(OSError):
            for entry in self.staging.iterdir():
                if entry.name != JOURNAL_NAME:
                    entry.unlink()
            step("staging emptied")
            self._journal_path.unlink(missing_ok=True)
            self.staging.rmdir()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if value is not None and not self.publishing:
            # Whole files are worth keeping where the same command can go on: after a signal, or on
            # a disk that was full. What a damaged source or a failing cast has left is not.
            hopeless = isinstance(value, ConvertError) and not isinstance(
                value, Interrupted | OutputError
            )
            if hopeless or not (self.sealed or isinstance(value, Interrupted)):
                shutil.rmtree(self.staging, ignore_errors=True)
            else:
                for part in self.staging.glob("*.part"):
                    part.unlink(missing_ok=True)
        self._lock.release()
        if value is not None:
            with suppress(OSError):
                self.path.rmdir()  # only if it is empty


def cause_of(problem: OutputError) -> str:
    """Give the system's words behind a problem, or its own."""
    cause = problem.__cause__
    return first_line(cause) if isinstance(cause, OSError) else problem.message
