"""Own the special tokens of a tokenizer: which pieces they are, and where they go around a text."""

from __future__ import annotations

from collections.abc import Sequence

from codellama_convert.formats.sentencepiece import SentencePieceModel
from codellama_convert.formats.sentencepiece_message import PieceType
from codellama_convert.tokenizer.tokenizer_json import INFILLING_PIECES, STEP_PIECE


class SpecialTokens:
    """The special tokens of a model, under the names that transformers has for them.

    Attributes:
        add_bos_token: Whether special tokens include the one that begins a sequence.
        add_eos_token: Whether they include the one that ends it.
        bos_token, eos_token, unk_token: Names of the special pieces; `bos_token_id` and so on.
        prefix_token, middle_token, suffix_token, eot_token, step_token: The same for infilling and
            for 70B Instruct's dialogues, `prefix_id` and so on; None where the model lacks them.
        all_special_ids: The ids of all of them.
    """

    def __init__(
        self, model: SentencePieceModel, *, add_bos_token: bool, add_eos_token: bool
    ) -> None:
        self.add_bos_token = add_bos_token
        self.add_eos_token = add_eos_token
        self.bos_token_id, self.bos_token = model.bos_id, model.pieces[model.bos_id].text
        self.eos_token_id, self.eos_token = model.eos_id, model.pieces[model.eos_id].text
        self.unk_token_id, self.unk_token = model.unk_id, model.pieces[model.unk_id].text
        named = [(name, model.id_of(name)) for name in (*INFILLING_PIECES, STEP_PIECE)]
        tokens = [None if number is None else name for name, number in named]
        self.prefix_token, self.suffix_token, self.middle_token, self.eot_token = tokens[:4]
        self.prefix_id, self.suffix_id, self.middle_id, self.eot_id = (n for _, n in named[:4])
        self.step_token, self.step_id = tokens[4], named[4][1]
        self.all_special_ids: tuple[int, ...] = tuple(
            number
            for number, piece in enumerate(model.pieces)
            if piece.type in (PieceType.UNKNOWN, PieceType.CONTROL) or piece.text in tokens
        )

    def _text_ids(self, ids: Sequence[int]) -> list[int]:
        """Leave special tokens out."""
        special = frozenset(self.all_special_ids)
        return [number for number in ids if number not in special]

    def build_inputs_with_special_tokens(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """Put the special tokens around one or two sequences of ids."""
        ids = [*self._begin(), *token_ids_0, *self._end()]
        return ids if token_ids_1 is None else [*ids, *self._begin(), *token_ids_1, *self._end()]

    def get_special_tokens_mask(
        self,
        token_ids_0: Sequence[int],
        token_ids_1: Sequence[int] | None = None,
        *,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Mark special tokens with 1: those that would be added, or those that are there already."""
        if already_has_special_tokens:
            return [int(number in self.all_special_ids) for number in token_ids_0]
        sequences = [token_ids_0] if token_ids_1 is None else [token_ids_0, token_ids_1]
        begin, end = [1] * len(self._begin()), [1] * len(self._end())
        return [bit for ids in sequences for bit in (*begin, *([0] * len(ids)), *end)]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """Return 0 for each token of the first sequence, its special tokens included, 1 for the second."""
        n_first = len(self.build_inputs_with_special_tokens(token_ids_0))
        n_all = len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))
        return [0] * n_first + [1] * (n_all - n_first)

    def _begin(self) -> list[int]:
        return [self.bos_token_id] if self.add_bos_token else []

    def _end(self) -> list[int]:
        return [self.eos_token_id] if self.add_eos_token else []
