"""Own the tiny Code Llama's SentencePiece tokenizer and Meta's prompt forms; know no weights.

The tokenizer is trained with Llama's settings; then Code Llama's infilling pieces are appended the
way Meta appended them, without protobuf: a SentencePiece model is a flat list of fields.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import sentencepiece

from tests.witness.tiny_codellama.functions import Filling

Order = Literal["psm", "spm"]
ORDERS: tuple[Order, ...] = ("psm", "spm")

N_LEARNED = 624  # with Code Llama's 16 appended pieces: 640 rows, a multiple of any rank count
LATE, LAST = -1e9, -1e18  # Meta's scores: merge after all learned pieces, and after those
# Code Llama's appended pieces in its own order: steps to the four infilling pieces, then these,
# then five spares. Source: Meta's tokenizer.model, rebuilt to the same md5.
STEPS = ("▁<SU", "▁<SUF", "▁<PRE", "▁<M", "▁<MID", "▁<E", "▁<EOT")
PREFIX, SUFFIX, MIDDLE, EOT = INFILLING = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")
SPARES = tuple("▁" + "<EOT>" * n for n in range(2, 7))
LONGEST_RUN = 16  # spaces; Llama has a piece for every length from 1 to 16
# The steps are made of these; every pair stands in many surroundings, so it is learned by itself.
HALVES = ("SU", "PRE", "ID", "OT")  # codespell:ignore ot
SURROUNDINGS = ("({})", "[{}]", "{{{}}}", "'{}'", '"{}"', "_{}_", ".{}.", ":{}:", "={}=", "*{}*")


def training_lines(texts: Sequence[str]) -> Iterator[str]:
    """Yield what the pieces are learned from.

    Indentation is taken off, because "▁" at the start of a piece stands for the last space of an
    indentation: "    return" is to become "▁▁▁" and "▁return", as it does in Llama.

    Args:
        texts: Source code.

    Yields:
        The lines of `texts`, the halves of the steps, and every length of indentation.
    """
    yield from (line.strip() for text in texts for line in text.splitlines() if line)
    for surrounding in SURROUNDINGS:
        yield from (surrounding.format(half) for half in HALVES)
        yield from (" " * n for n in range(1, LONGEST_RUN))  # the dummy prefix adds one
    yield from ("x < 1", "y < z")  # teaches "▁<", the first half of every step


def train_tokenizer(texts: Sequence[str]) -> bytes:
    """Train a SentencePiece BPE tokenizer with Llama's settings and append Code Llama's pieces.

    Args:
        texts: Source code to learn the pieces from.

    Returns:
        The bytes of `tokenizer.model`.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=training_lines(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=N_LEARNED,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        character_coverage=1.0,
        # Meta's infilling code drops "▁☺", two tokens, from the front: ☺ has to be a piece.
        required_chars="☺" + "".join(map(chr, range(33, 127))),
        pad_id=-1,
        unk_surface=" \u2047 ",
        num_threads=1,
        minloglevel=2,
    )
    return append_infilling(model.getvalue())


def append_infilling(model: bytes) -> bytes:
    """Append Code Llama's 16 pieces, and give the space-only pieces Llama's late score.

    Args:
        model: A SentencePiece model; its pieces are the fields numbered 1, before all others.

    Returns:
        The new model. `trainer_spec.vocab_size` stays as it was, as in Code Llama's own file.
    """
    pieces, cursor = [], 0
    while model[cursor] == 0x0A:  # field 1, length-delimited
        start, cursor = cursor + 2, cursor + 2 + model[cursor + 1]
        piece = model[start:cursor]
        text = piece[2 : 2 + piece[1]].decode()
        pieces.append(encode_piece(text, LATE) if set(text) == {"▁"} else field(piece))
    pieces += [encode_piece(text, LATE) for text in STEPS]
    pieces += [encode_piece(text, LAST) for text in INFILLING + SPARES]
    return b"".join(pieces) + model[cursor:]


def encode_piece(text: str, score: float) -> bytes:
    """Encode a NORMAL piece: its text is field 1, its score field 2, its type left unset."""
    return field(field(text.encode()) + b"\x15" + struct.pack("<f", score))


def field(content: bytes) -> bytes:
    """Encode a length-delimited field numbered 1, shorter than 128 bytes."""
    assert len(content) < 128
    return b"\x0a" + bytes([len(content)]) + content


def encode_infilling(tokenizer: Any, text: str) -> list[int]:
    """Encode `text` without the space SentencePiece would put before it, as Meta does."""
    ids: list[int] = tokenizer.encode("☺" + text)
    return ids[2:]


def decode_infilling(tokenizer: Any, ids: Sequence[int]) -> str:
    """Decode what follows other tokens: the inverse of `encode_infilling`."""
    text: str = tokenizer.decode([tokenizer.piece_to_id("☺"), *ids])
    return text[1:]


def infilling_prompt(tokenizer: Any, prefix: str, suffix: str, order: Order) -> list[int]:
    """Encode a prefix and a suffix as Meta's reference code does.

    Args:
        tokenizer: A `SentencePieceProcessor` that has the four infilling pieces.
        prefix: What stands before the gap.
        suffix: What stands after the gap.
        order: "psm" for prefix, suffix, middle; "spm" for suffix, prefix, middle.

    Returns:
        The token ids to complete.

    Source:
        meta-llama/codellama llama/generation.py, `infilling_prompt_tokens`.
    """
    pre, suf, mid = (tokenizer.piece_to_id(piece) for piece in (PREFIX, SUFFIX, MIDDLE))
    before, after = tokenizer.encode(prefix), encode_infilling(tokenizer, suffix)
    if order == "psm":
        return [tokenizer.bos_id(), pre, *before, suf, *after, mid]
    return [tokenizer.bos_id(), pre, suf, *after, mid, *before]


def infilling_answer(tokenizer: Any, filling: Filling) -> list[int]:
    """Encode what the model has to answer: the middle, then `▁<EOT>`."""
    return [*encode_infilling(tokenizer, filling.middle), tokenizer.piece_to_id(EOT)]
