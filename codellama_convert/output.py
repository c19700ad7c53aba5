"""Own the output folder: a lock, a staging folder inside it, and the order of publishing.

Until the last rename nothing in the folder can be loaded; after it, all of it can. Know nothing of
what the files hold.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from codellama_convert.errors import OutputError
from codellama_convert.files import IoMode, OutputFile, first_line
from codellama_convert.safetensors_io import INDEX_NAME, SINGLE_FILE_NAME

STAGING_NAME = ".codellama-convert.partial"
LOCK_NAME = ".codellama-convert.lock"
_SHARD_NAME = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
# A loader begins with one of these: they are removed first and appear last.
_ENTRANCES = (INDEX_NAME, SINGLE_FILE_NAME)


def sync_folder(folder: Path) -> None:
    """Wait until a folder's entries are on the disk; a no-op where folders cannot be opened.

    Raises:
        OutputError: If the disk says that they are not.
    """
    if os.name == "nt":
        return
    try:
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as problem:
        if problem.errno in (errno.EINVAL, errno.ENOTSUP):  # some network mounts
            return
        raise OutputError(
            f"cannot save to disk (fsync): {first_line(problem)}", path=folder
        ) from problem


class OutputFolder:
    """The folder that receives a converted model.

    Attributes:
        path: The folder.
        staging: Where files stand until all of them are whole.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        """Name the folder; nothing is touched before `__enter__`.

        Args:
            path: The folder; it need not exist.
            overwrite: Whether a model that it holds may be replaced.
        """
        self.path = path
        self.staging = path / STAGING_NAME
        self._overwrite = overwrite
        self._lock_fd: int | None = None

    def __enter__(self) -> OutputFolder:  # noqa: PYI034 - typing.Self is not in Python 3.10
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._refuse_content()
            self._take_lock()
            shutil.rmtree(self.staging, ignore_errors=True)
            self.staging.mkdir()
        except OSError as problem:
            self._release_lock()
            raise OutputError(f"cannot create: {first_line(problem)}", path=self.path) from problem
        return self

    def _refuse_content(self) -> None:
        own = {STAGING_NAME, LOCK_NAME}
        content = sorted(entry.name for entry in self.path.iterdir() if entry.name not in own)
        if content and not self._overwrite:
            raise OutputError(
                f"the output folder is not empty ({content[0]!r}"
                + (f" and {len(content) - 1} more)" if len(content) > 1 else ")"),
                path=self.path,
                hint="name another with --output_dir, or replace the model in it with --overwrite",
            )

    def _take_lock(self) -> None:
        try:
            import fcntl  # noqa: PLC0415 - the module does not exist on Windows
        except ImportError:
            return
        path = self.path / LOCK_NAME
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._lock_fd = fd
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between open and flock the other run may have finished and removed its lock.
            is_held = os.fstat(fd).st_ino == path.stat().st_ino
        except (BlockingIOError, FileNotFoundError):
            is_held = False
        if not is_held:
            os.close(fd)
            self._lock_fd = None
            raise OutputError(
                "another conversion is running in this folder", path=self.path, hint="wait for it"
            )

    def _release_lock(self) -> None:
        if self._lock_fd is not None:
            with suppress(OSError):
                (self.path / LOCK_NAME).unlink()
            os.close(self._lock_fd)
            self._lock_fd = None

    def create(self, name: str, n_bytes: int, *, io_mode: IoMode = "buffered") -> OutputFile:
        """Begin a file in the staging folder, its space reserved.

        Args:
            name: Its final name.
            n_bytes: Its size.
            io_mode: How it is written.

        Returns:
            The open file, under a name that no other run uses.

        Raises:
            OutputError: If it cannot be created, or the disk has not the space.
        """
        part = self.staging / f"{name}.{secrets.token_hex(4)}.part"
        output = OutputFile(part, io_mode=io_mode)
        try:
            output.reserve(n_bytes)
        except OutputError:
            output.abandon()
            raise
        return output

    def seal(self, output: OutputFile, name: str) -> None:
        """Save a whole file to the disk and give it its name in the staging folder.

        Args:
            output: From `create`; closed hereafter.
            name: Its final name.

        Raises:
            OutputError: If the disk did not take all of it.
        """
        output.sync()
        output.close()
        self._rename(output.path, self.staging / name)
        sync_folder(self.staging)

    def add(self, name: str, content: bytes) -> None:
        """Write a small file whole into the staging folder; the errors of `create` and `seal`."""
        output = self.create(name, len(content))
        try:
            output.write_at(0, content)
            self.seal(output, name)
        finally:
            output.abandon()

    def _rename(self, source: Path, target: Path) -> None:
        try:
            source.replace(target)
        except OSError as problem:
            raise OutputError(f"cannot rename: {first_line(problem)}", path=target) from problem

    def publish(self) -> None:
        """Move everything that is staged into place, the file that loaders begin with last.

        Raises:
            OutputError: If a file cannot be moved; the folder then holds nothing that loads.
        """
        names = sorted(entry.name for entry in self.staging.iterdir())
        entrances = [name for name in names if name in _ENTRANCES]
        if entrances:
            self._remove_old_model()
        for name in names:
            if name not in entrances:
                self._rename(self.staging / name, self.path / name)
        sync_folder(self.path)
        for name in entrances:
            self._rename(self.staging / name, self.path / name)
        sync_folder(self.path)

    def _remove_old_model(self) -> None:
        try:
            for name in _ENTRANCES:
                (self.path / name).unlink(missing_ok=True)
            sync_folder(self.path)
            for entry in self.path.iterdir():
                if _SHARD_NAME.fullmatch(entry.name):
                    entry.unlink()
        except OSError as problem:
            raise OutputError(
                f"cannot remove the old model: {first_line(problem)}", path=self.path
            ) from problem

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)
        self._release_lock()
        if value is not None:
            with suppress(OSError):
                self.path.rmdir()  # only if it is empty


def refuse_same_folder(output_dir: Path, input_dir: Path) -> None:
    """Refuse to write into the checkpoint's own folder.

    Raises:
        OutputError: If the two are one folder.
    """
    if output_dir.exists() and output_dir.resolve() == input_dir.resolve():
        raise OutputError(
            "the output folder is the input folder",
            path=output_dir,
            hint="name another with --output_dir",
        )


def free_bytes(folder: Path) -> int:
    """Tell how much space a folder's file system has for this user.

    Args:
        folder: It need not exist yet; the nearest parent that does is asked.

    Returns:
        Bytes.
    """
    for place in (folder.absolute(), *folder.absolute().parents):
        if place.exists():
            return shutil.disk_usage(place).free
    return 0
