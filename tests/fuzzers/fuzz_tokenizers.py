"""Own the fuzzing of tokenizer.model through every public entrance, in a process of its own.

Mutants are made of small models: damaged bytes, forged pieces and settings, and vocabularies made
to cost more than they weigh. Every one follows from the seed and its number.
"""

from __future__ import annotations

import random
import struct
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tests.faults.hostile import rank_bytes
from tests.fuzzers import forged_tiktoken
from tests.fuzzers.fuzz_child import Child, Ended
from tests.fuzzers.fuzz_files import damage
from tests.fuzzers.running import scratch_folder
from tests.witness.checkpoints import save_checkpoint, tokenizer_model
from tests.witness.llama3 import TINY, spelled
from tests.witness.vocabularies import model_bytes

RIGHT = {"done", "refused", "found", "equal"}
_N_PIECES = rank_bytes.TINY.vocab
_TIKTOKEN = spelled(TINY)
_ENTRANCES = ("plan", "convert", "tokenizer_only", "verify tokenizer", "CodeLlamaTokenizer")

_TEXTS = (
    b"", b"\0", b"a\0b", b" ", b"a b", b"\n", b"\r", b"\x1b[2J", b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80",
    "\u2581".encode(), "\u2581".encode() * 16, "\u2581".encode() * 200, "\u2028".encode(), "\ufeff".encode(),
    "\ufffd".encode(), "\U0010ffff".encode(), "\u00e9".encode(), "e\u0301".encode(), "\u2581<PRE>".encode(),
    b"<s>", b"</s>", b"<unk>", b"<0x00>", b"<0x41>", b"<0xFF>", b"<0x1>", b"<step>", b"<FILL_ME>", b"x" * 255,
    b"x" * 256, b"x" * 257, b"x" * 5000, b"\\", b'"', b"{}", b"[]", b'"merges": []', b'"vocab": {}',
)  # fmt: skip
_SCORES = (0.0, -0.0, 1.0, -1e9, -1e18, 1e-45, 3.4e38, float("inf"), float("-inf"), float("nan"))
_NUMBERS = (0, 1, 2, 3, 4, 5, 6, 7, 127, 128, 255, 1 << 14, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 53, 1 << 63, (1 << 64) - 1, 1 << 69)  # fmt: skip


# --- the wire format, written with any number in any place -----------------------------------------


def varint(number: int) -> bytes:
    raw = b""
    while number > 0x7F:
        raw += bytes([number & 0x7F | 0x80])
        number >>= 7
    return raw + bytes([number])


def field(number: int, content: bytes) -> bytes:
    """Write a field of a length and bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def piece(text: bytes, score: float = -1.0, kind: int | None = None) -> bytes:
    content = field(1, text) + b"\x15" + struct.pack("<f", score)
    return field(1, content + (b"" if kind is None else b"\x18" + varint(kind)))


@cache
def parts(raw: bytes) -> tuple[bytes, ...]:
    """Cut a model into its fields: pieces, and settings."""
    found, at = [], 0
    while at < len(raw):
        size, shift, end = 0, 0, at + 1
        while True:
            size |= (raw[end] & 0x7F) << shift
            shift, end = shift + 7, end + 1
            if raw[end - 1] < 0x80:
                break
        found.append(raw[at : end + size])
        at = end + size
    return tuple(found)


# --- mutants --------------------------------------------------------------------------------------


def mutant(raw: bytes, rng: random.Random) -> bytes:
    """Change a model as an accident does, or as someone who knows what it is."""
    kind = rng.randrange(10)
    if kind <= 1:
        return damage(raw, rng)
    fields = list(parts(raw))
    if kind == 2:
        return b"".join(fields) + rng.choice(_BOMBS)(rng)
    for _ in range(rng.choice((1, 1, 2, 5))):
        (_change_piece if kind <= 6 else _change_settings)(fields, rng)
    return b"".join(fields)


def _change_piece(fields: list[bytes], rng: random.Random) -> None:
    """Put a piece in, replace, delete, repeat or move one."""
    at = rng.randrange(len(fields))
    made = piece(
        rng.choice(_TEXTS) if rng.random() < 0.8 else rng.randbytes(rng.randrange(8)),
        rng.choice(_SCORES),
        rng.choice((None, 1, 1, 2, 3, 4, 5, 6, *_NUMBERS)),
    )
    how = rng.randrange(6)
    if how == 0:
        fields.insert(at, made)
    elif how == 1:
        fields[at] = made
    elif how == 2:
        del fields[at]
    elif how == 3:
        fields.insert(at, rng.choice(fields))
    elif how == 4:
        other = rng.randrange(len(fields))
        fields[at], fields[other] = fields[other], fields[at]
    else:
        fields[at] = damage(fields[at], rng)


def _change_settings(fields: list[bytes], rng: random.Random) -> None:
    """Say something else in the trainer's, normalizer's, self-test's or denormalizer's settings."""
    number = rng.choice((2, 2, 3, 3, 4, 5, 6, 0))
    key = rng.choice((*range(1, 9), 24, 35, *range(40, 50), 53, 200))
    value = rng.choice(_NUMBERS)
    said = rng.choice(
        (
            varint(key << 3) + varint(value),
            field(key, rng.choice(_TEXTS)),
            varint(key << 3 | 5) + struct.pack("<f", rng.choice(_SCORES)),
            varint(key << 3 | 1) + struct.pack("<d", rng.choice(_SCORES)),
            varint(key << 3 | rng.choice((3, 4, 6, 7))),
            varint(key << 3 | 2) + varint(value),
        )
    )
    at = [n for n, one in enumerate(fields) if one[0] == number << 3 | 2 and number > 1]
    if not at:
        fields.append(field(number, said))
        return
    content = _content(fields[at[0]])
    fields[at[0]] = field(number, content + said if rng.random() < 0.8 else said + content)


def _content(whole: bytes) -> bytes:
    end = 1
    while whole[end] >= 0x80:
        end += 1
    return whole[end + 1 :]


def _runs(rng: random.Random) -> bytes:
    """Write runs of letters: each can be cut anywhere."""
    longest = rng.choice((16, 64, 128, 256))
    score = rng.choice((None, -5.0))
    letters = rng.sample("QXZJKVWY", rng.choice((1, 2, 8)))
    return b"".join(
        piece(letter.encode() * n, -1000.0 - n if score is None else score)
        for letter in letters
        for n in range(2, longest + 1)
    )


def _substrings(rng: random.Random) -> bytes:
    """Write every substring of a text."""
    text = bytes(rng.choice(b"abc") for _ in range(rng.choice((20, 60, 100))))
    found = {text[i:j] for i in range(len(text)) for j in range(i + 2, len(text) + 1)}
    return b"".join(map(piece, sorted(found)))


def _many(rng: random.Random) -> bytes:
    """Write thousands of short pieces of one kind."""
    kind = rng.choice((None, 1, 3, 4, 6))
    count = rng.choice((1000, 10_000, 40_000))
    return b"".join(piece(f"z{n:x}q".encode(), -float(n), kind) for n in range(count))


def _padding(rng: random.Random) -> bytes:
    """Write test samples, which are passed over."""
    return field(4, bytes(rng.choice((1, 1000, 1 << 20))))


_BOMBS: tuple[Callable[[random.Random], bytes], ...] = (_runs, _runs, _substrings, _many, _padding)


# --- the run --------------------------------------------------------------------------------------


def fuzz_tokenizers(
    n_mutants: int, *, seed: int = 0, plant: str = "none"
) -> tuple[Counter[str], int, float]:
    """Let mutants of tokenizer.model in by every entrance.

    Args:
        n_mutants: How many.
        seed: Runs others of their kind.
        plant: A mistake that the process is given, of `fuzz_child.PLANTS`.

    Returns:
        How many ended how, the most memory and the most seconds of a case. "done", "refused",
        "found" and "equal" are right.
    """
    tally: Counter[str] = Counter()
    peak, slowest = 0, 0.0
    with scratch_folder() as place, Child(plant) as child:
        source, output = place / "in", place / "out"
        models = [tokenizer_model(_N_PIECES), model_bytes("plain"), model_bytes("step"), _TIKTOKEN]
        save_checkpoint(source, rank_bytes.TINY, rank_bytes.STATE, tokenizer=models[0])
        for name in ("alone", "good"):
            (place / name).mkdir()
        path = source / "tokenizer.model"
        for entrance in _ENTRANCES[:3]:
            good = child.run(entrance, source, output)
            assert good.how == "done", good
        for number in range(n_mutants):
            rng = random.Random(f"tokenizers {seed} {number}")
            entrance = rng.choice(_ENTRANCES)
            model = models[0] if entrance in _ENTRANCES[:2] else rng.choice(models)
            forge = forged_tiktoken.mutant if model == _TIKTOKEN else mutant
            changed = forge(model, rng)
            if entrance == "verify tokenizer":
                ended = _verify(child, place, model, changed, rng)
            else:
                path.write_bytes(changed)
                ended = child.run(entrance, source, output)
            peak, slowest = max(peak, ended.peak_bytes), max(slowest, ended.seconds)
            how = ended.how.partition(":")[0]
            tally[how] += 1
            if how not in RIGHT and plant == "none":
                sys.stderr.write(f"  mutant {number}, {entrance}: {ended.how}\n")
    return tally, peak, slowest


def _verify(child: Child, place: Path, model: bytes, changed: bytes, rng: random.Random) -> Ended:
    """Compare a good output with another source, or a forged tokenizer.json with a good one."""
    source, output = place / "alone", place / "good"
    (source / "tokenizer.model").write_bytes(model)
    made = child.run("tokenizer_only", source, output)
    if made.how != "done":
        return made
    if rng.random() < 0.5:
        (source / "tokenizer.model").write_bytes(changed)
        return child.run("verify tokenizer", source, output)
    written = output / "tokenizer.json"
    good = written.read_bytes()
    filler = rng.choice((b"[],", b"{},", b"0,", b'"",', b"[[[[[[[[]]]]]]]],", b'{"a":"b"},', b" "))
    count = rng.choice((10, 1000, 50_000, 1_000_000, 20_000_000)) // len(filler)
    at = rng.choice((good.index(b"{"), good.rindex(b"]"), good.index(b'"merges": [') + 10))
    forged = good[: at + 1] + filler * count + good[at + 1 :]
    written.write_bytes(damage(good, rng) if rng.random() < 0.4 else forged)
    return child.run("verify tokenizer", source, output)
