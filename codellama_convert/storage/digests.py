"""Own the digests of files, at the disk's speed, or at that of many workers."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from codellama_convert.errors import ConvertError
from codellama_convert.storage.blocks import SLACK_BYTES
from codellama_convert.storage.buffers import LARGE_PAGE_BYTES, aligned_buffer
from codellama_convert.storage.executors import done_by
from codellama_convert.storage.input_file import InputFile
from codellama_convert.storage.watch import Watch

_CHUNK_BYTES = 2 * LARGE_PAGE_BYTES - SLACK_BYTES
Algorithm = Literal["md5", "sha256"]


def file_digest(
    path: Path,
    algorithm: Algorithm,
    *,
    error: type[ConvertError],
    watch: Watch,
) -> str:
    """Return a file's digest; it is read from front to back, past the page cache where that works.

    Args:
        path: The file.
        algorithm: Whose digest; MD5 finds accidents only.
        error: What kind of problem an unreadable file is.
        watch: Whom the bytes that are read are reported to.

    Returns:
        The digest in hexadecimal.

    Raises:
        ConvertError: (the given kind) If the file cannot be read.
    """
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with InputFile(path, io_mode="auto", error=error) as file:
        for piece in file.read_pieces(aligned_buffer(_CHUNK_BYTES)):
            digest.update(piece)
            watch.advance(len(piece))
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class DigestRequest:
    """A job: a file whose digest somebody is to take.

    Attributes:
        path: The file, from the root of the file system.
        algorithm: Whose digest.
        error: What kind of problem an unreadable file is.
    """

    path: str
    algorithm: Algorithm
    error: type[ConvertError]


def take_digest(request: DigestRequest) -> tuple[str, int]:
    """Return the digest and the size of a file; it may be taken in any process."""
    n_bytes = 0

    def count(n_more: int) -> None:
        nonlocal n_bytes
        n_bytes += n_more

    path, watch = Path(request.path), Watch(count)
    return file_digest(path, request.algorithm, error=request.error, watch=watch), n_bytes


def file_digests(
    folder: Path,
    names: Collection[str],
    algorithm: Algorithm,
    *,
    error: type[ConvertError],
    watch: Watch,
    executor: Executor | None = None,
) -> dict[str, str]:
    """Return the digests of files of a folder.

    Args:
        folder: Where they lie.
        names: Theirs.
        algorithm: Whose digests.
        error: What kind of problem an unreadable file is.
        watch: Whom the bytes that are read are reported to; with an executor, file by file.
        executor: Whose workers read them; None reads one after another.

    Returns:
        Each in hexadecimal, by name and in the order of the names.

    Raises:
        ConvertError: (the given kind) If a file cannot be read; or as of `done_by`.
    """
    if executor is None:
        return {
            name: file_digest(folder / name, algorithm, error=error, watch=watch) for name in names
        }
    at = folder.absolute()
    requests = {name: DigestRequest(str(at / name), algorithm, error) for name in names}
    found = {}
    with closing(done_by(executor, take_digest, requests, watch)) as results:
        for name, (digest, n_bytes) in results:
            found[name] = digest
            watch.advance(n_bytes)
    return {name: found[name] for name in names}
