"""Own which kind of tokenizer.model a file is: its content says it, whatever model it lies beside."""

from __future__ import annotations

from pathlib import Path

from codellama_convert.errors import TokenizerError
from codellama_convert.formats.file_kinds import HEAD_BYTES, is_of_kind
from codellama_convert.formats.sentencepiece import (
    FILE_HINT,
    SentencePieceModel,
    read_sentencepiece_model,
)
from codellama_convert.formats.tiktoken import TiktokenModel, read_tiktoken_model
from codellama_convert.storage.input_file import InputFile

# Llama 1, Llama 2 and Code Llama have the first, Llama 3 the second. Both know `path`, `raw`,
# `n_pieces`, `bos_id` and `eos_id`.
TokenizerModel = SentencePieceModel | TiktokenModel


def read_tokenizer_model(path: Path) -> TokenizerModel:
    """Read a tokenizer.model of either kind and refuse what would not give Meta's ids.

    Args:
        path: A SentencePiece BPE model, or a tiktoken vocabulary.

    Returns:
        Its pieces and its bytes.

    Raises:
        TokenizerError: If the file cannot be read, is damaged or of another kind, or has settings
            that `tokenizer.json` cannot reproduce.
    """
    if is_tiktoken(path):
        return read_tiktoken_model(path)
    return read_sentencepiece_model(path)


def is_tiktoken(path: Path) -> bool:
    """Report whether a tokenizer.model begins as Llama 3's does.

    Raises:
        TokenizerError: If the file cannot be read.
    """
    with InputFile(path, error=TokenizerError, hint=FILE_HINT) as file:
        head = file.read_exact(0, min(HEAD_BYTES, file.n_bytes))
    return is_of_kind(head, "tiktoken")


def holds_tiktoken(path: Path | None) -> bool:
    """Report what `is_tiktoken` does, and False of a file that is missing or cannot be read."""
    try:
        return path is not None and is_tiktoken(path)
    except TokenizerError:  # raised where the tokenizer itself is needed
        return False
