"""Own the ids that begin and end a text, in the vocabularies that Meta released."""

from __future__ import annotations

from dataclasses import dataclass

from codellama_convert.choices import Flavor
from codellama_convert.model.generations import LLAMA_3_PIECES
from codellama_convert.model.releases import SpecialNames

_SPECIAL_IDS = 256  # behind the pieces of Llama 3
# By their place behind the pieces.
_BEGIN, _END, _END_OF_MESSAGE, _END_OF_TURN = 0, 1, 8, 9


@dataclass(frozen=True, slots=True)
class Marks:
    """The ids that begin and end a text.

    Attributes:
        bos_id: Begins one.
        stop_ids: End one; the first ends every text.
    """

    bos_id: int
    stop_ids: tuple[int, ...]


def released_marks(vocab_size: int, names: SpecialNames, flavor: Flavor | None) -> Marks:
    """Say which ids begin and end a text, where no tokenizer.model says it.

    Args:
        vocab_size: Rows of the embedding.
        names: Whose names the special tokens have, where the vocabulary is Llama 3's.
        flavor: What the model was tuned for; None where nothing says so.
    """
    if vocab_size < LLAMA_3_PIECES + _SPECIAL_IDS:
        return Marks(1, (2,))
    return llama_3_marks(LLAMA_3_PIECES, names, flavor)


def llama_3_marks(n_pieces: int, names: SpecialNames, flavor: Flavor | None) -> Marks:
    """Say which ids begin and end a text of Llama 3.

    Args:
        n_pieces: Of the vocabulary, without the special tokens behind them.
        names: Whose names these have.
        flavor: What the model was tuned for; None where nothing says so.

    Returns:
        The id that ends a text; where the model answers, those that end a message and a turn too.

    Source:
        meta-llama/llama3 and meta-llama/llama-models, tokenizer.py, `stop_tokens`;
        generation_config.json of the hub's models, of which Llama Guard 2's has the first alone.
    """
    places = [_END]
    if flavor in ("instruct", "chat") or (flavor == "guard" and names == "3.1"):
        places += [_END_OF_TURN] if names == "3" else [_END_OF_MESSAGE, _END_OF_TURN]
    return Marks(n_pieces + _BEGIN, tuple(n_pieces + place for place in places))
