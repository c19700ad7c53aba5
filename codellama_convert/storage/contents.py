"""Own what a small file is to hold: bytes at hand, or chunks that are made while they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

# Position in a file, and bytes.
Piece = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class Chunked:
    """The content of a file that is never whole in memory.

    Attributes:
        n_bytes: Its size, known beforehand: the disk is looked at before anything is written.
        chunks: Makes it from its beginning, whenever it is called.
    """

    n_bytes: int
    chunks: Callable[[], Iterator[bytes]]

    def __len__(self) -> int:
        """Its size, as of bytes."""
        return self.n_bytes

    def __bytes__(self) -> bytes:
        """Return all of it; for files that are known to be small."""
        return b"".join(self.chunks())


Content = bytes | Chunked


def chunks_of(content: Content) -> Iterator[bytes]:
    """Yield a file's content from its beginning."""
    yield from (content,) if isinstance(content, bytes) else content.chunks()
