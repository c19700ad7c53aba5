"""Own text to Meta's ids and back, on sentencepiece.

Sources:
    meta-llama/codellama llama/tokenizer.py, and llama/generation.py, `infilling_prompt_tokens`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import sentencepiece

from codellama_convert.errors import TokenizerError
from codellama_convert.formats.sentencepiece import DOWNLOAD_AGAIN, SentencePieceModel
from codellama_convert.tokenizer.tokenizer_json import INFILLING_PIECES

# Meta puts it before a suffix and drops its ids, so that the suffix gets no leading space of its own.
SUFFIX_MARKER = "☺"
_MAX_SHOWN = 200


class MetaCodec:
    """SentencePiece as Meta's code uses it, without the ids that begin and end a sequence.

    Attributes:
        model: The checked model.
    """

    def __init__(self, model: SentencePieceModel) -> None:
        self.model = model
        with self._sentencepiece_errors():
            self._sentencepiece = sentencepiece.SentencePieceProcessor(model_proto=model.raw)

    @contextmanager
    def _sentencepiece_errors(self) -> Iterator[None]:
        """Turn what sentencepiece raises into errors that name the model."""
        try:
            yield
        except (RuntimeError, ValueError, LookupError, ArithmeticError) as problem:
            what = (str(problem).splitlines() or [""])[0][:_MAX_SHOWN]
            raise TokenizerError(
                f"sentencepiece {sentencepiece.__version__} refuses it: {what}",
                path=self.model.path,
                hint=DOWNLOAD_AGAIN,
            ) from problem

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
        with self._sentencepiece_errors():
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

    def infilling_prompt(self, prefix: str, suffix: str, *, suffix_first: bool) -> list[int]:
        """Build the ids after which the model writes what stands between prefix and suffix.

        Raises:
            TokenizerError: If the model has no infilling pieces, or a text cannot be encoded.
        """
        pre, suf, mid = (self.model.id_of(name) for name in INFILLING_PIECES[:3])
        if pre is None or suf is None or mid is None:
            raise TokenizerError(
                f"the model has no infilling pieces ({', '.join(INFILLING_PIECES[:3])})",
                path=self.model.path,
                hint="Code Llama 7B and 13B, base and Instruct, have them",
            )
        before, after = self.encode(prefix), self.encode_suffix(suffix)
        if suffix_first:
            return [self.model.bos_id, pre, suf, *after, mid, *before]
        return [self.model.bos_id, pre, *before, suf, *after, mid]

    def decode(self, ids: Sequence[int]) -> str:
        """Turn ids into text; no leading space where the first one starts a word."""
        with self._sentencepiece_errors():
            text: str = self._sentencepiece.decode(list(ids))
        return text

    def decode_inside(self, ids: Sequence[int]) -> str:
        """Turn ids that stand inside of a text into text, a leading space kept."""
        # SentencePiece drops the space only at the start; a line break before it stands for a text.
        return self.decode([self.model.ids["<0x0A>"], *ids])[1:]

    def decode_showing(self, ids: Sequence[int], special: frozenset[int]) -> str:
        """Turn ids into text as `decode` does, with the names of special pieces in it."""
        if special.isdisjoint(ids):
            return self.decode(ids)
        text = ""
        for is_special, run in groupby(ids, key=special.__contains__):
            if is_special:
                names = "".join(self.model.pieces[number].text for number in run)
                text += names.replace("▁", " ")
            else:
                text += self.decode_inside(list(run))
        starts_word = self.model.pieces[ids[0]].text.startswith("▁")
        return text[1:] if starts_word else text

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
