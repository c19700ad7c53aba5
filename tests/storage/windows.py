"""Own the rules of Windows that Linux can enforce: `python -m tests.storage.windows ARGUMENTS` runs under them.

The command line believes that it runs there: `sys.platform` says so, what Python lacks there is taken
away, and an audit hook refuses what Windows refuses. A refusal is told on stderr too, since the
program may survive it.
"""

from __future__ import annotations

import errno
import importlib
import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

REFUSED = "Windows refuses"

_LACKS = (
    "O_CLOEXEC", "O_DIRECT", "O_DIRECTORY", "O_NOCTTY", "O_NOFOLLOW", "O_NONBLOCK", "chown",
    "fchmod", "fchown", "fork", "geteuid", "getuid", "mkfifo", "posix_fadvise", "posix_fallocate",
    "pread", "preadv", "pwrite", "pwritev", "sched_getaffinity",
)  # fmt: skip
_LACKS_MODULES = ("fcntl", "grp", "pwd", "resource", "termios")
# They ask for the platform when they are imported, and are made for this one.
_OTHERS = ("click", "numpy", "safetensors", "sentencepiece", "tqdm")
_WRITES = os.O_WRONLY | os.O_RDWR
_IS_DENIED = (errno.EACCES, os.strerror(errno.EACCES))


def obey() -> None:
    """Put the rules into force for the rest of this process."""
    for name in _OTHERS:
        importlib.import_module(name)
    sys.modules["msvcrt"] = _msvcrt()
    sys.platform = "win32"
    for name in _LACKS:
        delattr(os, name)
    for name in _LACKS_MODULES:
        sys.modules[name] = None
    del signal.SIGHUP, signal.SIGKILL
    os.supports_dir_fd = set()
    os.O_BINARY = 0o100000  # O_LARGEFILE, which changes nothing
    shutil._use_fd_functions = False
    sys.addaudithook(_rules)


def _msvcrt() -> ModuleType:
    """Stand in for the module of Windows' C runtime, with the lock that Linux has."""
    import fcntl  # not above: where it is true, there is none

    module = ModuleType("msvcrt")

    def locking(fd: int, mode: int, n_bytes: int) -> None:
        assert (mode, n_bytes) == (module.LK_NBLCK, 1)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(*_IS_DENIED) from None

    module.LK_NBLCK = 2
    module.locking = locking
    return module


def _rules(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "os.rename":
        _mind_renaming(*arguments)
    elif event == "os.remove":
        _mind_renaming(arguments[0], arguments[0], arguments[1], -1)
    elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        _mind_opening(*arguments)


def _mind_renaming(source: Any, target: Any, source_fd: int, target_fd: int) -> None:
    if (source_fd, target_fd) != (-1, -1):
        _refuse("a path that begins at a descriptor", source)
    for path in (source, target):
        if _is_in_use(Path(os.fsdecode(path))):
            _refuse("to move, remove or replace an open file", path)


def _mind_opening(path: Any, mode: str | None, flags: int) -> None:
    if Path(os.fsdecode(path)).is_dir():
        raise PermissionError(*_IS_DENIED, path)
    # What `open` gives is binary at the bottom; `os.open` gives what it is told to.
    if mode is None and flags & _WRITES and path != os.devnull and not flags & os.O_BINARY:
        _refuse("to keep line ends as they are without O_BINARY", path)


def _refuse(what: str, path: Any) -> None:
    os.write(2, f"{REFUSED} {what}: {Path(os.fsdecode(path)).name}\n".encode())
    raise PermissionError(*_IS_DENIED, path)


def _is_in_use(path: Path) -> bool:
    """Tell whether this process has a file open or mapped, or one below a folder of that name."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    used = [line.split(maxsplit=5)[-1] for line in maps.splitlines()]
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # of the listing itself, or closed by another thread
            used.append(str(descriptor.readlink()))
    real = os.path.realpath(path.parent) + os.sep + path.name
    return any(name == real or name.startswith(real + os.sep) for name in used)


if __name__ == "__main__":
    obey()
    # Not before: it looks at the platform.
    from codellama_convert.__main__ import main

    main()
