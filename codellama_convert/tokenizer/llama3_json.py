"""Own tokenizer.json of Llama 3, byte for byte the hub's, without any library.

tiktoken joins whatever pair of tokens makes the token of the lowest rank; a list of pairs says the
same if it holds every split of every token. One split of each, as training finds them, gave other
ids to 1,178 of 16,500 random texts.

Sources:
    meta-llama/llama-models models/llama3/tokenizer.py: the pattern.
    meta-llama/Llama-3.1-8B-Instruct tokenizer.json: every value around the vocabulary.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from codellama_convert.formats.tiktoken import TiktokenModel
from codellama_convert.storage.contents import Chunked
from codellama_convert.tokenizer.streamed_json import (
    BETWEEN_MERGES,
    MERGE_INDENT,
    added_token,
    begin_texts,
    count_bytes,
    empty_bpe,
    json_chunks,
)

_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _spelled_bytes() -> dict[int, str]:
    """Spell each byte as JSON text: itself where Latin-1 prints it, else a character from U+0100 on.

    Source: openai/gpt-2 src/encoder.py, `bytes_to_unicode`.
    """
    printed = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (byte for byte in range(256) if byte not in printed)
    spelled = {byte: chr(byte) for byte in printed}
    spelled |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    return spelled | {ord('"'): '\\"', ord("\\"): "\\\\"}


_SPELLED_BYTES = _spelled_bytes()


# All other bytes take two.
_SPELLED_AS_ONE = bytes(byte for byte, text in _SPELLED_BYTES.items() if len(text.encode()) == 1)


def _cuts(token: bytes, tokens: Container[bytes]) -> list[int]:
    """List the lengths of the left halves of all splits of a token into two others."""
    return [n for n in range(1, len(token)) if token[:n] in tokens and token[n:] in tokens]


def _merges_of(tokens: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Find all splits of all tokens into two others.

    Args:
        tokens: The vocabulary, by rank.

    Yields:
        Both halves, by the rank of the token, then of the left half, then of the right one.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    for token in ranks:
        halves = [(token[:n], token[n:]) for n in _cuts(token, ranks)]
        if len(halves) > 1:
            halves.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        yield from halves


# A conversion asks before anything is written, and again when it writes.
@lru_cache(maxsize=1)
def build_json(model: TiktokenModel, special: tuple[str, ...]) -> Chunked:
    """Write tokenizer.json as the hub has it, with merges as strings, not pairs.

    Args:
        model: The tokenizer.model of the checkpoint.
        special: The special tokens behind its own, the one that begins a text first.

    Returns:
        The file's size and its bytes, UTF-8.

    Raises:
        TokenizerError: If it were far larger than that of any vocabulary in use.
    """
    known = frozenset(model.tokens)
    around_pair = len(f'{MERGE_INDENT}" "{BETWEEN_MERGES}')
    # Counted without their order and spelling, which cost more and which only the file needs.
    merge_bytes = (
        len(_cuts(token, known)) * (around_pair + _n_spelled(token)) for token in model.tokens
    )
    n_bytes = count_bytes(
        _chunks(model, special, ()), merge_bytes, path=model.path, n_pieces=len(model.tokens)
    )
    return Chunked(n_bytes, lambda: _chunks(model, special, _merges_of(model.tokens)))


def _chunks(
    model: TiktokenModel, special: Sequence[str], merges: Iterable[tuple[bytes, bytes]]
) -> Iterator[bytes]:
    vocabulary_lines = (
        f'      "{_spelled(token)}": {rank}' for rank, token in enumerate(model.tokens)
    )
    merge_lines = (f'{MERGE_INDENT}"{_spelled(left)} {_spelled(right)}"' for left, right in merges)
    added_tokens = _added_tokens(special, model.bos_id)
    return json_chunks(
        _frame(special[0], model.bos_id), added_tokens, vocabulary_lines, merge_lines
    )


def _added_tokens(special: Sequence[str], first_id: int) -> Iterator[dict[str, Any]]:
    for number, content in enumerate(special, first_id):
        yield added_token(number, content, special=True)


def _spelled(token: bytes) -> str:
    return token.decode("latin-1").translate(_SPELLED_BYTES)


def _n_spelled(token: bytes) -> int:
    """Count the bytes, UTF-8, of a token's spelling."""
    return len(token) + len(token.translate(None, _SPELLED_AS_ONE))


def _frame(bos: str, bos_id: int) -> dict[str, Any]:
    """Build tokenizer.json without its three long lists; the order of keys is the library's."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": _PATTERN},
                    "behavior": "Isolated",
                    "invert": False,
                },
                _byte_level(add_prefix_space=False, trim_offsets=True, use_regex=False),
            ],
        },
        "post_processor": {
            "type": "Sequence",
            "processors": [
                _byte_level(add_prefix_space=True, trim_offsets=False, use_regex=True),
                begin_texts(bos, bos_id),
            ],
        },
        "decoder": _byte_level(add_prefix_space=True, trim_offsets=True, use_regex=True),
        # tiktoken looks for a whole word first; 588 tokens are not what their own parts make.
        "model": empty_bpe(unk_token=None, byte_fallback=False, ignore_merges=True),
    }


def _byte_level(**settings: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", **settings}
