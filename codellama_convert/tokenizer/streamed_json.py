"""Own how a tokenizer.json is written line by line, and how large it may be.

Its three long lists never exist whole: a frame is written around them, and the size is counted first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from codellama_convert.errors import TokenizerError
from codellama_convert.formats.sentencepiece import DOWNLOAD_AGAIN

# Llama 2's has 1.9 MB (61,249 merges), Llama 3's 9.1 MB (280,147), that of Gemma 3's 262,144 pieces
# (514,906 merges, the most in use) would have 19 MB, and each merge takes what its piece takes: the
# limit leaves it room, and a vocabulary of all substrings of a text, which would fill a disk, none.
MAX_JSON_BYTES = 32 << 20
MERGE_INDENT = "      "
BETWEEN_LINES = ",\n"
_BEFORE_LINES, _BEHIND_LINES = "\n", "\n    "
# Of a list of lines with one between any two; counted as if one stood behind the last as well.
AROUND_LINES_BYTES = len(_BEFORE_LINES) + len(_BEHIND_LINES) - len(BETWEEN_LINES)
_CHUNK_ENTRIES = 1024


def added_token(number: int, content: str, *, special: bool) -> dict[str, Any]:
    """Describe a token that is looked for in a text before anything else."""
    return {
        "id": number,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def begin_texts(bos: str, bos_id: int) -> dict[str, Any]:
    """Describe the step that puts a token before a text, and before each of two."""
    first, second = ({"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB"))
    bos_first, bos_second = ({"SpecialToken": {"id": bos, "type_id": n}} for n in (0, 1))
    return {
        "type": "TemplateProcessing",
        "single": [bos_first, first],
        "pair": [bos_first, first, bos_second, second],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }


def empty_bpe(*, unk_token: str | None, byte_fallback: bool, ignore_merges: bool) -> dict[str, Any]:
    """Describe a BPE model, its vocabulary and merges empty; what is unknown is joined as bytes."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk_token,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": byte_fallback,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": {},
        "merges": [],
    }


def json_chunks(
    frame: dict[str, Any],
    added_tokens: Iterable[dict[str, Any]],
    vocabulary_lines: Iterable[str],
    merge_lines: Iterable[str],
) -> Iterator[bytes]:
    """Write a tokenizer.json from its beginning.

    Args:
        frame: The file with `added_tokens`, `vocab` and `merges` empty; the order of keys is kept.
        added_tokens: Entries of the first list.
        vocabulary_lines: Lines of the second, indented, without commas.
        merge_lines: Lines of the third.

    Yields:
        Its bytes, UTF-8.
    """
    # A quotation mark inside a JSON string is escaped, so these can only be the keys.
    head, rest = json.dumps(frame, indent=2, ensure_ascii=False).split('"added_tokens": []')
    middle, rest = rest.split('"vocab": {}')
    last, tail = rest.split('"merges": []')
    yield f'{head}"added_tokens": ['.encode()
    yield from _joined(map(_added_token_lines, added_tokens), "\n  ")
    yield f']{middle}"vocab": {{'.encode()
    yield from _joined(vocabulary_lines, _BEHIND_LINES)
    yield f'}}{last}"merges": ['.encode()
    yield from _joined(merge_lines, _BEHIND_LINES)
    yield f"]{tail}".encode()


def count_bytes(
    without_merges: int, merge_bytes: Iterable[int], *, path: Path, n_pieces: int
) -> int:
    """Count the bytes of a tokenizer.json before a merge is written.

    Args:
        without_merges: Those of the file with an empty list of them.
        merge_bytes: For each piece, what all its merges take, commas and line ends included.
        path: The tokenizer.model, for the message.
        n_pieces: How many it has, for the message.

    Returns:
        The file's size.

    Raises:
        TokenizerError: If it were far larger than that of any vocabulary in use.
    """
    n_bytes = without_merges
    for more in merge_bytes:
        n_bytes += more
        if n_bytes > MAX_JSON_BYTES:
            raise TokenizerError(
                f"its {n_pieces} pieces can be put together in so many ways that "
                f"tokenizer.json would have more than {MAX_JSON_BYTES} bytes",
                path=path,
                hint=DOWNLOAD_AGAIN,
            )
    return n_bytes if n_bytes == without_merges else n_bytes + AROUND_LINES_BYTES


def _joined(entries: Iterable[str], end: str) -> Iterator[bytes]:
    """Join the entries of a list with commas, and end before its closing bracket."""
    left = iter(entries)
    between = _BEFORE_LINES
    while batch := list(islice(left, _CHUNK_ENTRIES)):
        yield (between + BETWEEN_LINES.join(batch)).encode()
        between = BETWEEN_LINES
    if between != _BEFORE_LINES:
        yield end.encode()


def _added_token_lines(token: dict[str, Any]) -> str:
    # Not textwrap.indent: to it U+2028 inside of a piece begins a line too.
    return "    " + json.dumps(token, indent=2, ensure_ascii=False).replace("\n", "\n    ")
