"""Own what a machine gives and lacks: memory used, and the words for a library or a thread that fails."""

from __future__ import annotations

import errno
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

_PACKAGE = __name__.partition(".")[0]
_NO_THREAD = "cannot start a thread; allow more processes (ulimit -u), or try --workers 1"
_LESS_MEMORY = "allow more, or try --max_ram 8MB --workers 1"
_MORE_FILES = "allow more open files (ulimit -n)"
# The loader's words where a library is whole.
_SHORTAGES = (
    ("failed to map segment", "allow more memory"),
    ("cannot allocate memory", "allow more memory"),
    ("too many open files", _MORE_FILES),
)

# Address space of the libraries and the buffers of the smallest run.
_LEAST_BYTES = 128 << 20


def check_memory() -> None:
    """Refuse to load libraries where there is no memory for them.

    numpy brings OpenBLAS, which keeps asking for memory that it does not get; meanwhile Python
    receives no signals.

    Raises:
        MemoryError: If there is too little.
    """
    try:
        _private_memory(_LEAST_BYTES).close()
    except OSError as problem:
        raise MemoryError("the libraries need 128 MB") from problem


def _private_memory(n_bytes: int) -> mmap.mmap:
    """Map memory as libraries do: a limit of data (ulimit -d) counts it only if it is private."""
    if sys.platform == "win32":
        memory = mmap.mmap(-1, n_bytes)
    else:
        memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return memory


def lack_in_words(problem: BaseException) -> str | None:
    """Say what a machine lacks, and what to do.

    Args:
        problem: What Python or a library raised.

    Returns:
        The true cause and what to do; None where it is not the machine's.
    """
    if isinstance(problem, ImportError):
        return _library(problem, str(list(_chain(problem))[-1]))
    if isinstance(problem, MemoryError):
        return f"not enough memory{f': {problem}' if problem.args else ''}; {_LESS_MEMORY}"
    if isinstance(problem, RuntimeError):
        return _NO_THREAD if "start new thread" in str(problem) else None
    return _system_problem(problem) if isinstance(problem, OSError) else None


def _system_problem(problem: OSError) -> str:
    if problem.errno is None:  # of ctypes: the loader's words, which name the library
        return _library(problem, str(problem))
    if problem.errno == errno.ENOMEM and not problem.filename:
        return f"not enough memory; {_LESS_MEMORY}"
    where = f"{problem.filename}: " if problem.filename else "cannot print: "
    is_short = problem.errno in (errno.EMFILE, errno.ENFILE)
    what_to_do = f"; {_MORE_FILES}" if is_short else ""
    return f"{where}{problem.strerror or problem}{what_to_do}"


def _library(problem: ImportError | OSError, cause: str) -> str:
    """Name the library and the first cause, which libraries wrap into pages of advice."""
    first = cause.strip().partition("\n")[0] or type(problem).__name__
    shortages = (what_to_do for words, what_to_do in _SHORTAGES if words in first.lower())
    return f"cannot import {_importing(problem)}: {first}; {next(shortages, 'install it again')}"


def _importing(problem: ImportError | OSError) -> str:
    """Find the library that was asked for: it may have failed deep inside, or not be there."""
    tops = [
        str(one.tb_frame.f_globals.get("__name__")).partition(".")[0]
        for one in _calls(problem.__traceback__)
    ]
    while _PACKAGE in tops:
        tops = tops[tops.index(_PACKAGE) + 1 :]
    inside = [top for top in tops if top != "importlib"]
    name = problem.name if isinstance(problem, ImportError) else None
    return inside[0] if inside else (name or "a library").partition(".")[0]


def _chain(problem: BaseException) -> Iterator[BaseException]:
    """Walk from a problem to what it was raised from, down to the first."""
    one: BaseException | None = problem
    while one is not None:
        yield one
        one = one.__cause__


def _calls(trace: TracebackType | None) -> Iterator[TracebackType]:
    """Walk a traceback inwards, without `traceback`, which also loads what it prints with."""
    while trace is not None:
        yield trace
        trace = trace.tb_next


def peak_rss_bytes() -> int | None:
    """Report the most memory that this process has held at once.

    Linux's VmHWM starts at zero with the program; ru_maxrss would still hold the peak of the shell
    or script that started it.

    Returns:
        Bytes of resident memory, or None where the platform does not tell.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    peak = None
    if sys.platform != "win32":
        import resource  # noqa: PLC0415 - the module does not exist on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if sys.platform != "darwin":  # which alone counts bytes
            peak *= 1024
    return peak
