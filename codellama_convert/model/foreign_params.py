"""Own the keys of params.json that make it another model than Llama 1, Llama 2 or Code Llama.

What is converted without regard to one of them loads, and computes something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A key, or several, of other models.

    Attributes:
        pattern: Of its name, in lower case; "*" stands for any text.
        family: Whose it is; None where several families may have it.
        neutral: The number at which it changes nothing: none of something, or a factor of one.
    """

    pattern: str
    family: str | None
    neutral: int


# The first row that fits counts. Llama's own: meta-llama/llama-models, models/*/args.py and the
# params.json of each release; Mistral's and Mixtral's: mistralai/mistral-inference, args.py.
FOREIGN_KEYS: tuple[ForeignKey, ...] = (
    ForeignKey("use_scaled_rope", "Llama 3.1 and later", 0),
    ForeignKey("rope_scaling_factor", "Llama 4", 1),
    ForeignKey("rope_freq_scale", None, 1),
    ForeignKey("*rope*", None, 0),
    ForeignKey("sliding_window", "Mistral", 0),
    ForeignKey("moe", "Mixtral", 0),
    ForeignKey("moe_args", "Llama 4", 0),
    ForeignKey("use_qk_norm", "Llama 4", 0),
    ForeignKey("nope_layer_interval", "Llama 4", 0),
    ForeignKey("attention_chunk_size", "Llama 4", 0),
    ForeignKey("vision_args", "Llama 4", 0),
    ForeignKey("vision_*", "Llama 3.2 Vision", 0),
    ForeignKey("quantization_args", "the quantized Llama 3.2", 0),
    ForeignKey("lora_args", "the quantized Llama 3.2 (QLoRA)", 0),
    ForeignKey("*expert*", "models that are mixtures of experts", 0),
)


def foreign_key(params: Mapping[str, Any], own: frozenset[str]) -> tuple[str, str | None] | None:
    """Find a key of another model whose value changes what the weights mean.

    Args:
        params: params.json.
        own: Keys that are Meta's own for the supported models.

    Returns:
        The key, and the family of models that has it; None where there is no such key.
    """
    for key in sorted(params.keys() - own):
        row = _row_of(key)
        if row is not None and not _says_nothing(params[key], row):
            return key, row.family
    return None


def is_foreign(key: str) -> bool:
    """Report whether a key is one of another model, whatever its value."""
    return _row_of(key) is not None


def _row_of(key: str) -> ForeignKey | None:
    return next((row for row in FOREIGN_KEYS if fnmatchcase(key.lower(), row.pattern)), None)


def _says_nothing(value: Any, row: ForeignKey) -> bool:
    """Report whether a value leaves the model as it is: null, false, empty, or a neutral number."""
    if value is None or value is False or value in ("", [], {}):
        return True
    return type(value) in (int, float) and value == row.neutral
