"""CRC-32s of pieces, joined in any order, are those of the whole."""

from __future__ import annotations

import itertools
import random
import sys
import threading
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codellama_convert.storage import checksums
from codellama_convert.storage.checksums import CrcLedger, combine, crc32


@pytest.fixture(params=["zlib", "zlib_ng"])
def summing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Sum with one of the two, as if the other were not there; name the one."""
    if request.param == "zlib":
        monkeypatch.setitem(sys.modules, "zlib_ng", None)  # what is None cannot be imported
        monkeypatch.delitem(sys.modules, "zlib_ng.zlib_ng", raising=False)
    else:
        pytest.importorskip("zlib_ng", reason="the extra [fast] is not installed")
    checksums._fastest_crc32.cache_clear()
    yield request.param
    checksums._fastest_crc32.cache_clear()


def test_zlib_ng_sums_where_it_is_installed_and_zlib_elsewhere(summing: str) -> None:
    assert checksums._fastest_crc32().__module__.split(".")[0] == summing


def test_the_sum_is_zlibs_for_every_length_and_alignment(summing: str) -> None:
    """Faster ones take 16 to 64 bytes at once, and the first and last bytes in another way."""
    content = random.Random(3).randbytes(1 << 21)
    whole = memoryview(content)
    lengths = [*range(300), 4095, 4096, 4097, (1 << 20) + 13, (1 << 21) - 64]
    for number, n_bytes in enumerate(lengths):
        start = number % 64
        piece = whole[start : start + n_bytes]
        assert crc32(piece) == zlib.crc32(piece), (start, n_bytes)
        assert crc32(piece, 0xDEADBEEF) == zlib.crc32(piece, 0xDEADBEEF), (start, n_bytes)


@pytest.mark.parametrize("n_bytes", [9, 64, 4096])
def test_the_sum_is_the_published_one_and_sees_a_flipped_bit(summing: str, n_bytes: int) -> None:
    assert crc32(b"123456789") == 0xCBF43926  # the check value of ISO 3309
    flipped = bytearray(n_bytes)
    flipped[-1] = 1
    assert crc32(flipped) != crc32(bytes(n_bytes))


def cuts_of(n_bytes: int, rng: random.Random) -> list[tuple[int, int]]:
    """Cut a range into pieces in random order."""
    marks = sorted({0, n_bytes, *(rng.randrange(n_bytes + 1) for _ in range(rng.randrange(12)))})
    pieces = list(itertools.pairwise(marks))
    rng.shuffle(pieces)
    return pieces


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_combine_gives_the_crc_of_two_pieces_joined(first: bytes, second: bytes) -> None:
    joined = combine(zlib.crc32(first), zlib.crc32(second), len(second))
    assert joined == zlib.crc32(first + second)


@pytest.mark.parametrize("n_bytes", [1, 4095, 4096, 1 << 20, (1 << 20) + 1])
def test_combine_knows_long_pieces(n_bytes: int) -> None:
    joined = combine(zlib.crc32(b"abc"), zlib.crc32(bytes(n_bytes)), n_bytes)
    assert joined == zlib.crc32(b"abc" + bytes(n_bytes))


def test_combine_knows_pieces_of_more_than_4_gib() -> None:
    """65 pieces of 64 MiB joined one by one, against all of them joined at once."""
    n_bytes = 64 << 20
    piece = zlib.crc32(bytes(n_bytes))
    one_by_one, behind = zlib.crc32(b"abc"), 0
    for _ in range(65):
        one_by_one, behind = combine(one_by_one, piece, n_bytes), combine(behind, piece, n_bytes)
    assert combine(zlib.crc32(b"abc"), behind, 65 * n_bytes) == one_by_one


@settings(deadline=None)
@given(st.integers(0, 5000), st.integers(0, 1 << 30))
def test_a_ledger_joins_pieces_in_any_order(n_bytes: int, seed: int) -> None:
    rng = random.Random(seed)
    content = rng.randbytes(n_bytes)
    ledger = CrcLedger(n_bytes)
    for start, end in cuts_of(n_bytes, rng):
        assert ledger.crc is None
        assert ledger.add(start, memoryview(content)[start:end]) == zlib.crc32(content[start:end])
    assert ledger.crc == zlib.crc32(content)
    assert list(ledger.gaps()) == []


def test_a_ledger_sees_one_flipped_bit() -> None:
    rng = random.Random(1)
    content = rng.randbytes(3000)
    for bit in rng.sample(range(24_000), 200):
        ledger = CrcLedger(len(content))
        for start, end in cuts_of(len(content), rng):
            piece = bytearray(content[start:end])
            if start <= bit // 8 < end:
                piece[bit // 8 - start] ^= 1 << bit % 8
            ledger.add(start, piece)
        assert ledger.crc not in (None, zlib.crc32(content))


def test_a_ledger_sees_two_swapped_pieces() -> None:
    content = bytes(range(200))
    ledger = CrcLedger(200)
    ledger.add(0, content[100:])
    ledger.add(100, content[:100])
    assert ledger.crc not in (None, zlib.crc32(content))


def test_gaps_and_intervals_are_what_was_not_and_was_read() -> None:
    content = bytes(range(100))
    ledger = CrcLedger(100)
    ledger.add(10, content[10:20])
    ledger.add(50, content[50:60])
    ledger.add(20, content[20:30])
    assert list(ledger.gaps()) == [(0, 10), (30, 50), (60, 100)]
    assert ledger.intervals() == (
        (10, 30, zlib.crc32(content[10:30])),
        (50, 60, zlib.crc32(content[50:60])),
    )
    again = CrcLedger(100)
    for interval in ledger.intervals():
        again.add_crc(*interval)
    for start, end in list(again.gaps()):
        again.add_crc(start, end, zlib.crc32(content[start:end]))
    assert again.crc == zlib.crc32(content)


def test_an_empty_range_is_complete() -> None:
    ledger = CrcLedger(0)
    assert ledger.crc == 0 == zlib.crc32(b"")
    ledger.add(0, b"")
    assert ledger.crc == 0


def test_empty_pieces_change_nothing() -> None:
    ledger = CrcLedger(4)
    ledger.add(2, b"")
    ledger.add(0, b"abcd")
    ledger.add(0, b"")
    assert ledger.crc == zlib.crc32(b"abcd")


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        *((-1, b"ab"), (9, b"ab"), (10, b"a"), (2, b"ab"), (2, b"abcd"), (3, b"abc"), (3, b"ab")),
        *((0, b"abc"), (1, b"abcdef"), (4, b"abc"), (5, b"abc")),
    ],
)
def test_a_piece_outside_or_over_another_is_refused_and_changes_nothing(
    start: int, piece: bytes
) -> None:
    ledger = CrcLedger(10)
    ledger.add(2, b"abcd")
    with pytest.raises(ValueError, match="overlap or leave"):
        ledger.add(start, piece)
    assert ledger.intervals() == ((2, 6, zlib.crc32(b"abcd")),)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), max_size=12))
def test_a_ledger_is_whole_or_silent_only_where_no_byte_was_read_twice(
    pieces: list[tuple[int, int]],
) -> None:
    ledger = CrcLedger(30)
    read: list[int] = []
    try:
        for start, n_bytes in pieces:
            read += range(start, start + n_bytes)
            ledger.add(start, bytes(n_bytes))
    except ValueError:
        assert len(set(read)) < len(read) or max(read) >= 30
    else:
        assert len(set(read)) == len(read)
        assert not read or max(read) < 30
        assert (ledger.crc is not None) == (len(read) == 30)


def test_threads_may_share_a_ledger() -> None:
    content = random.Random(2).randbytes(64_000)
    ledger = CrcLedger(len(content))

    def work(first: int) -> None:
        for start in range(first, len(content), 400):
            ledger.add(start, content[start : start + 100])

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 100, 200, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.crc == zlib.crc32(content)
