"""Own forged vocabularies of Llama 3's kind: damaged lines, odd tokens, and more work than they weigh."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterable

from tests.fuzzers.fuzz_files import damage
from tests.witness.llama3 import spelled

_BYTES = tuple(bytes([n]) for n in range(256))
_TOKENS = (
    b"", b"\0", b" ", b"\n", b"a\0b", b"\xed\xa0\x80", b"\xff" * 256, b"x" * 257, b"<|eot_id|>", b"<||>", b"<|",
    b'"', b'"merges": []', b'"vocab": {}', b"\\", b"\\u0041", "\u0120".encode(), "\u2028".encode(), b"ab", b"a",
)  # fmt: skip
_LINES = (
    b"", b" ", b"\r", b"=", b"= 0", b"AA==", b"AA== ", b" 0", b"AA== -1", b"AA== 1e3", b"AA== 0x1", b"AA==\t0",
    b"AA== 99999999999999999999", b"AB== 0", b"A=== 0", b"AAAA= 0", b"YWE 0", b"\xff\xfe", b"# comment",
)  # fmt: skip


def mutant(raw: bytes, rng: random.Random) -> bytes:
    """Change a vocabulary as an accident does, or as someone who knows what it is."""
    kind = rng.randrange(6)
    if kind == 0:
        return damage(raw, rng)
    if kind == 1:
        return _with_new_tokens(rng)
    lines = raw.splitlines()
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(lines))
        token, rank = rng.choice(_TOKENS), rng.choice((at, at + 1, 0, len(lines), -1, 1 << 31))
        made = base64.b64encode(token) + b" %d" % rank
        lines[at : at + rng.randrange(2)] = [rng.choice((made, made, *_LINES, rng.choice(lines)))]
    if kind == 2:  # the ranks fit again
        lines = [line.partition(b" ")[0] + b" %d" % rank for rank, line in enumerate(lines)]
    return b"\n".join(lines) + rng.choice((b"\n", b"\n", b"\n", b"", b"\n\n", b"\r\n"))


def _with_new_tokens(rng: random.Random) -> bytes:
    """Write a right file whose tokens can be cut in many ways, or are many."""
    kind = rng.randrange(3)
    found: Iterable[bytes]
    if kind == 0:
        longest, letters = rng.choice((16, 128, 256)), rng.sample(range(256), rng.choice((1, 3, 8)))
        found = (bytes([letter]) * n for letter in letters for n in range(2, longest + 1))
    elif kind == 1:
        text = bytes(rng.choice(b"ab\\") for _ in range(rng.choice((20, 60, 100))))
        found = (text[i:j] for i in range(len(text)) for j in range(i + 2, len(text) + 1))
    else:
        found = (n.to_bytes(3, "big") for n in range(rng.choice((1000, 40_000, 140_000))))
    return spelled(dict.fromkeys((*_BYTES, *found)))
