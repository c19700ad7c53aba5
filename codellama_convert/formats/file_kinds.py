"""Own getting a tokenizer file's bytes and naming files of another kind; know no tokenizer format."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from codellama_convert.errors import TokenizerError

# Llama 2's file has 499,723 bytes, Gemma 3's of 262,144 pieces 4.7 million; the limit bounds the
# memory and time that a hostile file can cost.
MAX_FILE_BYTES = 8 << 20

DOWNLOAD_AGAIN = "download the model's tokenizer.model again"

# First bytes that name another kind of file, and what to say of it.
OTHER_FORMATS = (
    (
        rb"version https://git-lfs",
        "this is a Git LFS pointer, not the tokenizer itself",
        "fetch the real file (git lfs pull)",
    ),
    (rb"GGUF", "this is a GGUF file, not a SentencePiece model", DOWNLOAD_AGAIN),
    (
        rb"PK\x03\x04",
        "this is a zip file (a PyTorch checkpoint?), not a SentencePiece model",
        DOWNLOAD_AGAIN,
    ),
    (
        rb"\s*[{\[]",
        "this is JSON (a tokenizer.json?), not a SentencePiece model",
        "give Meta's tokenizer.model",
    ),
    (
        rb"\s*<(?i:!doctype|html|\?xml)",
        "this is an HTML page (a login page saved as the file?), not a SentencePiece model",
        DOWNLOAD_AGAIN,
    ),
    (
        rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n",
        "this is a tiktoken (Llama 3) vocabulary, not a SentencePiece model",
        "Llama 3 is not supported",
    ),
)


def _open_at_once(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a FIFO that nobody writes to hangs.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_bytes(path: Path) -> bytes:
    """Read a whole tokenizer file.

    Args:
        path: A regular file of 1 byte to 8 MiB.

    Returns:
        Its bytes.

    Raises:
        TokenizerError: If it cannot be read, is empty, too large, or no regular file.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise TokenizerError(
                    "not a regular file", path=path, hint="give the tokenizer.model itself"
                )
            raw = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise TokenizerError(
            reason, path=path, hint="tokenizer.model is downloaded with the weights, or beside them"
        ) from error
    if not raw:
        raise TokenizerError("the file is empty", path=path, hint=DOWNLOAD_AGAIN)
    if len(raw) > MAX_FILE_BYTES:
        what, hint = other_format(raw) or (
            f"the file is larger than {MAX_FILE_BYTES} bytes; a tokenizer.model has about 500,000",
            DOWNLOAD_AGAIN,
        )
        raise TokenizerError(what, path=path, hint=hint)
    return raw


def other_format(raw: bytes) -> tuple[str, str] | None:
    """Name a well-known kind of file by its first bytes, and say what to do."""
    head = raw[:4096]
    for pattern, what, hint in OTHER_FORMATS:
        if re.match(pattern, head):
            return what, hint
    return None
