"""Own a folder that is held open: what is done by name in it stays in it, whatever takes its place.

A neighbour who may write where it lies can put a link, a FIFO or another folder in the way between
two calls. Names are looked up from the open folder, links are not followed, and a file counts as
ours only if it is a regular one of this user that no other name leads to.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from codellama_convert.errors import OutputError
from codellama_convert.storage.blocks import first_line, flags_of
from codellama_convert.storage.folders import sync_entries

_CAN_HOLD = {os.open, os.mkdir, os.rename, os.rmdir, os.stat, os.unlink} <= os.supports_dir_fd
_ANOTHER_PLACE = "remove it if it is not needed, or name another place with --output_dir"


class HeldFolder:
    """An open folder.

    Attributes:
        path: Where it was when it was opened; for messages, and where it cannot be held.
        fd: Its descriptor; None where the platform does not look up names in one.
    """

    def __init__(
        self, path: Path, *, within: HeldFolder | None = None, is_looked_at: bool = False
    ) -> None:
        """Open a folder.

        Args:
            path: The folder; it may be a link to one, unless it is in a held one.
            within: The held folder that it is in.
            is_looked_at: Whether nothing may be written in it, so that only what has this user's
                own id counts as ours.

        Raises:
            OSError: If there is none, or it is a link in a held folder.
        """
        self.path = path
        self._within = within
        self._is_looked_at = is_looked_at
        self.fd: int | None = None
        self._given_uid: int | None = None
        if not _CAN_HOLD:
            if within is not None and path.is_symlink():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            return
        flags = os.O_RDONLY | flags_of("O_DIRECTORY", "O_CLOEXEC")
        if within is None:
            self.fd = os.open(path, flags)
        else:
            self.fd = os.open(path.name, flags | flags_of("O_NOFOLLOW"), dir_fd=within.fd)

    def _at(self, name: str) -> str | Path:
        return self.path / name if self.fd is None else name

    def keep_private(self) -> None:
        """Let nobody else look into the folder, where the file system knows of that."""
        if sys.platform != "win32" and self.fd is not None:
            with suppress(OSError):
                if os.fstat(self.fd).st_mode & 0o077:
                    os.fchmod(self.fd, 0o700)

    def refuse_another_owner(self) -> None:
        """Refuse a folder that another user has made.

        Raises:
            OutputError: If its owner is somebody else.
        """
        status = self.path.stat() if self.fd is None else os.fstat(self.fd)
        self._refuse_owner(status, self.path)

    def refuse_another_owner_of(self, name: str) -> None:
        """Refuse an entry that another user has made; it may be one that we may not open.

        Raises:
            OSError: If it cannot be looked at.
            OutputError: If its owner is somebody else.
        """
        self._refuse_owner(self.status(name), self.path / name)

    def _refuse_owner(self, status: os.stat_result, path: Path) -> None:
        if not self._is_ours(status):
            raise OutputError(
                f"belongs to another user (uid {status.st_uid})", path=path, hint=_ANOTHER_PLACE
            )

    def _is_ours(self, status: os.stat_result) -> bool:
        if sys.platform == "win32":
            return True
        else:  # noqa: RET505 - mypy takes what follows for unreachable there
            is_plain = status.st_uid == os.geteuid()
            return is_plain or status.st_uid == (self._within or self).uid_of_new_files()

    def uid_of_new_files(self) -> int:
        """Find whose the files are that this user makes here: some mounts give all to one user."""
        if self._is_looked_at:
            return -1
        if self._given_uid is None:
            name = f".{os.urandom(8).hex()}.part"
            try:
                fd = os.open(
                    self._at(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self.fd
                )
            except OSError:
                return -1
            self._given_uid = os.fstat(fd).st_uid
            os.close(fd)
            with suppress(OSError):
                os.unlink(self._at(name), dir_fd=self.fd)
        return self._given_uid

    def open(self, name: str, flags: int) -> int:
        """Open or create a file of ours.

        Args:
            name: Its name in the folder.
            flags: As of `os.open`.

        Returns:
            A descriptor.

        Raises:
            OSError: If it cannot be opened, is a link, or is not ours.
        """
        # O_NONBLOCK: opening a FIFO would wait for its other end.
        flags |= flags_of("O_CLOEXEC", "O_BINARY", "O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY")
        fd = os.open(self._at(name), flags, 0o666, dir_fd=self.fd)  # less the user's umask
        try:
            self._refuse_strangers(os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def open_path(self, path: Path, flags: int) -> int:
        """Open or create a file of ours by its whole path; as `open`."""
        return self.open(path.name, flags)

    def refuse_strangers(self, name: str) -> None:
        """Refuse what is not a file of ours.

        Raises:
            OSError: If it is not, or cannot be looked at.
        """
        self._refuse_strangers(self.status(name))

    def _refuse_strangers(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file")
        if not self._is_ours(status):
            raise OSError(errno.EPERM, f"belongs to another user (uid {status.st_uid})")
        if status.st_nlink > 1:
            raise OSError(errno.EMLINK, "has a second name somewhere (a hard link)")

    def status(self, name: str) -> os.stat_result:
        """Look at an entry itself; a link is not followed.

        Raises:
            OSError: If the system says so.
        """
        return os.stat(self._at(name), dir_fd=self.fd, follow_symlinks=False)

    def is_folder(self, name: str) -> bool:
        """Return whether an entry is a folder itself, and not a link to one; False where it is gone.

        Raises:
            OSError: If the system says so.
        """
        try:
            return stat.S_ISDIR(self.status(name).st_mode)
        except FileNotFoundError:
            return False

    def names(self) -> set[str]:
        """List the folder.

        Raises:
            OutputError: If it cannot be read.
        """
        try:
            with os.scandir(self.path if self.fd is None else self.fd) as entries:
                return {entry.name for entry in entries}
        except OSError as problem:
            raise OutputError(f"cannot list: {first_line(problem)}", path=self.path) from problem

    def make_folder(self, name: str) -> None:
        """Make a folder that only this user may look into.

        Raises:
            OSError: If the system says so.
        """
        os.mkdir(self._at(name), 0o700, dir_fd=self.fd)

    def remove(self, name: str) -> None:
        """Remove an entry, and what is in it; nothing to do where it is gone.

        Raises:
            OSError: If the system says so.
        """
        if not self.is_folder(name):
            with suppress(FileNotFoundError):
                os.unlink(self._at(name), dir_fd=self.fd)
        elif sys.version_info >= (3, 11) and self.fd is not None:
            shutil.rmtree(name, dir_fd=self.fd)
        else:
            shutil.rmtree(self.path / name)

    def remove_folder(self, name: str) -> None:
        """Remove an empty folder.

        Raises:
            OSError: If it is not empty, or the system says so.
        """
        os.rmdir(self._at(name), dir_fd=self.fd)

    def rename(self, name: str, folder: HeldFolder, new_name: str) -> None:
        """Rename a file; what has the new name is replaced, and a link there is not followed.

        Args:
            name: Its name.
            folder: The folder that it goes to, this one or another.
            new_name: Its name there.

        Raises:
            OSError: If the system says so.
        """
        os.replace(self._at(name), folder._at(new_name), src_dir_fd=self.fd, dst_dir_fd=folder.fd)

    def sync(self) -> None:
        """Wait until the folder's entries are on the disk; nothing to do where it is not held.

        Raises:
            OutputError: If the disk says that they are not.
        """
        if self.fd is not None:
            sync_entries(self.fd, self.path)

    def is_in_its_place(self) -> bool:
        """Return whether the path still leads to this folder."""
        if self.fd is None:
            return True
        try:
            return os.path.samestat(os.fstat(self.fd), self.path.stat())
        except OSError:
            return False

    def close(self) -> None:
        """Let it go; may be called twice."""
        fd, self.fd = self.fd, None
        if fd is not None:
            with suppress(OSError):  # nothing was written that could be lost
                os.close(fd)

    def __enter__(self) -> HeldFolder:  # noqa: PYI034 - typing.Self is not in Python 3.10
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
