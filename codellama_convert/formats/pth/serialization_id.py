"""Own the record `.data/serialization_id`, in which torch sums up names and CRC-32s.

Nothing reads it, but a file is equal to torch's only with it. It depends on the order in which
GNU's C++ library walks a set of strings, so torch for Linux writes this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_MAX_64 = (1 << 64) - 1

# Source: GNU libstdc++ libsupc++/hash_bytes.cc, `_Hash_bytes` for 64 bits, a MurmurHash64A.
_SEED = 0xC70F6907
_MULTIPLIER = (0xC6A4A793 << 32) + 0x5BD1E995

# Source: GNU libstdc++ src/shared/hashtable-aux.cc, the primes that doubling meets from 12 on.
_BUCKETS = (13, 29, 59, 127, 257, 541, 1109, 2357, 5087, 10273, 20753)


def serialization_id(names: Sequence[str], crcs: Iterable[int]) -> bytes:
    """Compute the record's content.

    Args:
        names: Of all records before it (20,753 at most), without the root folder, in file order.
        crcs: Their CRC-32s.

    Returns:
        40 digits: the names in a set's order, then the CRC-32s in file order.

    Source:
        torch's caffe2/serialize/inline_container.cc, `writeSerializationId`. There, data that
        begins with the signature of a descriptor (`PK`, 7, 8) is counted as one too; here not.
    """
    hashes = [_hash(name.encode()) for name in names]
    of_names = _combined(_walk_of_set(hashes))
    return f"{of_names:020d}{_combined(crcs):020d}".encode()


def _combined(values: Iterable[int]) -> int:
    """Combine hashes, source: torch's c10/util/hash.h, `hash_combine`."""
    seed = 0
    for value in values:
        seed ^= value + 0x9E3779B9 + (seed << 6) + (seed >> 2) & _MAX_64
    return seed


def _hash(text: bytes) -> int:
    found = _SEED ^ len(text) * _MULTIPLIER & _MAX_64
    whole = len(text) & ~7
    for start in range(0, whole, 8):
        word = int.from_bytes(text[start : start + 8], "little") * _MULTIPLIER & _MAX_64
        found ^= _mixed(word) * _MULTIPLIER & _MAX_64
        found = found * _MULTIPLIER & _MAX_64
    if whole < len(text):
        found ^= int.from_bytes(text[whole:], "little")
        found = found * _MULTIPLIER & _MAX_64
    return _mixed(_mixed(found) * _MULTIPLIER & _MAX_64)


def _mixed(value: int) -> int:
    return value ^ value >> 47


def _walk_of_set(hashes: Sequence[int]) -> list[int]:
    """Order distinct hashes as a `std::unordered_set` that they were put into is walked.

    The set is one list: an element of a bucket in use goes to the front of that bucket, any other
    to the front of the list. Before it outgrows its buckets, it is filled again in walking order.
    """
    assert len(hashes) <= _BUCKETS[-1]
    walk: list[int] = []
    for level, n_buckets in enumerate(_BUCKETS):
        start = _BUCKETS[level - 1] if level else 0
        walk = _filled(walk + list(hashes[start:n_buckets]), n_buckets)
        if len(hashes) <= n_buckets:
            break
    return walk


def _filled(hashes: Iterable[int], n_buckets: int) -> list[int]:
    buckets: dict[int, list[int]] = {}
    for found in hashes:
        buckets.setdefault(found % n_buckets, []).append(found)
    return [found for bucket in reversed(buckets.values()) for found in reversed(bucket)]
