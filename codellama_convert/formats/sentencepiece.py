"""Own what a tokenizer.model says: its pieces, and that it is a whole, fitting SentencePiece model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Literal

from codellama_convert.errors import TokenizerError
from codellama_convert.formats.file_kinds import HEAD_BYTES, refuse_other_kind
from codellama_convert.formats.sentencepiece_message import (
    NORMALIZER_CHARSMAP,
    NORMALIZER_RULES,
    NORMALIZER_SWITCHES,
    TRAINER_BOS_PIECE,
    TRAINER_BYTE_FALLBACK,
    TRAINER_EOS_PIECE,
    TRAINER_MODEL_TYPE,
    TRAINER_UNK_PIECE,
    TRAINER_WHITESPACE_SUFFIX,
    Message,
    Pieces,
    PieceType,
    WireError,
    parse_model,
)
from codellama_convert.storage.input_file import InputFile

# Llama 2's file has 499,723 bytes and 32,000 pieces, its longest piece 16 characters (Code Llama's
# spare pieces 31); Gemma 3's has 4.7 million bytes and 262,144 pieces of some 2 million characters,
# the most in use. The limits bound the memory and time that a hostile file can cost.
MAX_FILE_BYTES = 8 << 20
MAX_PIECE_CHARS = 256
MAX_ALL_CHARS = 1 << 22

DOWNLOAD_AGAIN = "download the model's tokenizer.model again"
FILE_HINT = "use the tokenizer.model that was downloaded with the weights"

BPE = 2
MODEL_TYPES = ((1, "unigram"), (BPE, "BPE"), (3, "word"), (4, "char"))


@dataclass(frozen=True)
class SentencePieceModel:
    """A tokenizer.model that passed every check.

    Attributes:
        path: Where it was read.
        raw: The file's bytes, unchanged.
        pieces: In id order.
        unk_id: The id of the unknown piece.
        bos_id: The id of the piece that begins a sequence.
        eos_id: The id of the piece that ends a sequence.
    """

    path: Path
    raw: bytes = field(repr=False)
    pieces: Pieces = field(repr=False, hash=False)  # they follow from the file's bytes
    unk_id: int
    bos_id: int
    eos_id: int

    @property
    def n_pieces(self) -> int:
        """How many rows an embedding needs; `trainer_spec.vocab_size` is stale in Code Llama's file."""
        return len(self.pieces)

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """The id of each piece by its text; of 262,144 pieces 20 MB, which no conversion needs."""
        return {piece.text: number for number, piece in enumerate(self.pieces)}

    def id_of(self, text: str) -> int | None:
        """Find a piece by its text; None where the model lacks it (SentencePiece answers unk)."""
        return self.pieces.id_of(text)


def read_sentencepiece_model(path: Path) -> SentencePieceModel:
    """Read a tokenizer.model and refuse what would not give Meta's ids.

    Stricter than sentencepiece, which accepts a file cut 20 bytes short and tokenizes differently.

    Args:
        path: A SentencePiece BPE model with byte fallback, at most 8 MiB.

    Returns:
        Its pieces and its bytes.

    Raises:
        TokenizerError: If the file cannot be read, is damaged or of another kind, or has settings
            that `tokenizer.json` cannot reproduce.
    """
    raw = _read_file(path)
    try:
        message = parse_model(raw)
    except WireError as error:
        _refuse_other_kind(raw[:HEAD_BYTES], path)
        raise TokenizerError(
            f"not a SentencePiece model, or a truncated one ({error}), nor a tiktoken vocabulary",
            path=path,
            hint=DOWNLOAD_AGAIN,
        ) from error
    for what, hint in chain(_settings_problems(message), _piece_problems(message.pieces)):
        raise TokenizerError(what, path=path, hint=hint)
    assert message.trainer is not None
    return SentencePieceModel(
        path=path,
        raw=raw,
        pieces=message.pieces,
        unk_id=_special_id(message, "unk", path=path),
        bos_id=_special_id(message, "bos", path=path),
        eos_id=_special_id(message, "eos", path=path),
    )


def _read_file(path: Path) -> bytes:
    with InputFile(path, error=TokenizerError, hint=FILE_HINT) as file:
        if file.n_bytes > MAX_FILE_BYTES:
            _refuse_other_kind(file.read_exact(0, HEAD_BYTES), path)
        raw = file.read_whole(MAX_FILE_BYTES, hint=DOWNLOAD_AGAIN)
    if not raw:
        raise TokenizerError("the file is empty", path=path, hint=DOWNLOAD_AGAIN)
    return raw


def _refuse_other_kind(head: bytes, path: Path) -> None:
    refuse_other_kind(head, "SentencePiece", path=path, error=TokenizerError)


def _settings_problems(message: Message) -> Iterator[tuple[str, str]]:
    """Say what is wrong with the settings and what to do, the most telling problem first."""
    other = "this tokenizer belongs to another kind of model"
    trainer, normalizer = message.trainer, message.normalizer
    for name, spec in (("trainer", trainer), ("normalizer", normalizer)):
        if spec is None:
            count = len(message.pieces)
            what = (
                f"truncated SentencePiece model: {count} pieces but no {name} settings after them"
            )
            yield what, DOWNLOAD_AGAIN
    assert trainer is not None
    assert normalizer is not None
    model_type = trainer.get(TRAINER_MODEL_TYPE, 1)
    if model_type != BPE:
        names = [name for number, name in MODEL_TYPES if number == model_type]
        name = names[0] if names else f"type {model_type!r}"
        yield f"a SentencePiece {name} model; Llama 2 and Code Llama use BPE", other
    if not trainer.get(TRAINER_BYTE_FALLBACK, 0):
        yield "byte fallback is off; Llama 2 and Code Llama have it on", other
    if trainer.get(TRAINER_WHITESPACE_SUFFIX, 0):
        yield "treat_whitespace_as_suffix is True; Llama 2 and Code Llama have False", other
    for number, name, default, wanted in NORMALIZER_SWITCHES:
        found = bool(normalizer.get(number, default))
        if found is not wanted:
            yield f"{name} is {found}; Llama 2 and Code Llama have {wanted}", other
    for spec in (normalizer, message.denormalizer or {}):
        if spec.get(NORMALIZER_CHARSMAP) or spec.get(NORMALIZER_RULES):
            yield "it has a character map; Llama 2 and Code Llama have none", other


def _piece_problems(pieces: Pieces) -> Iterator[tuple[str, str]]:
    """Say what is wrong with the pieces and what to do, in file order."""
    n_chars = sum(map(len, pieces.texts))
    if n_chars > MAX_ALL_CHARS:
        yield f"its pieces have {n_chars} characters together", DOWNLOAD_AGAIN
    if not _are_sound(pieces):
        yield from _problems_of_each(pieces)
    found = set(pieces.texts_of(PieceType.BYTE))
    if found != {f"<0x{byte:02X}>" for byte in range(256)}:
        what = f"expected the 256 byte pieces <0x00>..<0xFF>, found {len(found)}"
        yield what, DOWNLOAD_AGAIN


def _are_sound(pieces: Pieces) -> bool:
    """Return whether no piece has a problem of its own, asked of all at once, which is quick."""
    return (
        all(pieces.texts)
        and not any("\0" in text for text in pieces.texts)
        and len(set(pieces.texts)) == len(pieces)
        and max(map(len, pieces.texts), default=0) <= MAX_PIECE_CHARS
        and all(map(math.isfinite, pieces.scores))
        and PieceType.UNUSED not in pieces.types
    )


def _problems_of_each(pieces: Pieces) -> Iterator[tuple[str, str]]:
    """Say what is wrong with a piece by itself, or beside those before it."""
    seen: set[str] = set()
    for number, (text, score, kind) in enumerate(pieces):
        if not text:
            yield f"a piece is empty (id {number})", DOWNLOAD_AGAIN
        if "\0" in text:
            # sentencepiece 0.2.1 ends the whole process on it, 0.2.2 and later refuse the file.
            yield f"the piece {text!r} (id {number}) holds a NUL character", DOWNLOAD_AGAIN
        if text in seen:
            yield f"the piece {text!r} occurs twice (again as id {number})", DOWNLOAD_AGAIN
        if len(text) > MAX_PIECE_CHARS:
            yield f"the piece with id {number} has {len(text)} characters", DOWNLOAD_AGAIN
        if not math.isfinite(score):
            yield f"the piece {text!r} has the score {score}", DOWNLOAD_AGAIN
        if kind is PieceType.UNUSED:
            what = f"the piece {text!r} is marked unused; Llama 2 and Code Llama have no such piece"
            yield what, DOWNLOAD_AGAIN
        seen.add(text)


def _special_id(message: Message, role: Literal["unk", "bos", "eos"], *, path: Path) -> int:
    """Find a special piece as SentencePiece does: by the name that the trainer settings give it.

    A model trained with an id of -1 lacks it. Meta's code then puts -1 in front of a text, which no
    embedding has, or waits for an end that never comes: there is nothing to be exact with.
    """
    number, default, kind = {
        "unk": (TRAINER_UNK_PIECE, b"<unk>", PieceType.UNKNOWN),
        "bos": (TRAINER_BOS_PIECE, b"<s>", PieceType.CONTROL),
        "eos": (TRAINER_EOS_PIECE, b"</s>", PieceType.CONTROL),
    }[role]
    assert message.trainer is not None
    value = message.trainer.get(number) or default  # an empty name is the default's, as there
    name = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    of_kind = message.pieces.texts_of(kind)
    found = message.pieces.id_of(name) if name in of_kind else None
    if found is None or (role == "unk" and len(of_kind) != 1):
        raise TokenizerError(
            f"no {role} piece: expected {name!r} of type {kind.name}, found {of_kind[:3]}",
            path=path,
            hint=f"{DOWNLOAD_AGAIN}, or convert only the weights with --skip_tokenizer",
        )
    return found
