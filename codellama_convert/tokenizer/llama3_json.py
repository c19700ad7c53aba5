"""Own tokenizer.json of Llama 3, byte for byte the hub's, without any library.

tiktoken joins whatever pair of tokens makes the token of the lowest rank; a list of pairs says the
same if it holds every split of every token. One split of each, as training finds them, gave other
ids to 1,178 of 16,500 random texts.

Sources:
    meta-llama/llama-models models/llama3/tokenizer.py: the pattern.
    meta-llama/Llama-3.1-8B-Instruct tokenizer.json: every value around the vocabulary.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from codellama_convert.formats.tiktoken import PackedBytes, TiktokenModel
from codellama_convert.storage.contents import Chunked
from codellama_convert.tokenizer.streamed_json import (
    AROUND_LINES_BYTES,
    BETWEEN_LINES,
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


def _spelled_bytes() -> str:
    """Spell each byte as a character: itself where Latin-1 prints it, else one from U+0100 on.

    Source: openai/gpt-2 src/encoder.py, `bytes_to_unicode`.
    """
    printed = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (chr(256 + number) for number in range(256))
    return "".join(chr(byte) if byte in printed else next(others) for byte in range(256))


_quoted = json.encoder.encode_basestring
_SPELLED_BYTES = _spelled_bytes()
# All other bytes take two, some for their character and some as they are escaped.
_SPELLED_AS_ONE = bytes(n for n, c in enumerate(_SPELLED_BYTES) if len(_quoted(c).encode()) == 3)
_ENTRY_INDENT = "      "


def _merges(model: TiktokenModel) -> Iterator[tuple[str, str]]:
    """Yield both halves of each cut, spelled, in the order of the tokens' and left halves' ranks."""
    for token, lengths in zip(model.tokens, model.cuts, strict=True):
        spelled = _spelled(token)
        for n in lengths:
            yield spelled[:n], spelled[n:]


def _merge_bytes(model: TiktokenModel) -> Iterator[int]:
    """Count what the merges of each token take."""
    around_pair = len(f'{MERGE_INDENT}" "{BETWEEN_LINES}')
    for token, lengths in zip(model.tokens, model.cuts, strict=True):
        if lengths:
            yield len(lengths) * (around_pair + _n_spelled(token))


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
    n_bytes = count_bytes(
        sum(map(len, _chunks(model, special, (), ()))) + _vocabulary_bytes(model.tokens),
        _merge_bytes(model),
        path=model.path,
        n_pieces=len(model.tokens),
    )
    return Chunked(n_bytes, lambda: _whole(model, special))


def _vocabulary_bytes(tokens: PackedBytes) -> int:
    """Count what the vocabulary's lines take."""
    around_entry = len(f'{_ENTRY_INDENT}"": {BETWEEN_LINES}')
    rank_bytes = sum(map(len, map(str, range(len(tokens)))))
    return AROUND_LINES_BYTES + len(tokens) * around_entry + rank_bytes + _n_spelled(tokens.joined)


def _whole(model: TiktokenModel, special: Sequence[str]) -> Iterator[bytes]:
    vocabulary = (
        f"{_ENTRY_INDENT}{_quoted(_spelled(token))}: {rank}"
        for rank, token in enumerate(model.tokens)
    )
    merges = (f"{MERGE_INDENT}{_quoted(f'{a} {b}')}" for a, b in _merges(model))
    return _chunks(model, special, vocabulary, merges)


def _chunks(
    model: TiktokenModel, special: Sequence[str], vocabulary: Iterable[str], merges: Iterable[str]
) -> Iterator[bytes]:
    added_tokens = _added_tokens(special, model.bos_id)
    return json_chunks(_frame(special[0], model.bos_id), added_tokens, vocabulary, merges)


def _added_tokens(special: Sequence[str], first_id: int) -> Iterator[dict[str, Any]]:
    for number, content in enumerate(special, first_id):
        yield added_token(number, content, special=True)


def _spelled(token: bytes) -> str:
    return codecs.charmap_decode(token, "strict", _SPELLED_BYTES)[0]


def _n_spelled(token: bytes) -> int:
    """Count the bytes, UTF-8, of a token's spelling inside of quotes."""
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
