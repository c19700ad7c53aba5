"""Own the ids that begin and end a text, in the vocabularies that Meta released."""

from __future__ import annotations

from dataclasses import dataclass

from codellama_convert.model.generations import LLAMA_3_PIECES
from codellama_convert.model.releases import Flavor, SpecialNames

_SPECIAL_IDS = 256  # behind the pieces of Llama 3
_BEGIN, _END, _END_OF_MESSAGE, _END_OF_TURN = 128000, 128001, 128008, 128009


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
        flavor: What the model was tuned for; None where nothing tells.

    Source:
        meta-llama/llama-models models/llama3/tokenizer.py; generation_config.json of its models.
    """
    if vocab_size < LLAMA_3_PIECES + _SPECIAL_IDS:
        return Marks(1, (2,))
    of_message = (_END_OF_MESSAGE,) if names == "3.1" else ()
    if flavor in ("instruct", "chat") or (flavor == "guard" and of_message):
        return Marks(_BEGIN, (_END, *of_message, _END_OF_TURN))
    return Marks(_BEGIN, (_END,))
