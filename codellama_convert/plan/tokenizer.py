"""Own the tokenizer's part of a job: tokenizer.model, and what its files are to say of the model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from codellama_convert.formats.sentencepiece import SentencePieceModel
from codellama_convert.model.recognise import Recognised
from codellama_convert.model.releases import Flavor
from codellama_convert.plan.options import Options
from codellama_convert.storage.contents import Content
from codellama_convert.tokenizer.hf_files import (
    DEFAULT_TOKENIZER_CLASS,
    stop_token_ids,
    tokenizer_files,
    tokenizer_notes,
)
from codellama_convert.tokenizer.tokenizer_json import tokenizer_json


@dataclass(frozen=True, slots=True, repr=False)
class TokenizerJob:
    """The tokenizer of a job.

    Attributes:
        model: tokenizer.model.
        flavor: What the model was tuned for; None where it is not known.
        context: Tokens of context; None for no limit.
        class_name: What tokenizer_config.json names.
    """

    model: SentencePieceModel
    flavor: Flavor | None
    context: int | None
    class_name: str

    def __repr__(self) -> str:
        # What dataclasses write would be every piece of the vocabulary.
        return f"TokenizerJob(class_name={self.class_name!r}, n_pieces={self.model.n_pieces})"

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids at which a text ends; the first ends every text."""
        return stop_token_ids(self.model, flavor=self.flavor)

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

    def small_files(self) -> dict[str, Content]:
        """Build the tokenizer files, by name."""
        return tokenizer_files(
            self.model,
            flavor=self.flavor,
            tokenizer_class=self.class_name,
            model_max_length=self.context,
        )

    def check(self) -> tuple[str, ...]:
        """Refuse a tokenizer.json that costs too much here, and not while it is written.

        Returns:
            Notes on what it makes inexact.

        Raises:
            TokenizerError: If it were far larger than that of any vocabulary in use.
        """
        tokenizer_json(self.model)
        return tokenizer_notes(self.model, tokenizer_class=self.class_name)


def plan_tokenizer(
    model: SentencePieceModel, options: Options, recognised: Recognised | None
) -> TokenizerJob:
    """Decide what the tokenizer files say: what the checkpoint was recognised as, or the options.

    Args:
        model: tokenizer.model.
        options: What is asked for.
        recognised: The checkpoint that is converted too; None where the tokenizer is alone.
    """
    source: Options | Recognised = options if recognised is None else recognised
    class_name = options.tokenizer_class or DEFAULT_TOKENIZER_CLASS
    return TokenizerJob(model, source.flavor, source.max_position_embeddings, class_name)
