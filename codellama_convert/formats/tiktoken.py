"""Own what a tiktoken vocabulary says: Llama 3's tokenizer.model, a token in base64 on each line."""

from __future__ import annotations

import binascii
import io
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from codellama_convert.errors import TokenizerError, shown
from codellama_convert.storage.input_file import InputFile

# Llama 3's file has 2,183,982 bytes and 128,000 tokens, its longest token 128 bytes; Llama 4's has
# 200,000 tokens. The limits bound the memory and time that a hostile file can cost.
MAX_FILE_BYTES = 4 << 20
MAX_TOKENS = 1 << 17
MAX_TOKEN_BYTES = 256
# Meta's code puts as many behind the tokens of the file.
# Source: meta-llama/llama-models models/llama3/tokenizer.py, num_reserved_special_tokens.
N_SPECIAL_TOKENS = 256

_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) (0|[1-9][0-9]{0,6})\n")
_DOWNLOAD_AGAIN = "download the model's tokenizer.model again"


class PackedBytes:
    """Byte strings in one piece; each is made when it is asked for: 128,000 tokens would take 7 MB.

    Attributes:
        joined: All of them, one behind the other.
    """

    def __init__(self, strings: Iterable[bytes]) -> None:
        """Put them one behind the other, as they come."""
        joined, self._ends = bytearray(), array("I")
        for string in strings:
            joined += string
            self._ends.append(len(joined))
        self.joined = bytes(joined)

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[bytes]:
        start = 0
        for end in self._ends:
            yield self.joined[start:end]
            start = end


@dataclass(frozen=True)
class TiktokenModel:
    """A tokenizer.model of Llama 3 that passed every check.

    Attributes:
        path: Where it was read.
        raw: The file's bytes, unchanged.
        tokens: By rank, which is the id: the lower, the earlier BPE merges it.
        cuts: For each token, where it can be cut into two others: the lengths of the left halves,
            in the order of these halves' ranks.
    """

    path: Path
    raw: bytes = field(repr=False)
    # They follow from the file's bytes.
    tokens: PackedBytes = field(repr=False, compare=False)
    cuts: PackedBytes = field(repr=False, compare=False)

    @property
    def n_pieces(self) -> int:
        """How many rows an embedding needs: one for each token and each special token."""
        return len(self.tokens) + N_SPECIAL_TOKENS

    @property
    def bos_id(self) -> int:
        """The id that begins a text, the first behind the tokens."""
        return len(self.tokens)

    @property
    def eos_id(self) -> int:
        """The id that ends a text."""
        return len(self.tokens) + 1


def read_tiktoken_model(path: Path) -> TiktokenModel:
    """Read a tokenizer.model of Llama 3 and refuse what would not give Meta's ids.

    Stricter than Meta's own reader, which passes over a damaged line with a warning: its token is
    then missing, and every text with it gets other ids.

    Args:
        path: A tiktoken vocabulary of bytes, at most 4 MiB.

    Returns:
        Its tokens, how they are cut, and its bytes.

    Raises:
        TokenizerError: If the file cannot be read or is damaged, or its vocabulary is not one that
            can encode every text.
    """
    with InputFile(path, error=TokenizerError) as file:
        raw = file.read_whole(MAX_FILE_BYTES, hint=_DOWNLOAD_AGAIN)
    try:
        ranks = _parse_lines(raw)
    except ValueError as problem:
        raise TokenizerError(str(problem), path=path, hint=_DOWNLOAD_AGAIN) from problem
    # Here, where the ranks are at hand: to build them again would take 14 MB, and time.
    return TiktokenModel(path, raw, PackedBytes(ranks), PackedBytes(_cuts(ranks)))


def _cuts(ranks: Mapping[bytes, int]) -> Iterator[bytes]:
    for token in ranks:
        lengths = [n for n in range(1, len(token)) if token[n:] in ranks and token[:n] in ranks]
        if len(lengths) > 1:
            lengths.sort(key=lambda n: ranks[token[:n]])
        yield bytes(lengths)


def _parse_lines(raw: bytes) -> dict[bytes, int]:
    """Return the rank of each token, in order; whatever is wrong with them is a ValueError."""
    if not raw.endswith(b"\n"):
        raise ValueError("the last line does not end in a newline: the file is truncated")
    ranks: dict[bytes, int] = {}
    for rank, line in enumerate(io.BytesIO(raw)):
        if rank == MAX_TOKENS:
            raise ValueError(f"has more than {MAX_TOKENS} tokens; Llama 3's vocabulary has 128000")
        token = _parse_line(line, rank)
        if token in ranks:
            raise ValueError(f"line {rank + 1}: the token {shown(token)} occurs a second time")
        ranks[token] = rank
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(
            f"the byte 0x{missing[0]:02x} is not a token (of 256 bytes, {len(missing)} are not): "
            "not every text could be encoded"
        )
    return ranks


def _parse_line(line: bytes, rank: int) -> bytes:
    try:
        token = binascii.a2b_base64(line.partition(b" ")[0])
    except binascii.Error:
        token = b""
    # The decoder passes over bits and signs that no encoder writes, so the line is written again.
    if not token or line != b"%b %d\n" % (binascii.b2a_base64(token, newline=False), rank):
        raise ValueError(_what_is_wrong(line, rank))
    if len(token) > MAX_TOKEN_BYTES:
        raise ValueError(f"line {rank + 1}: the token has {len(token)} bytes")
    if token.startswith(b"<|") and token.endswith(b"|>"):
        raise ValueError(f"line {rank + 1}: the token {shown(token)} is spelled as a special token")
    return token


def _what_is_wrong(line: bytes, rank: int) -> str:
    """Say why a line is not what an encoder writes for its token and rank."""
    found = _LINE.fullmatch(line)
    if found is None:
        return f"line {rank + 1} is {shown(line)}, expected a token in base64, a space and its rank"
    spelled, found_rank = found.groups()
    if int(found_rank) != rank:
        return f"line {rank + 1} has rank {int(found_rank)}, expected {rank}"
    return f"line {rank + 1}: {shown(spelled)} is not canonical base64"
