"""Own what a conversion is asked for, as far as the bytes of its output depend on it.

The user may say it, the output's record says it, and the output itself shows some of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from codellama_convert.arguments import (
    FLAG,
    SIZE,
    Rule,
    check_fields,
    one_of,
    or_none,
    real,
    whole,
)
from codellama_convert.choices import (
    FLAVORS,
    LARGEST_SCALING,
    MAX_RANKS,
    TOKENIZER_CLASSES,
    TORCH_LAYOUTS,
    Flavor,
    TorchLayout,
)
from codellama_convert.errors import shown
from codellama_convert.tensors import DTYPES

RECORD_NAME = "conversion.json"  # of the output; it says what was asked for, and every sum
_MAX_ROWS = (1 << 31) - 1
_MAX_CONTEXT = (1 << 31) - 1  # positions are counted in 32 bits by many a runtime

_Kind = TypeVar("_Kind", bound="_Asking")


@dataclass(frozen=True, slots=True)
class _Asking:
    """What may be said of an output; a field is None where nothing is said."""

    def said(self) -> dict[str, Any]:
        """Return the options that have a value, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def or_else(self: _Kind, other: _Kind) -> _Kind:  # noqa: PYI019 - typing.Self is not in Python 3.10
        """Take from another what is not said here."""
        return type(self)(**(other.said() | self.said()))


@dataclass(frozen=True, slots=True)
class Asked(_Asking):
    """What a conversion was asked for, spelled as in conversion.json; None where nothing is said.

    Attributes:
        dtype: Name of the tensors' dtype.
        max_position_embeddings: Tokens of context.
        max_shard_size: Largest sum of one file's tensors, in bytes.
        rope_scaling_factor: By which the lowest rotary frequencies are divided.
        skip_tokenizer: Whether the weights are alone.
        tokenizer_class: What tokenizer_config.json names.
        variant: What the model was tuned for.

    Raises:
        ConfigError: With the field's name, its value, and what is allowed.
    """

    dtype: str | None = None
    max_position_embeddings: int | None = None
    max_shard_size: int | None = None
    rope_scaling_factor: float | None = None
    skip_tokenizer: bool | None = None
    tokenizer_class: str | None = None
    variant: Flavor | None = None

    def __post_init__(self) -> None:
        check_fields(self, RULES)


@dataclass(frozen=True, slots=True)
class AskedRanks(_Asking):
    """What a conversion into ranks was asked for, spelled as in conversion.json.

    Attributes:
        checklist: Whether Meta's list of MD5 sums lies beside them.
        dtype: Name of the tensors' dtype.
        ranks: Number of files.
        rope_freqs: Whether they hold the rotary frequencies.
        skip_tokenizer: Whether the weights are alone.
        torch_layout: The version of PyTorch whose files they equal.
        vocab_rows: Rows of the vocabulary.

    Raises:
        ConfigError: With the field's name, its value, and what is allowed.
    """

    checklist: bool | None = None
    dtype: str | None = None
    ranks: int | None = None
    rope_freqs: bool | None = None
    skip_tokenizer: bool | None = None
    torch_layout: TorchLayout | None = None
    vocab_rows: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, RULES_OF_RANKS)


RULES = {
    "dtype": or_none(one_of(*(dtype.name for dtype in DTYPES))),
    "max_position_embeddings": or_none(whole(1, _MAX_CONTEXT)),
    "max_shard_size": or_none(SIZE),
    "rope_scaling_factor": or_none(real(1, LARGEST_SCALING)),
    "skip_tokenizer": or_none(FLAG),
    "tokenizer_class": or_none(one_of(*TOKENIZER_CLASSES)),
    "variant": or_none(one_of(*FLAVORS)),
}
RULES_OF_RANKS = {
    "checklist": or_none(FLAG),
    "dtype": RULES["dtype"],
    "ranks": or_none(whole(1, MAX_RANKS)),
    "rope_freqs": or_none(FLAG),
    "skip_tokenizer": or_none(FLAG),
    "torch_layout": or_none(one_of(*TORCH_LAYOUTS)),
    "vocab_rows": or_none(whole(1, _MAX_ROWS)),
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
    return Asked(**_known(options, RULES))


def parse_asked_ranks(options: Mapping[str, Any]) -> AskedRanks | None:
    """Read the options of the record of a conversion into ranks, as `parse_asked` does.

    Args:
        options: As the file has them.

    Returns:
        What they say; None where it is of another conversion.

    Raises:
        ValueError: If one of them has no value that a conversion can be asked for.
    """
    return AskedRanks(**_known(options, RULES_OF_RANKS)) if "ranks" in options else None


def _known(options: Mapping[str, Any], rules: Mapping[str, Rule]) -> dict[str, Any]:
    known = {name: options[name] for name in rules if options.get(name) is not None}
    for name, value in known.items():
        if not rules[name].holds(value):
            raise ValueError(f"the option {name} is {shown(value)}")
    return known
