"""Own what a conversion is asked for, as far as the bytes of its output depend on it.

The user may say it, the output's record says it, and the output itself shows some of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from codellama_convert.arguments import FLAG, SIZE, check_fields, one_of, or_none, whole
from codellama_convert.errors import shown
from codellama_convert.model.releases import FLAVORS, Flavor
from codellama_convert.tensors import DTYPES

RECORD_NAME = "conversion.json"  # of the output; it says what was asked for, and every sum
TOKENIZER_CLASSES = (
    "CodeLlamaTokenizer", "CodeLlamaTokenizerFast", "LlamaTokenizer", "PreTrainedTokenizerFast",
)  # fmt: skip
_MAX_CONTEXT = (1 << 31) - 1  # positions are counted in 32 bits by many a runtime


@dataclass(frozen=True, slots=True)
class Asked:
    """What a conversion was asked for, spelled as in conversion.json; None where nothing is said.

    Attributes:
        dtype: Name of the tensors' dtype.
        max_position_embeddings: Tokens of context.
        max_shard_size: Largest sum of one file's tensors, in bytes.
        skip_tokenizer: Whether the weights are alone.
        tokenizer_class: What tokenizer_config.json names.
        variant: What the model was tuned for.

    Raises:
        ConfigError: With the field's name, its value, and what is allowed.
    """

    dtype: str | None = None
    max_position_embeddings: int | None = None
    max_shard_size: int | None = None
    skip_tokenizer: bool | None = None
    tokenizer_class: str | None = None
    variant: Flavor | None = None

    def __post_init__(self) -> None:
        check_fields(self, RULES)

    def said(self) -> dict[str, Any]:
        """Return the options that have a value, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def or_else(self, other: Asked) -> Asked:
        """Take from another what is not said here."""
        return Asked(**(other.said() | self.said()))


RULES = {
    "dtype": or_none(one_of(*(dtype.name for dtype in DTYPES))),
    "max_position_embeddings": or_none(whole(1, _MAX_CONTEXT)),
    "max_shard_size": or_none(SIZE),
    "skip_tokenizer": or_none(FLAG),
    "tokenizer_class": or_none(one_of(*TOKENIZER_CLASSES)),
    "variant": or_none(one_of(*FLAVORS)),
}


def parse_asked(options: Mapping[str, Any]) -> Asked:
    """Read the options of a record.

    Args:
        options: As the file has them; an unknown one is passed over, null says nothing.

    Returns:
        What they say.

    Raises:
        ValueError: If one of them has no value that a conversion can be asked for.
    """
    known = {name: options[name] for name in RULES if options.get(name) is not None}
    for name, value in known.items():
        if not RULES[name].holds(value):
            raise ValueError(f"the option {name} is {shown(value)}")
    return Asked(**known)
