"""Own damaged files: as disks, networks and hands damage them."""

from __future__ import annotations

import random
from collections import Counter
from unittest import mock

from codellama_convert.formats.tensor_reader import TensorReader
from tests.fuzzers.running import count, no_check, outcome, scratch_folder, subjects


def _range(rng: random.Random, raw: bytes, longest: int = 4096) -> tuple[int, int]:
    start = rng.randrange(len(raw))
    return start, min(len(raw), start + 1 + int(longest ** rng.random()))


def damage(raw: bytes, rng: random.Random) -> bytes:
    """Damage a file as disks, networks and hands do."""
    mutant = bytearray(raw)
    start, end = _range(rng, raw)
    other, _ = _range(rng, raw)
    kind = rng.randrange(11)
    if kind <= 2:
        for _ in range((1, 1, 6)[kind]):
            mutant[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif kind == 3:
        mutant[start:end] = bytes(end - start)
    elif kind == 4:
        mutant[start:end] = b"\xff" * (end - start)
    elif kind == 5:
        mutant[start:end] = rng.randbytes(end - start)
    elif kind == 6:
        del mutant[start:]
    elif kind == 7:
        mutant[start:end], piece = mutant[other : other + end - start], mutant[start:end]
        mutant[other : other + len(piece)] = piece
    elif kind == 8:
        mutant[start:start] = mutant[start:end]
    elif kind == 9:
        del mutant[start:end]
    else:  # the end records and the directory, where a byte matters most
        at = len(raw) - 1 - int(min(2000, len(raw) - 1) ** rng.random())
        mutant[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(mutant)


def fuzz_files(n_mutants: int, *, seed: int = 0, check_crc: bool = True) -> Counter[str]:
    """Convert damaged checkpoints; "exact" and "refused" are right, anything else is not."""
    tally: Counter[str] = Counter()
    with scratch_folder() as scratch:
        all_subjects = subjects(scratch)
        for subject in all_subjects:
            found = outcome(subject.folder, scratch / "out", subject.expected)
            assert found == "exact", (subject.name, found)
        with mock.patch.object(
            TensorReader, "_check", TensorReader._check if check_crc else no_check
        ):
            for number in range(n_mutants):
                rng = random.Random(f"files {seed} {number}")
                subject = rng.choice(all_subjects)
                path = rng.choice(subject.ranks)
                good = path.read_bytes()
                path.write_bytes(damage(good, rng))
                count(tally, outcome(subject.folder, scratch / "out", subject.expected), number)
                path.write_bytes(good)
    return tally
