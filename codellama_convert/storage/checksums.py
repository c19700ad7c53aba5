"""Own CRC-32 over bytes that are read in any order.

A storage is read in pieces, by several threads, in the order of the output. Each piece's CRC-32 is
taken over the very bytes that are converted; the pieces are then joined by algebra, so nothing has
to be read twice to learn the CRC-32 of the whole.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import cache, lru_cache

# The reflected CRC-32 polynomial of ISO 3309 and zip; bit 31 is x**0.
_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31

Interval = tuple[int, int, int]

# What was read of a rank to write a file: by storage, each (pass, start, end, crc), in order.
SourceSums = dict[str, list[tuple[int, int, int, int]]]


def crc32(piece: bytes | memoryview, before: int = 0) -> int:
    """Return the CRC-32 of a piece, as `zlib.crc32` does, by the fastest means at hand.

    Args:
        piece: Its bytes.
        before: The CRC-32 of what lies before the piece, to join both.

    Returns:
        The CRC-32.
    """
    return _fastest_crc32()(piece, before)


@cache
def _fastest_crc32() -> Callable[[bytes | memoryview, int], int]:
    """Choose zlib-ng where it is installed: it sums several times as fast as zlib."""
    # When the first sum is asked for, as the import takes longer than `--help` may wait.
    try:
        from zlib_ng.zlib_ng import crc32 as fastest  # noqa: PLC0415
    except ImportError:
        from zlib import crc32 as fastest  # noqa: PLC0415
    return fastest


def _multiply(a: int, b: int) -> int:
    """Multiply two polynomials over GF(2) modulo the CRC-32 polynomial, both reflected."""
    product = 0
    bit = _ONE
    while a:
        if a & bit:
            product ^= b
            a ^= bit
        bit >>= 1
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
    return product


@lru_cache(maxsize=4096)
def _shift_by(n_bytes: int) -> int:
    """Return x ** (8 * n_bytes): what appending that many bytes multiplies a CRC by."""
    power, square = _ONE, 1 << 23  # x**0 and x**8
    while n_bytes:
        if n_bytes & 1:
            power = _multiply(power, square)
        square = _multiply(square, square)
        n_bytes >>= 1
    return power


def combine(first: int, second: int, second_bytes: int) -> int:
    """Return the CRC-32 of two pieces joined, from the CRC-32 of each.

    Args:
        first: CRC-32 of the first piece.
        second: CRC-32 of the second piece.
        second_bytes: Length of the second piece in bytes.

    Returns:
        The CRC-32 of the first piece followed by the second.

    Source:
        M. Adler, zlib `crc32_combine`: crc(A || B) = crc(A) * x**(8 |B|) + crc(B).
    """
    return _multiply(_shift_by(second_bytes), first) ^ second


class CrcLedger:
    """The CRC-32s of the pieces of one byte range, joined as they arrive; safe for threads.

    Attributes:
        n_bytes: Length of the whole range.
    """

    # A checkpoint of 16 ranks has 18,000 storages, and a ledger for each.
    __slots__ = ("_intervals", "_lock", "n_bytes")

    def __init__(self, n_bytes: int) -> None:
        """Start with nothing read.

        Args:
            n_bytes: Length of the whole range.
        """
        self.n_bytes = n_bytes
        self._lock = threading.Lock()
        self._intervals: list[Interval] = []  # in order; no two of them meet

    def add(self, start: int, piece: bytes | memoryview) -> int:
        """Take note of one piece.

        Args:
            start: Where the piece begins in the range.
            piece: Its bytes.

        Returns:
            The CRC-32 of the piece.

        Raises:
            ValueError: If the piece overlaps one that was added before, or leaves the range.
        """
        crc = crc32(piece)
        self.add_crc(start, start + len(piece), crc)
        return crc

    def add_crc(self, start: int, end: int, crc: int) -> None:
        """Take note of one piece whose CRC-32 is known.

        Args:
            start: Where the piece begins in the range.
            end: Where it ends.
            crc: Its CRC-32.

        Raises:
            ValueError: If the piece overlaps one that was added before, or leaves the range.
        """
        if end > start:
            with self._lock:
                self._join(start, end, crc)

    def _join(self, start: int, end: int, crc: int) -> None:
        known = self._intervals
        first = last = bisect_left(known, (start,))  # of those that are replaced
        left_end = known[first - 1][1] if first else 0
        right_start = known[last][0] if last < len(known) else self.n_bytes
        if start < left_end or end > right_start:
            raise ValueError(f"bytes {start} to {end} overlap or leave {self.n_bytes} bytes")
        if first and left_end == start:
            first -= 1
            left_start, _, left_crc = known[first]
            start, crc = left_start, combine(left_crc, crc, end - start)
        if last < len(known) and right_start == end:
            _, right_end, right_crc = known[last]
            crc, end = combine(crc, right_crc, right_end - end), right_end
            last += 1
        known[first:last] = [(start, end, crc)]

    def intervals(self) -> tuple[Interval, ...]:
        """List what was read so far as (start, end, crc), in order, neighbours joined."""
        with self._lock:
            return tuple(self._intervals)

    def gaps(self) -> Iterator[tuple[int, int]]:
        """Yield the (start, end) of every part that was not read yet, in order."""
        position = 0
        for start, end, _ in self.intervals():
            if start > position:
                yield position, start
            position = end
        if position < self.n_bytes:
            yield position, self.n_bytes

    @property
    def crc(self) -> int | None:
        """The CRC-32 of the whole range, or None while parts of it are missing."""
        if self.n_bytes == 0:
            return 0
        with self._lock:
            if not self._intervals:
                return None
            start, end, crc = self._intervals[0]
        return crc if (start, end) == (0, self.n_bytes) else None
