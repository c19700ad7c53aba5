"""Own the keys of params.json that make it another model than the Llamas that are supported.

What is converted without regard to one of them loads, and computes something else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from codellama_convert.errors import ConfigError, shown

SUPPORTED_HINT = "Llama 1, Llama 2, Code Llama and Llama 3 to 3.3 (text) are supported"
# What dim and n_heads give is the only value of these that the supported models have.
HEAD_KEYS = frozenset({"head_dim", "softmax_scale"})


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A key, or several, of other models.

    Attributes:
        pattern: Of its name, in lower case; "*" stands for any text.
        family: Whose it is; None where several families may have it.
        neutral: The values at which it changes nothing, as null and what is empty never do: none of
            something, a factor of one, or what the supported models have; texts in lower case.
    """

    pattern: str
    family: str | None = None
    neutral: tuple[object, ...] = (False, 0)


# The first row that fits counts. Llama's own: meta-llama/llama-models, models/*/args.py and the
# params.json of each release; Mistral's and Mixtral's: mistralai/mistral-inference, args.py.
FOREIGN_KEYS: tuple[ForeignKey, ...] = (
    ForeignKey("rope_scaling_factor", "Llama 4 or Llama Guard 4", (False, 1)),
    ForeignKey("rope_freq_scale", None, (False, 1)),
    ForeignKey("*rope*"),
    ForeignKey("*yarn*"),
    ForeignKey("llama_4_scaling", "Mistral"),
    ForeignKey("*scaling*"),
    ForeignKey("sliding_window", "Mistral"),
    ForeignKey("*window*"),
    ForeignKey("moe", "Mixtral"),
    ForeignKey("moe_args", "Llama 4 or Llama Guard 4"),
    ForeignKey("*moe*"),
    ForeignKey("*expert*", "models that are mixtures of experts"),
    ForeignKey("use_qk_norm", "Llama 4 or Llama Guard 4"),
    ForeignKey("*qk_norm*"),
    ForeignKey("*att*temperature*"),  # alone, it is one of sampling
    ForeignKey("nope_layer_interval", "Llama 4 or Llama Guard 4"),
    ForeignKey("attention_chunk_size", "Llama 4 or Llama Guard 4"),
    ForeignKey("vision_args", "Llama 4 or Llama Guard 4"),
    ForeignKey("vision_*", "Llama 3.2 Vision"),
    ForeignKey("*_vision*"),  # not "revision"
    ForeignKey("quantization_args", "the quantised Llama 3.2"),
    ForeignKey("*quant*"),
    ForeignKey("lora_args", "the quantised Llama 3.2 (QLoRA)"),
    ForeignKey("*_lora_rank", "DeepSeek"),
    ForeignKey("lora*"),  # not "exploration"
    ForeignKey("*_lora*"),
    ForeignKey("*qlora*"),
    ForeignKey("norm_type", None, (False, 0, "rmsnorm", "rms_norm", "rms")),
    ForeignKey("activation", None, (False, 0, "silu", "swish", "swiglu")),
    ForeignKey("hidden_act", None, (False, 0, "silu", "swish", "swiglu")),
    ForeignKey("causal", None, (True,)),
)


def refuse_other_families(found: Mapping[str, Any], own: frozenset[str], path: Path) -> None:
    """Refuse what would be converted into a model that loads and computes something else.

    Args:
        found: params.json, or a level of it.
        own: Keys that are Meta's own for the supported models.
        path: params.json, for messages.

    Raises:
        ConfigError: With the key and its value.
    """
    foreign = foreign_key(found, own)
    if foreign is not None:
        key, family = foreign
        whose = "which the supported models do not have" if family is None else f"a key of {family}"
        what = f"has {shown(key, 40)}: {shown(found[key], 40)}, {whose}"
        raise ConfigError(what, path=path, hint=SUPPORTED_HINT)


def refuse_other_heads(found: Mapping[str, Any], dim: int, n_heads: int, path: Path) -> None:
    """Refuse heads of another size, or scale, than dim and n_heads give.

    Raises:
        ConfigError: With the key and both values.
    """
    size = dim / n_heads
    for key, right in (("head_dim", size), ("softmax_scale", size**-0.5)):
        value: Any = found.get(key)
        is_right = type(value) in (int, float) and math.isclose(value, right, rel_tol=1e-6)
        if value and not is_right:
            raise ConfigError(
                f"has {key!r}: {shown(value, 40)}, but dim {dim} over n_heads {n_heads} gives "
                f"{right:g}",
                path=path,
                hint=SUPPORTED_HINT,
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
    """Report whether a value leaves the model as it is."""
    if value is None or value in ("", [], {}):
        return True
    said = value.lower() if isinstance(value, str) else value
    # To "==", false is 0 and true is 1.
    return any(
        isinstance(said, bool) is isinstance(one, bool) and said == one for one in row.neutral
    )
