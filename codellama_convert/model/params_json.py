"""Own the writing of params.json: what `parse_params` reads, from the model back.

Meta's loaders take the file's keys as arguments: a key that the code of an era does not know ends
them, and one that is missing is a default, without a word. So there are as few as possible.
"""

from __future__ import annotations

import json
from math import nextafter
from pathlib import Path
from typing import Any

from codellama_convert.errors import ConfigError
from codellama_convert.model.config import (
    DEFAULT_MULTIPLE_OF,
    MetaParams,
    ModelConfig,
    build_config,
    parse_params,
)
from codellama_convert.model.generations import LLAMA_2, LLAMA_3
from codellama_convert.model.recognise import fitting_releases
from codellama_convert.model.releases import PARAMS_TEXTS

_PATH = Path("params.json")
# meta-llama/codellama llama/model.py, `ModelArgs`, without what its loader passes itself.
_METAS_KEYS = frozenset({
    "dim", "ffn_dim_multiplier", "multiple_of", "n_heads", "n_kv_heads", "n_layers", "norm_eps",
    "rope_theta", "vocab_size",
})  # fmt: skip
_MAX_BYTES = 1 << 12  # Meta's has 200
_MOST_DIGITS = 17  # tell any two floating-point numbers apart


def params_json(config: ModelConfig, own: bytes | None = None) -> bytes:
    """Write params.json so that Meta's code builds the model.

    Args:
        config: The model; whether its head is tied is not said, as Meta's code has no such thing.
        own: The file that the model came with, if any.

    Returns:
        The file's bytes: its own where they say all of it, and nothing else. Else of a released
        model the text that Meta released, where that is known; else as few keys as the code of its
        generation needs. `vocab_size` is the true number, as some readers take none, or -1, for
        32000.

    Raises:
        ConfigError: If no numbers make Meta's formula give the width of the feed-forward network.
    """
    if own is not None and _has_metas_keys(own, config) and _describes(own, config):
        return own
    for release in fitting_releases(config):
        text = PARAMS_TEXTS.get((release.family, release.size), "").encode()
        if text and _describes(text, config):
            return text
    multiple_of, multiplier = feed_forward_rule(config.hidden_size, config.intermediate_size)
    width: dict[str, Any] = {"multiple_of": multiple_of}
    if multiplier is not None:
        width["ffn_dim_multiplier"] = multiplier
    keys_of = _keys_of_3 if config.generation == LLAMA_3 else _keys_of_2
    text = (json.dumps(keys_of(config, width)) + "\n").encode()
    assert _describes(text, config), text
    return text


def _keys_of_2(config: ModelConfig, width: dict[str, Any]) -> dict[str, Any]:
    """Return the keys that the code of one release or another has no default for."""
    content = {"dim": config.hidden_size, **width, "n_heads": config.num_attention_heads}
    if config.num_key_value_heads != config.num_attention_heads:
        content["n_kv_heads"] = config.num_key_value_heads
    content |= {"n_layers": config.num_hidden_layers, "norm_eps": config.rms_norm_eps}
    if config.rope_theta != LLAMA_2.rope_theta:
        content["rope_theta"] = _plain(config.rope_theta)
    return content | {"vocab_size": config.vocab_size}


def _keys_of_3(config: ModelConfig, width: dict[str, Any]) -> dict[str, Any]:
    """Return all keys that its releases have; the code of 3.0 does not know the last one."""
    content: dict[str, Any] = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "vocab_size": config.vocab_size,
        **width,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
    }
    return content | ({"use_scaled_rope": True} if config.scaled_rope else {})


def feed_forward_rule(hidden_size: int, intermediate_size: int) -> tuple[int, float | None]:
    """Find the numbers from which Meta's formula computes a feed-forward width.

    Args:
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the feed-forward network.

    Returns:
        `multiple_of` and `ffn_dim_multiplier`: 256 and None where they will do; else the largest
        power of two that divides the width, and the multiplier of the fewest digits, which are
        those of Meta's releases.

    Raises:
        ConfigError: If there are none.
    """

    def gives(multiple_of: int, multiplier: float | None) -> bool:
        params = MetaParams(
            dim=hidden_size, n_layers=1, n_heads=1, norm_eps=1.0,
            multiple_of=multiple_of, ffn_dim_multiplier=multiplier,
        )  # fmt: skip
        return params.feed_forward_width() == intermediate_size

    if gives(DEFAULT_MULTIPLE_OF, None):
        return DEFAULT_MULTIPLE_OF, None
    largest = intermediate_size & -intermediate_size
    for multiplier in (None, *_multipliers(hidden_size, intermediate_size)):
        if gives(largest, multiplier):
            return largest, multiplier
    raise ConfigError(
        f"no multiple_of and ffn_dim_multiplier give the intermediate_size {intermediate_size} at "
        f"the hidden_size {hidden_size}, so Meta's code cannot build the model",
        hint="only widths that Meta's formula gives can be converted",
    )


def _multipliers(hidden_size: int, intermediate_size: int) -> tuple[float, ...]:
    """List multipliers below the ratio that is wanted and next to it, the fewest digits first."""
    base = int(2 * (4 * hidden_size) / 3)
    short = (
        (intermediate_size * 10**n_digits // base) / 10**n_digits
        for n_digits in range(_MOST_DIGITS + 1)
    )
    ratio = intermediate_size / base
    # The product of a rounded ratio may fall just short of the width.
    return (*filter(None, short), ratio, nextafter(ratio, 2 * ratio))


def _has_metas_keys(text: bytes, config: ModelConfig) -> bool:
    """Report whether Meta's code takes all keys of a file."""
    try:
        found = json.loads(text.decode())  # as Meta's code does, which stops at a byte order mark
    except ValueError:
        return False
    known = _METAS_KEYS | ({"use_scaled_rope"} if config.scaled_rope else set())
    return len(text) <= _MAX_BYTES and found.keys() <= known


def _describes(text: bytes, config: ModelConfig) -> bool:
    """Read a text back, and report whether it describes a model."""
    params, notes = parse_params(text, _PATH)
    if notes or params.vocab_size not in (None, config.vocab_size):
        return False
    said = build_config(
        params,
        intermediate_size=params.feed_forward_width(),
        vocab_size=config.vocab_size,
        path=_PATH,
        tie_word_embeddings=config.tie_word_embeddings,
        generation=config.generation,
    )
    return said == config


def _plain(value: float) -> float | int:
    """Write a whole number as one, as Meta does."""
    return int(value) if value.is_integer() and value < 2**53 else value
