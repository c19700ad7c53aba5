"""Own text to Meta's ids and back, on sentencepiece; know nothing of prompts, batches or special names.

Source:
    meta-llama/codellama llama/tokenizer.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sentencepiece

from codellama_convert.errors import TokenizerError
from codellama_convert.sentencepiece_model import SentencePieceModel

# Meta puts it before a suffix and drops its ids, so that the suffix gets no leading space of its own.
SUFFIX_MARKER = "☺"


class MetaCodec:
    """SentencePiece as Meta's code uses it, without the ids that begin and end a sequence.

    Attributes:
        model: The checked model.
    """

    def __init__(self, model: SentencePieceModel) -> None:
        self.model = model
        self._sentencepiece = sentencepiece.SentencePieceProcessor(model_proto=model.raw)

    def encode(self, text: str) -> list[int]:
        """Encode any text that UTF-8 can hold; an empty text has no ids.

        Raises:
            TokenizerError: If the text holds a lone surrogate.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"the text holds a lone surrogate at {error.start}, which is not a character",
                hint="decode the text with errors='replace'",
            ) from error
        ids: list[int] = self._sentencepiece.encode(text)
        return ids

    def encode_suffix(self, suffix: str) -> list[int]:
        """Encode the text after a gap: without the space that SentencePiece puts before a text.

        Raises:
            TokenizerError: If the suffix holds a lone surrogate, or the vocabulary joins the marker
                with text (Meta's does not).
        """
        marker = self.encode(SUFFIX_MARKER)
        ids = self.encode(SUFFIX_MARKER + suffix)
        if ids[: len(marker)] != marker:
            raise TokenizerError(
                f"the model joins {SUFFIX_MARKER!r} with text, so no suffix can be encoded",
                path=self.model.path,
            )
        return ids[len(marker) :]

    def decode(self, ids: Sequence[int]) -> str:
        """Turn ids into text; no leading space where the first one starts a word."""
        text: str = self._sentencepiece.decode(list(ids))
        return text

    def decode_inside(self, ids: Sequence[int]) -> str:
        """Turn ids that stand inside of a text into text, a leading space kept."""
        # SentencePiece drops the space only at the start; a line break before it stands for a text.
        return self.decode([self.model.ids["<0x0A>"], *ids])[1:]

    def known(self, token_ids: Any) -> list[int]:
        """Make a list of an id, a sequence of ids, or an array or tensor of one dimension.

        Meta's code drops -1 when it decodes, so it is dropped here.

        Raises:
            TokenizerError: If the model has no such id.
        """
        plain = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        ids = [int(n) for n in ([plain] if isinstance(plain, int) else plain)]
        for number in ids:
            if not -1 <= number < self.model.n_pieces:
                raise TokenizerError(
                    f"no piece has the id {number}: the model has {self.model.n_pieces}",
                    path=self.model.path,
                )
        return [number for number in ids if number != -1]
