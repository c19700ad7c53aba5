"""Start the command line; a signal during the imports must not end in a traceback."""

from __future__ import annotations

import gc
import io
import os
import sys

from codellama_convert.cli.machine import lack_in_words
from codellama_convert.errors import one_line
from codellama_convert.storage.signals import exit_on_signals


def main() -> None:
    """Run the command line."""
    exit_on_signals()
    _occupy_standard_streams()
    _print_whatever_comes()
    # Nothing here calculates with matrices, and the threads of numpy's OpenBLAS may not start.
    os.putenv("OPENBLAS_NUM_THREADS", "1")
    # A plan is a hundred thousand objects that stay; to look through them 293 times for garbage is
    # a tenth of its time.
    gc.set_threshold(50_000)
    try:
        from codellama_convert.cli.commands import main as run  # noqa: PLC0415 - after the handlers
    except (ImportError, MemoryError, OSError) as problem:
        print(one_line(f"Error: {lack_in_words(problem)}"), file=sys.stderr)  # noqa: T201
        sys.exit(1)
    run(prog_name="codellama-convert")


def _occupy_standard_streams() -> None:
    """Put the null device where stdin, stdout or stderr is closed (`>&-`).

    The next file opened would get that number, and what a library prints would go into a model.
    """
    for number in (0, 1, 2):
        if not _is_open(number):
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one


def _print_whatever_comes() -> None:
    """Let no name end the program because a terminal's encoding lacks one of its characters."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
