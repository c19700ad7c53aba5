"""Own the digest of a file, at the disk's speed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from codellama_convert.errors import ConvertError
from codellama_convert.storage.blocks import aligned_buffer
from codellama_convert.storage.input_file import InputFile
from codellama_convert.storage.watch import Watch

_CHUNK_BYTES = 4 << 20


def file_digest(
    path: Path,
    algorithm: Literal["md5", "sha256"],
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
