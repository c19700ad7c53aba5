"""Own how a file of another kind is recognised where a file of a model should be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from codellama_convert.errors import ConvertError

Wanted = Literal["zip", "JSON", "SentencePiece", "safetensors", "tiktoken"]

HEAD_BYTES = 512  # tell every kind

_DOWNLOAD_AGAIN = "download it again"
_BROKEN_DOWNLOAD = "the download failed (often an expired link or a missing login); try it again"
_ORIGINAL = "use the original file, as it was released"


@dataclass(frozen=True, slots=True)
class FileKind:
    """A kind of file that is met in the place of another.

    Attributes:
        says: What a file of it is.
        hint: What to do about it.
        begins: Its first bytes.
        is_right_as: Where it is not another kind, but what is wanted.
    """

    says: str
    hint: str
    begins: re.Pattern[bytes]
    is_right_as: Wanted | None = None


def _kind(says: str, hint: str, begins: bytes, *, is_right_as: Wanted | None = None) -> FileKind:
    return FileKind(says, hint, re.compile(begins, re.DOTALL), is_right_as)


_BLANK = rb"[\xef\xbb\xbf\s]*"  # a byte order mark and white space

KINDS = (
    _kind("is an HTML page", _BROKEN_DOWNLOAD, _BLANK + rb"<(?i:!doctype|html|head|body)"),
    _kind("is an XML or XHTML page (S3's error?)", _BROKEN_DOWNLOAD, _BLANK + rb"<(?i:\?xml)"),
    _kind("is a Git LFS pointer", "run git lfs pull", rb"version https://git-lfs"),
    _kind("is a tar archive", "unpack it first", rb".{257}ustar"),
    _kind("is a gzip file", "unpack it first", rb"\x1f\x8b"),
    _kind("is a GGUF file", _ORIGINAL, rb"GGUF"),
    # Eight bytes say the length of its header, under 100 MB; the header is JSON.
    _kind("is a safetensors file", _ORIGINAL, rb'.{5}\0\0\0\{"', is_right_as="safetensors"),
    # torch.serialization.MAGIC_NUMBER, pickled
    _kind(
        "is in the legacy (pre-1.6, non-zip) torch format",
        "re-save it: torch.load(..., weights_only=True), then torch.save",
        rb".{0,23}\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a",
    ),
    _kind(
        "is a zip file (a PyTorch checkpoint?)",
        _DOWNLOAD_AGAIN,
        rb"PK\x03\x04",
        is_right_as="zip",
    ),
    _kind("is JSON (a tokenizer.json?)", _ORIGINAL, _BLANK + rb"[{\[]", is_right_as="JSON"),
    _kind(
        "is a tiktoken (Llama 3) vocabulary",
        "of a converted Llama 3, AutoTokenizer of transformers loads the tokenizer",
        rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n",
        is_right_as="tiktoken",
    ),
)


def other_kind(head: bytes, wanted: Wanted) -> FileKind | None:
    """Recognise a file that should have been something else.

    Args:
        head: Its first `HEAD_BYTES` bytes, or all of it.
        wanted: What it should be.

    Returns:
        What it is instead, or None where its beginning does not say.
    """
    kinds = (kind for kind in KINDS if kind.is_right_as != wanted)
    return next((kind for kind in kinds if kind.begins.match(head)), None)


def is_of_kind(head: bytes, wanted: Wanted) -> bool:
    """Report whether a file begins as one of a kind does; a SentencePiece model begins anyhow.

    Args:
        head: Its first `HEAD_BYTES` bytes, or all of it.
        wanted: The kind.
    """
    return any(kind.is_right_as == wanted and kind.begins.match(head) for kind in KINDS)


def refuse_other_kind(
    head: bytes, wanted: Wanted, *, path: Path, error: type[ConvertError]
) -> None:
    """Refuse a file that is recognised as something else.

    Args:
        head: Its first `HEAD_BYTES` bytes, or all of it.
        wanted: What it should be.
        path: The file, for the message.
        error: What kind of problem that is.

    Raises:
        ConvertError: (the given kind) If it is of another kind.
    """
    kind = other_kind(head, wanted)
    if kind is not None:
        raise error(kind.says, path=path, hint=kind.hint)
