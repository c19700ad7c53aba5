"""Own the tokenizer's part of a job: tokenizer.model, and what its files are to say of the model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from codellama_convert.choices import Flavor
from codellama_convert.errors import ConfigError
from codellama_convert.formats.sentencepiece import SentencePieceModel
from codellama_convert.formats.tiktoken import TiktokenModel
from codellama_convert.formats.tokenizer_model import TokenizerModel
from codellama_convert.model.marks import llama_3_marks
from codellama_convert.model.recognise import Recognised
from codellama_convert.model.releases import SpecialNames
from codellama_convert.plan.options import Options
from codellama_convert.storage.contents import Content
from codellama_convert.tokenizer.hf_files import (
    DEFAULT_TOKENIZER_CLASS,
    stop_token_ids,
    tokenizer_files,
    tokenizer_notes,
)
from codellama_convert.tokenizer.llama3 import (
    llama3_files,
    llama3_notes,
    llama3_tokenizer_json,
)
from codellama_convert.tokenizer.tokenizer_json import tokenizer_json


@dataclass(frozen=True, slots=True, repr=False)
class TokenizerJob:
    """The tokenizer of a job; each kind of vocabulary has one of its own.

    Attributes:
        model: tokenizer.model.
        flavor: What the model was tuned for; None where it is not known.
        context: Tokens of context; None for no limit.
        class_name: What tokenizer_config.json names.
        special_names: What the special tokens are called, if the vocabulary is Llama 3's.
    """

    model: TokenizerModel
    flavor: Flavor | None
    context: int | None
    class_name: str
    special_names: SpecialNames = "3.1"

    def __repr__(self) -> str:
        # What dataclasses write would be every piece of the vocabulary.
        return f"TokenizerJob(class_name={self.class_name!r}, n_pieces={self.model.n_pieces})"

    def options(self) -> dict[str, Any]:
        """Return what was asked for, as a fingerprint has it."""
        return {
            "tokenizer_class": self.class_name,
            "variant": self.flavor,
            "max_position_embeddings": self.context,
        }

    def inputs(self) -> dict[str, Any]:
        """Return what tells the input file from others, as a fingerprint has it."""
        return {"tokenizer.model": hashlib.sha256(self.model.raw).hexdigest()}

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids at which a text ends; the first ends every text."""
        raise NotImplementedError

    def small_files(self) -> dict[str, Content]:
        """Build the tokenizer files, by name."""
        raise NotImplementedError

    def check(self) -> tuple[str, ...]:
        """Refuse a tokenizer.json that costs too much here, and not while it is written.

        Returns:
            Notes on what it makes inexact.

        Raises:
            TokenizerError: If it were far larger than that of any vocabulary in use.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True, repr=False)
class _SentencePieceJob(TokenizerJob):
    """The tokenizer of Llama 1, Llama 2 and Code Llama."""

    model: SentencePieceModel

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return stop_token_ids(self.model, flavor=self.flavor)

    def small_files(self) -> dict[str, Content]:
        return tokenizer_files(
            self.model,
            flavor=self.flavor,
            tokenizer_class=self.class_name,
            model_max_length=self.context,
        )

    def check(self) -> tuple[str, ...]:
        tokenizer_json(self.model)
        return tokenizer_notes(self.model, tokenizer_class=self.class_name)


@dataclass(frozen=True, slots=True, repr=False)
class _Llama3Job(TokenizerJob):
    """The tokenizer of Llama 3."""

    model: TiktokenModel

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return llama_3_marks(len(self.model.tokens), self.special_names, self.flavor).stop_ids

    def small_files(self) -> dict[str, Content]:
        return llama3_files(
            self.model,
            flavor=self.flavor,
            names=self.special_names,
            model_max_length=self.context,
        )

    def check(self) -> tuple[str, ...]:
        llama3_tokenizer_json(self.model, self.special_names)
        return llama3_notes(self.model)


def plan_tokenizer(
    model: TokenizerModel,
    options: Options,
    recognised: Recognised | None,
    *,
    names: SpecialNames = "3.1",
) -> TokenizerJob:
    """Decide what the tokenizer files say: what the checkpoint was recognised as, or the options.

    Args:
        model: tokenizer.model.
        options: What is asked for.
        recognised: The checkpoint that is converted too; None where the tokenizer is alone.
        names: What the special tokens are called where it is alone.

    Raises:
        ConfigError: If a class is asked for that reads another kind of tokenizer.
    """
    source: Options | Recognised = options if recognised is None else recognised
    flavor, context = source.flavor, source.max_position_embeddings
    class_name = options.tokenizer_class or DEFAULT_TOKENIZER_CLASS
    if isinstance(model, SentencePieceModel):
        return _SentencePieceJob(model, flavor, context, class_name)
    if class_name != DEFAULT_TOKENIZER_CLASS:
        raise ConfigError(
            f"tokenizer_class {class_name} is for SentencePiece models: it gives Llama 3's tokenizer "
            "an id beyond the embedding",
            hint="leave it out",
        )
    names = names if recognised is None else recognised.special_names
    return _Llama3Job(model, flavor, context, class_name, names)
