"""Own `CodeLlamaTokenizer`: text to Meta's ids and back, infilling included, on sentencepiece."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from codellama_convert.arguments import as_path
from codellama_convert.errors import TokenizerError
from codellama_convert.formats.sentencepiece import SentencePieceModel, read_sentencepiece_model
from codellama_convert.tokenizer.batch import PaddingSide, TokenBatch, token_batch
from codellama_convert.tokenizer.codec import MetaCodec
from codellama_convert.tokenizer.special_tokens import SpecialTokens


class CodeLlamaTokenizer(SpecialTokens):
    """Encode and decode exactly as Meta's tokenizer does, under any version of transformers.

    Text is text: `<s>` or `▁<PRE>` in it never becomes a special token. Where the text holds
    `fill_token` once, the infilling prompt around it is built.

    Attributes:
        fill_token: What marks the place to fill; it is not a piece.
        suffix_first: Whether the suffix goes before the prefix in infilling prompts.
        padding_side: Where a batch is padded; left, so that generation continues the text.
        pad_token: None, as Meta trained with none: a batch is padded with `eos_token` and masked.

    The special tokens are those of `SpecialTokens`.

    Source:
        meta-llama/codellama llama/tokenizer.py and llama/generation.py, `infilling_prompt_tokens`.
    """

    def __init__(
        self,
        model: SentencePieceModel,
        *,
        fill_token: str = "<FILL_ME>",  # noqa: S107 - a placeholder, no password
        suffix_first: bool = False,
        padding_side: PaddingSide = "left",
        add_bos_token: bool = True,
        add_eos_token: bool = False,
    ) -> None:
        super().__init__(model, add_bos_token=add_bos_token, add_eos_token=add_eos_token)
        self._model = model
        self._codec = MetaCodec(model)
        self.fill_token = fill_token
        self.suffix_first = suffix_first
        self.padding_side: PaddingSide = padding_side
        self.pad_token: str | None = None

    @classmethod
    def from_pretrained(
        cls, pretrained_path: str | os.PathLike[str], **options: Any
    ) -> CodeLlamaTokenizer:
        """Load a converted folder, or a tokenizer.model itself.

        Args:
            pretrained_path: The folder or the file; nothing is downloaded.
            **options: As for the class.

        Returns:
            The tokenizer.

        Raises:
            TokenizerError: If there is no tokenizer.model, or it is not one of Meta's kind.
        """
        path = as_path("pretrained_path", pretrained_path)
        return cls(
            read_sentencepiece_model(path / "tokenizer.model" if path.is_dir() else path), **options
        )

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: bool | Literal["longest", "max_length"] = False,
        max_length: int | None = None,
        return_tensors: Literal["np", "pt"] | None = None,
        suffix_first: bool | None = None,
    ) -> TokenBatch:
        """Encode a text, or a list of texts, for a model.

        Args:
            text: With `fill_token` in it, the infilling prompt is built.
            add_special_tokens: Whether to add the token that begins a sequence.
            padding: True or "longest" pads to the longest text, "max_length" to that length.
            max_length: Tokens; nothing is ever cut.
            return_tensors: "np" or "pt" for int64 arrays or tensors of shape (n_texts, n_tokens).
            suffix_first: Overrides the attribute.

        Returns:
            `input_ids` and `attention_mask`: lists of ids for a text without `return_tensors`, lists
            of lists for a list of texts.

        Raises:
            TokenizerError: If infilling is impossible, a text cannot be encoded, or tensors are
                asked of texts of unequal length.
        """
        many = not isinstance(text, str)
        rows = [
            self.encode(one, add_special_tokens=add_special_tokens, suffix_first=suffix_first)
            for one in ([text] if isinstance(text, str) else text)
        ]
        pad_id = self.pad_token_id
        batch = token_batch(
            rows,
            padding=padding,
            max_length=max_length,
            padding_side=self.padding_side,
            pad_id=self.eos_token_id if pad_id is None else pad_id,
            return_tensors=return_tensors,
        )
        if many or return_tensors is not None:
            return batch
        return TokenBatch((name, value[0]) for name, value in batch.items())

    def __len__(self) -> int:
        return self._model.n_pieces

    @property
    def vocab_size(self) -> int:
        """How many pieces the model has."""
        return self._model.n_pieces

    @property
    def pad_token_id(self) -> int | None:
        """The id of `pad_token`, None as long as that is None."""
        return None if self.pad_token is None else self.convert_tokens_to_ids(self.pad_token)

    @pad_token_id.setter
    def pad_token_id(self, number: int | None) -> None:
        # Meta's code has -1 for none.
        names = self.convert_ids_to_tokens([-1 if number is None else number])
        self.pad_token = names[0] if names else None

    def get_vocab(self) -> dict[str, int]:
        """Return every piece with its id."""
        return dict(self._model.ids)

    def encode(
        self, text: str, *, add_special_tokens: bool = True, suffix_first: bool | None = None
    ) -> list[int]:
        """Encode a text; with `fill_token` in it, build the infilling prompt.

        Args:
            text: Any text that UTF-8 can hold.
            add_special_tokens: Whether to add the token that begins a sequence.
            suffix_first: Overrides the attribute.

        Returns:
            Meta's ids.

        Raises:
            TokenizerError: If infilling is impossible, or the text cannot be encoded.
        """
        if not self.fill_token or self.fill_token not in text:
            ids = self._codec.encode(text)
            return self.build_inputs_with_special_tokens(ids) if add_special_tokens else ids
        parts = text.split(self.fill_token)
        if len(parts) != 2:
            raise TokenizerError(
                f"the text holds {self.fill_token} {len(parts) - 1} times",
                hint="only one place can be filled at a time",
            )
        ids = self.infilling_prompt(*parts, suffix_first=suffix_first)
        return ids if add_special_tokens else ids[1:]

    def infilling_prompt(
        self, prefix: str, suffix: str, *, suffix_first: bool | None = None
    ) -> list[int]:
        """Build the prompt after which the model writes what stands between prefix and suffix.

        Args:
            prefix: The text before the gap, may be empty.
            suffix: The text after the gap, may be empty.
            suffix_first: Overrides the attribute.

        Returns:
            Ids, the beginning of the sequence included.

        Raises:
            TokenizerError: If the model has no infilling pieces, or a text cannot be encoded.
        """
        if suffix_first is None:
            suffix_first = self.suffix_first
        return self._codec.infilling_prompt(prefix, suffix, suffix_first=suffix_first)

    def tokenize(self, text: str) -> list[str]:
        """Cut a text into pieces, or the infilling prompt around `fill_token`; no special tokens."""
        return self.convert_ids_to_tokens(self.encode(text, add_special_tokens=False))

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """Name the pieces of ids; `TokenizerError` if the model has no such id."""
        return [self._model.pieces[number].text for number in self._codec.known(ids)]

    def convert_tokens_to_ids(self, token: str) -> int:
        """Find the id of a piece; the unknown id where there is none."""
        return self._model.ids.get(token, self.unk_token_id)

    def decode(
        self,
        token_ids: Any,
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """Turn ids into text as SentencePiece does: no leading space where the first starts a word.

        Args:
            token_ids: An id, a sequence of ids, or an array or tensor of one dimension; -1 is
                dropped, as Meta's code does.
            skip_special_tokens: Whether to leave special tokens out; else their names are shown.
                The `eot_token` after an infilling prompt then ends the text; in ids without a
                `bos_token` it ends a filling, as for `decode_infilling`.
            clean_up_tokenization_spaces: Taken from transformers' pipelines, and without effect:
                the spaces are the text's own.

        Returns:
            The text.

        Raises:
            TokenizerError: If the model has no such id.
        """
        del clean_up_tokenization_spaces
        ids = self._codec.known(token_ids)
        if not skip_special_tokens:
            return self._codec.decode_showing(ids, frozenset(self.all_special_ids))
        end = self._end_of_filling(ids)
        text = self._text_ids(ids[:end])
        is_filling = end is not None and self.bos_token_id not in ids
        return self._codec.decode_inside(text) if is_filling else self._codec.decode(text)

    def batch_decode(
        self,
        sequences: Any,
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """Decode several sequences, or the rows of an array or tensor."""
        del clean_up_tokenization_spaces
        return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in sequences]

    def decode_infilling(self, token_ids: Any) -> str:
        """Turn what the model generated after an infilling prompt into the text for the gap.

        Args:
            token_ids: The ids after the prompt; the first `eot_token` or `eos_token` ends them.

        Returns:
            The text, its leading space kept: the gap may begin inside of a line.

        Raises:
            TokenizerError: If the model has no such id.
        """
        ids = self._codec.known(token_ids)
        ends = [place for place, n in enumerate(ids) if n in (self.eot_id, self.eos_token_id)]
        return self._codec.decode_inside(self._text_ids(ids[: min(ends, default=None)]))

    def _end_of_filling(self, ids: Sequence[int]) -> int | None:
        """Find the `eot_token` that a model put after a prompt, or at the end of its answer alone."""
        prompts = [place for place, n in enumerate(ids) if n == self.middle_id]
        if self.bos_token_id in ids and not prompts:
            return None
        begin = min(prompts, default=-1)
        return next((n for n in range(begin + 1, len(ids)) if ids[n] == self.eot_id), None)

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str]:
        """Write the tokenizer.model, byte for byte as it was read.

        Args:
            save_directory: An existing folder.
            filename_prefix: Put before the name, with a hyphen.

        Returns:
            The path of the file.

        Raises:
            TokenizerError: If it cannot be written.
        """
        name = f"{filename_prefix}-tokenizer.model" if filename_prefix else "tokenizer.model"
        path = as_path("save_directory", save_directory) / name
        try:
            path.write_bytes(self._model.raw)
        except OSError as error:
            raise TokenizerError(
                error.strerror or str(error), path=path, hint="pass an existing folder"
            ) from error
        return (str(path),)
