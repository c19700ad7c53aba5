"""Own the protocol buffer that a tokenizer.model is: its wire format, its fields, its pieces.

What the values mean, and which of them fit, is for others to say.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

# Wire types. Source: protobuf.dev/programming-guides/encoding.
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

# Field numbers. Source: google/sentencepiece src/sentencepiece_model.proto.
MODEL_PIECE, MODEL_TRAINER, MODEL_NORMALIZER, MODEL_SELF_TEST, MODEL_DENORMALIZER = 1, 2, 3, 4, 5
PIECE_TEXT, PIECE_SCORE, PIECE_TYPE = 1, 2, 3
TRAINER_MODEL_TYPE, TRAINER_BYTE_FALLBACK = 3, 35
TRAINER_WHITESPACE_SUFFIX = 24
TRAINER_UNK_PIECE, TRAINER_BOS_PIECE, TRAINER_EOS_PIECE = 45, 46, 47
NORMALIZER_CHARSMAP, NORMALIZER_RULES = 2, 6

# Field, name, SentencePiece's default, and the value with which Hugging Face's files are exact.
NORMALIZER_SWITCHES = (
    (3, "add_dummy_prefix", 1, True),
    (4, "remove_extra_whitespaces", 1, False),
    (5, "escape_whitespaces", 1, True),
)

MAX_PIECES = 1 << 18  # Gemma 3's 262,144 are the most in use

_NORMALIZER_WIRES = {
    NORMALIZER_CHARSMAP: LENGTH,
    NORMALIZER_RULES: LENGTH,
    **{number: VARINT for number, *_ in NORMALIZER_SWITCHES},
}
_WIRES = {
    MODEL_TRAINER: {
        TRAINER_MODEL_TYPE: VARINT,
        TRAINER_BYTE_FALLBACK: VARINT,
        TRAINER_WHITESPACE_SUFFIX: VARINT,
        TRAINER_UNK_PIECE: LENGTH,
        TRAINER_BOS_PIECE: LENGTH,
        TRAINER_EOS_PIECE: LENGTH,
    },
    MODEL_NORMALIZER: _NORMALIZER_WIRES,
    MODEL_DENORMALIZER: _NORMALIZER_WIRES,
}

_SCORE = struct.Struct("<f")
# A piece as sentencepiece spells it: its text, its score, and its type where it is no normal one.
_PIECE_TAG = MODEL_PIECE << 3 | LENGTH
_TEXT_TAG = PIECE_TEXT << 3 | LENGTH
_SCORE_TAG = PIECE_SCORE << 3 | FIXED32
_TYPE_TAG = PIECE_TYPE << 3 | VARINT
_SCORE_BYTES = 1 + _SCORE.size


class WireError(ValueError):
    """The bytes are not the protocol buffer that they should be."""


class PieceType(IntEnum):
    """What a piece is for. Source: google/sentencepiece src/sentencepiece_model.proto."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


PIECE_TYPES = {int(kind): kind for kind in PieceType}


class Piece(NamedTuple):
    """One entry of the vocabulary; its place in the file is its id.

    Attributes:
        text: The piece, with U+2581 for a space.
        score: The higher, the earlier BPE merges it.
        type: What it is for.
    """

    text: str
    score: float
    type: PieceType


@dataclass(slots=True)
class Pieces:
    """The vocabulary, by id; a piece is made when it is looked at, 262,144 of them take 30 MB."""

    _texts: list[str] = field(default_factory=list)
    _scores: array[float] = field(default_factory=lambda: array("f"))  # as the file has them
    _types: bytearray = field(default_factory=bytearray)

    def append(self, piece: Piece) -> None:
        """Add the piece of the next id."""
        self._texts.append(piece.text)
        self._scores.append(piece.score)
        self._types.append(piece.type)

    def take_plain(self, raw: bytes, offset: int) -> int:
        """Add pieces that are spelled as sentencepiece spells them, up to a field of any other form.

        Nearly all of a vocabulary are, and walking the fields of each would take six times as long.

        Args:
            raw: The whole file.
            offset: Where a field begins.

        Returns:
            Where the first one begins that was not taken, right or wrong.
        """
        texts, types, scores = self._texts, self._types, bytearray()
        stop, plain = len(raw), int(PieceType.NORMAL)
        with suppress(UnicodeDecodeError):
            while len(texts) < MAX_PIECES and offset + 4 <= stop:
                n_bytes = raw[offset + 1]
                end, behind = offset + 2 + n_bytes, offset + 4 + raw[offset + 3]
                if raw[offset] != _PIECE_TAG or raw[offset + 2] != _TEXT_TAG or n_bytes >= 0x80:
                    break
                if end > stop or end - behind < _SCORE_BYTES or raw[behind] != _SCORE_TAG:
                    break
                kind = plain
                if end - behind != _SCORE_BYTES:
                    kind = raw[end - 1]
                    is_typed = end - behind == _SCORE_BYTES + 2 and raw[end - 2] == _TYPE_TAG
                    if not is_typed or kind not in PIECE_TYPES:
                        break
                texts.append(raw[offset + 4 : behind].decode())
                types.append(kind)
                scores += raw[behind + 1 : behind + _SCORE_BYTES]
                offset = end
        in_order = array("f", bytes(scores))
        if sys.byteorder == "big":
            in_order.byteswap()
        self._scores += in_order
        return offset

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, number: int) -> Piece:
        return Piece(self._texts[number], self._scores[number], PIECE_TYPES[self._types[number]])

    @property
    def texts(self) -> Sequence[str]:
        """The text of each, by id."""
        return self._texts

    @property
    def scores(self) -> Sequence[float]:
        """The score of each, by id."""
        return self._scores

    @property
    def types(self) -> Sequence[int]:
        """The number of the `PieceType` of each, by id."""
        return self._types

    def texts_of(self, kind: PieceType) -> list[str]:
        """List the texts of one type, by id."""
        number = int(kind)
        return [text for text, one in zip(self._texts, self._types, strict=True) if one == number]

    def id_of(self, text: str) -> int | None:
        """Find a piece by its text, one after the other."""
        try:
            return self._texts.index(text)
        except ValueError:
            return None

    def __iter__(self) -> Iterator[Piece]:
        return map(Piece, self._texts, self._scores, map(PIECE_TYPES.__getitem__, self._types))


@dataclass(frozen=True, slots=True)
class Message:
    """The three parts of a model file, wire format checked, meaning not."""

    pieces: Pieces
    trainer: Mapping[int, int | bytes] | None
    normalizer: Mapping[int, int | bytes] | None
    denormalizer: Mapping[int, int | bytes] | None


def parse_model(raw: bytes) -> Message:
    """Parse a tokenizer.model.

    Args:
        raw: The whole file.

    Returns:
        Its pieces, and its settings by field number.

    Raises:
        WireError: If it is damaged, or has a field that SentencePiece does not know.
    """
    pieces = Pieces()
    settings: dict[int, dict[int, int | bytes]] = {}
    end = 0
    while (start := pieces.take_plain(raw, end)) < len(raw):
        number, wire, _, first, end = next(fields(raw, start, len(raw)))
        # SentencePiece would skip a field it does not know; a flipped bit that hides a piece this
        # way would shift all later ids.
        if wire != LENGTH or not MODEL_PIECE <= number <= MODEL_DENORMALIZER:
            raise WireError(f"unknown field {number} before byte {first}")
        if number == MODEL_PIECE:
            if len(pieces) == MAX_PIECES:
                raise WireError(f"more than {MAX_PIECES} pieces")
            pieces.append(_parse_piece(raw, first, end))
        elif number in settings:
            raise WireError(f"field {number} occurs twice, again at byte {first}")
        elif number != MODEL_SELF_TEST:
            settings[number] = _parse_settings(raw, first, end, _WIRES[number])
    return Message(
        pieces=pieces,
        trainer=settings.get(MODEL_TRAINER),
        normalizer=settings.get(MODEL_NORMALIZER),
        denormalizer=settings.get(MODEL_DENORMALIZER),
    )


def _parse_settings(
    raw: bytes, start: int, stop: int, wires: Mapping[int, int]
) -> dict[int, int | bytes]:
    found: dict[int, int | bytes] = {}
    for number, wire, value, first, end in fields(raw, start, stop):
        # SentencePiece takes a field of another wire type for an unknown one: its default holds.
        if wire != wires.get(number, wire):
            raise WireError(f"setting {number} of wire type {wire} before byte {first}")
        found[number] = value if wire == VARINT else raw[first:end]
    return found


def _parse_piece(raw: bytes, start: int, stop: int) -> Piece:
    text, score, kind = "", 0.0, PieceType.NORMAL
    for number, wire, value, first, end in fields(raw, start, stop):
        if (number, wire) == (PIECE_TEXT, LENGTH):
            try:
                text = raw[first:end].decode()
            except UnicodeDecodeError as error:
                raise WireError(f"the piece at byte {first} is not UTF-8") from error
        elif (number, wire) == (PIECE_SCORE, FIXED32):
            (score,) = _SCORE.unpack_from(raw, first)
        elif (number, wire) == (PIECE_TYPE, VARINT) and value in PIECE_TYPES:
            kind = PIECE_TYPES[value]
        else:
            raise WireError(f"unknown field {number} or type {value} in the piece at byte {start}")
    return Piece(text, score, kind)


def _varint(raw: bytes, offset: int, end: int) -> tuple[int, int]:
    if offset < end and raw[offset] < 0x80:  # nearly all of them
        return raw[offset], offset + 1
    value = shift = 0
    for position in range(offset, min(offset + 10, end)):
        byte = raw[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + 1
        shift += 7
    raise WireError(f"the number at byte {offset} does not end")


def fields(raw: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Walk one message: (field number, wire type, varint value, first byte, byte after it)."""
    offset = start
    while offset < end:
        tag_at = offset
        tag, offset = _varint(raw, offset, end)
        number, wire = tag >> 3, tag & 7
        value = 0
        first = offset
        if wire == VARINT:
            value, offset = _varint(raw, offset, end)
        elif wire == LENGTH:
            size, first = _varint(raw, offset, end)
            offset = first + size
        elif wire in (FIXED32, FIXED64):
            offset += 4 if wire == FIXED32 else 8
        else:
            raise WireError(f"wire type {wire} at byte {tag_at}")
        if number == 0:
            raise WireError(f"field number 0 at byte {tag_at}")
        if offset > end:
            raise WireError(f"the field at byte {tag_at} runs {offset - end} bytes past the end")
        yield number, wire, value, first, offset
