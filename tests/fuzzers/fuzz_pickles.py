"""Own forged pickles, the CRC-32 of each right."""

from __future__ import annotations

import pickletools
import random
import struct
import tempfile
from collections import Counter
from pathlib import Path

import torch

from tests.faults.hostile import rank_bytes
from tests.fuzzers.running import count, outcome, scratch_folder
from tests.witness.checkpoints import save_checkpoint

_ANY_OPCODE = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
_SPLICES = [
    rank_bytes.p_call(
        rank_bytes.p_global("os", "system"), rank_bytes.p_str("touch /nowhere/canary")
    ),
    rank_bytes.p_storage("FloatStorage", "0", 1 << 40),
    rank_bytes.p_str("x" * 70_000),
    rank_bytes.p_int(-1),
    rank_bytes.p_int(1 << 62),
    rank_bytes.P_ORDERED_DICT,
    rank_bytes.P_NONE,
    b"(" * 50,
    b")" + b"\x85" * 3000,
    b"]" * 3000 + b"q\x00",
    b"}" + b"h\x00" * 9 + b"u",
    b"\x8b\xff\xff\xff\x7f",
    b"X\xff\xff\xff\xff",
    b"r\xff\xff\xff\xffj\xff\xff\xff\xff",
    b"\x8d" + struct.pack("<Q", 1 << 40),
]


def forge(pickled: bytes, rng: random.Random) -> bytes:
    """Change a pickle as someone does who knows what it is."""
    if rng.random() < 0.3:
        mutant = bytearray(pickled)
        for _ in range(rng.choice((1, 1, 2, 5))):
            mutant[rng.randrange(len(mutant))] = rng.randrange(256)
        return bytes(mutant)
    starts = [at for _, _, at in pickletools.genops(pickled) if at is not None]
    steps = [pickled[a:b] for a, b in zip(starts, [*starts[1:], len(pickled)], strict=True)]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if len(steps) > 3:
            _change_steps(steps, rng)
    return b"".join(steps)


def _change_steps(steps: list[bytes], rng: random.Random) -> None:
    """Delete, repeat, swap, put in or replace an opcode, or a run of them."""
    at, other = rng.randrange(1, len(steps)), rng.randrange(1, len(steps))
    run = slice(at, at + rng.randrange(60))
    kind = rng.randrange(9)
    if kind == 0:
        del steps[at]
    elif kind == 1:
        steps.insert(at, steps[other])
    elif kind == 2:
        steps[at], steps[other] = steps[other], steps[at]
    elif kind == 3:
        steps.insert(at, rng.choice(_SPLICES))
    elif kind == 4:
        steps.insert(at, rng.choice(_ANY_OPCODE) + rng.randbytes(rng.choice((0, 1, 4, 8))))
    elif kind == 5:
        steps[at] = rng.choice(_ANY_OPCODE) + steps[at][1:]
    elif kind == 6:
        steps[at:at] = steps[run] * rng.choice((1, 2, 40))
    elif kind == 7:
        del steps[run]
    else:
        steps[at] = _other_number(steps[at], rng)


def _other_number(step: bytes, rng: random.Random) -> bytes:
    if step[:1] not in b"KMJ":
        return rng.choice(_SPLICES)
    interesting = (0, 1, 2, 7, 8, 9, 63, 64, 65, -1, -8, 255, 1 << 16, 1 << 31, 1 << 40, 1 << 63)
    return rank_bytes.p_int(rng.choice(interesting))


def fuzz_pickles(n_mutants: int, *, seed: int = 0) -> Counter[str]:
    """Convert forged pickles, every CRC-32 right; "refused" and "converted" are right."""
    tally: Counter[str] = Counter()
    with scratch_folder() as scratch:
        folder = scratch / "checkpoint"
        save_checkpoint(folder, rank_bytes.TINY, rank_bytes.STATE, tokenizer=False)
        rank = rank_bytes.rank_file()
        pickles = [rank.pickled(), *(_torch_pickle(protocol) for protocol in (2, 4))]
        for pickled in pickles:
            rank_bytes.put(folder, rank.members(pickled))
            found = outcome(folder, scratch / "out", None)
            assert found == "converted", found
        for number in range(n_mutants):
            rng = random.Random(f"pickles {seed} {number}")
            rank_bytes.put(folder, rank.members(forge(rng.choice(pickles), rng)))
            count(tally, outcome(folder, scratch / "out", None), number)
    return tally


def _torch_pickle(protocol: int) -> bytes:
    """Let torch pickle the same tensors; its records are named as ours are."""
    import zipfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / rank_bytes.RANK
        torch.save(rank_bytes.STATE, path, pickle_protocol=protocol)
        with zipfile.ZipFile(path) as archive:
            return archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
