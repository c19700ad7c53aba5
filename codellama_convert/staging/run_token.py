"""Own the word by which workers know that the run that they work for still goes: a file of the staging folder.

A worker may outlive its run: its machine was cut off, or the run was killed. It stops where the
word is gone, or is another run's.
"""

from __future__ import annotations

import os
from contextlib import suppress

from codellama_convert.errors import OutputError
from codellama_convert.staging.staged import PART_SUFFIX
from codellama_convert.storage.blocks import first_line, some_written
from codellama_convert.storage.held_folder import HeldFolder

RUN_NAME = "run.token"
_TOKEN_BYTES = 16


def put_token(staging: HeldFolder) -> str:
    """Let the workers of a run know that it goes; those of any other stop.

    Args:
        staging: The staging folder.

    Returns:
        What its workers are given.

    Raises:
        OutputError: If it cannot be written.
    """
    token = os.urandom(_TOKEN_BYTES).hex()
    part = f"{RUN_NAME}.{token[:8]}{PART_SUFFIX}"
    try:
        fd = staging.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with os.fdopen(fd, "wb", buffering=0) as file:
            left = memoryview(token.encode())
            while left:
                left = left[some_written(file.write(left)) :]
        # Never absent and never torn: a network file system may remember for a while that it was.
        staging.rename(part, staging, RUN_NAME)
    except OSError as problem:
        raise OutputError(
            f"cannot write: {first_line(problem)}", path=staging.path / RUN_NAME
        ) from problem
    return token


def drop_token(staging: HeldFolder) -> None:
    """Let the workers know that the run is over."""
    with suppress(OSError):
        staging.remove(RUN_NAME)


def is_running(staging: HeldFolder, token: str) -> bool:
    """Return whether a run still goes.

    Args:
        staging: The staging folder, which may have been removed meanwhile.
        token: What `put_token` returned to it.

    Raises:
        OSError: If this machine cannot tell just now.
    """
    try:
        # Opened each time: a network file system looks for changes then.
        with os.fdopen(staging.open(RUN_NAME, os.O_RDONLY), "rb") as file:
            return file.read(2 * _TOKEN_BYTES + 1) == token.encode()
    except FileNotFoundError:
        return False
