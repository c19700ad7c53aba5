"""Own what a model is: params.json in, `ModelConfig` out.

Meta's spellings (`dim`, `n_heads`, ...) exist in `MetaParams` only.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from codellama_convert.errors import ConfigError, shown
from codellama_convert.model.foreign_params import (
    HEAD_KEYS,
    is_foreign,
    refuse_other_families,
    refuse_other_heads,
)
from codellama_convert.model.generations import LLAMA_2, LLAMA_3, Generation, generation_of
from codellama_convert.model.settings import Settings, parse_settings, require_heads

DEFAULT_MULTIPLE_OF = 256
SAME_FOLDER_HINT = "params.json and the .pth files must come from the same model directory"
_META_HINT = "is it Meta's params.json?"


@dataclass(frozen=True, slots=True)
class MetaParams:
    """params.json, in Meta's spelling.

    Attributes:
        dim: Width of the residual stream.
        n_layers: Transformer blocks.
        n_heads: Query heads.
        n_kv_heads: Key and value heads; None means `n_heads`.
        multiple_of: The feed-forward width is rounded up to a multiple of it.
        ffn_dim_multiplier: Scales the feed-forward width; None means 1.
        norm_eps: Epsilon of RMSNorm.
        rope_theta: Base of the rotary frequencies; None means what the generation's code takes.
        vocab_size: Rows of the embedding; None where the file says -1 or nothing.
        hidden_dim: The feed-forward width itself, as some reimplementations write it; or None.
        tie_word_embeddings: Whether it says that the head is the embedding.
        use_scaled_rope: Whether the rotary frequencies are scaled; by how much, it does not say.
    """

    dim: int
    n_layers: int
    n_heads: int
    norm_eps: float
    n_kv_heads: int | None = None
    multiple_of: int = DEFAULT_MULTIPLE_OF
    ffn_dim_multiplier: float | None = None
    rope_theta: float | None = None
    vocab_size: int | None = None
    hidden_dim: int | None = None
    tie_word_embeddings: bool = False
    use_scaled_rope: bool = False

    def key_value_heads(self) -> int:
        """Return the key and value heads; as many as query heads where the file says nothing."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    def feed_forward_width(self) -> int:
        """Compute the feed-forward width that Meta's code builds, unless the file says it.

        Returns:
            Rows of w1 and w3 over all ranks.

        Source:
            meta-llama/codellama llama/model.py, FeedForward.__init__.
        """
        if self.hidden_dim is not None:
            return self.hidden_dim
        width = int(2 * (4 * self.dim) / 3)
        if self.ffn_dim_multiplier is not None:
            width = int(self.ffn_dim_multiplier * width)
        return self.multiple_of * ((width + self.multiple_of - 1) // self.multiple_of)


_TIED_KEYS = frozenset({"tie_word_embeddings", "tied_embeddings"})  # Mistral's is the other
_MODEL_KEYS = frozenset(field.name for field in fields(MetaParams))
# The last two are what Meta's loaders take for themselves; they do not change the weights' meaning.
_KNOWN_KEYS = _MODEL_KEYS | _TIED_KEYS | HEAD_KEYS | {"max_batch_size", "max_seq_len"}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The model in Hugging Face's spelling, measured on its tensors.

    Attributes:
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the feed-forward network.
        num_hidden_layers: Transformer blocks.
        num_attention_heads: Query heads.
        num_key_value_heads: Key and value heads.
        rms_norm_eps: Epsilon of RMSNorm.
        rope_theta: Base of the rotary frequencies.
        vocab_size: Rows of the embedding.
        tie_word_embeddings: Whether the head is the embedding, and not stored a second time.
        scaled_rope: Whether the rotary frequencies are scaled, as Llama 3.1 scales them.
        generation: Whose code runs it.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float
    rope_theta: float
    vocab_size: int
    tie_word_embeddings: bool = False
    scaled_rope: bool = False
    generation: Generation = LLAMA_2

    @property
    def head_dim(self) -> int:
        """Rows of a head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def key_value_size(self) -> int:
        """Rows of the key and of the value projection."""
        return self.num_key_value_heads * self.head_dim

    def kv_cache_bytes(self, n_tokens: int, itemsize: int) -> int:
        """Compute what the keys and values of a context take while the model runs.

        Args:
            n_tokens: Length of the context.
            itemsize: Bytes of one value.

        Returns:
            Bytes, over all layers.
        """
        return 2 * self.num_hidden_layers * self.key_value_size * n_tokens * itemsize


def parse_params(content: bytes, path: Path) -> tuple[MetaParams, tuple[str, ...]]:
    """Read params.json.

    Args:
        content: The file's bytes.
        path: Where they come from, for messages.

    Returns:
        The parameters, and notes on what the user should know.

    Raises:
        ConfigError: If it is no JSON object of plausible numbers.
    """
    found = parse_settings(content, path, hint=_META_HINT).found
    beside: dict[str, Any] = {}
    # Some re-uploads keep the whole run's settings, with the model's below "model".
    if isinstance(found.get("model"), dict):
        beside, found = found, found["model"]
        del beside["model"]
        _refuse_contradiction(found, beside, path)
        refuse_other_families(beside, _KNOWN_KEYS, path)
    refuse_other_families(found, _KNOWN_KEYS, path)
    said = Settings(found, path, _META_HINT)
    n_rows = found.get("vocab_size")
    params = MetaParams(
        dim=said.whole("dim"),
        n_layers=said.whole("n_layers"),
        n_heads=said.whole("n_heads"),
        norm_eps=said.real("norm_eps"),
        n_kv_heads=said.optional_whole("n_kv_heads"),
        multiple_of=said.optional_whole("multiple_of") or DEFAULT_MULTIPLE_OF,
        ffn_dim_multiplier=said.optional_real("ffn_dim_multiplier"),
        rope_theta=said.optional_real("rope_theta"),
        vocab_size=None if n_rows == -1 else said.optional_whole("vocab_size"),
        hidden_dim=said.optional_whole("hidden_dim"),
        tie_word_embeddings=any((beside | found).get(key) is True for key in _TIED_KEYS),
        use_scaled_rope=said.flag("use_scaled_rope"),
    )
    refuse_other_heads(beside | found, params.dim, params.n_heads, path)
    return params, (*_ignored(found), *_ignored(beside, " beside 'model'"))


def _ignored(found: dict[str, Any], where: str = "") -> tuple[str, ...]:
    unknown = sorted(key for key in found if key not in _KNOWN_KEYS and not is_foreign(key))
    return (f"params.json: ignored {', '.join(map(repr, unknown))}{where}",) if unknown else ()


def _refuse_contradiction(model: dict[str, Any], beside: dict[str, Any], path: Path) -> None:
    """Refuse a key of the model that has another value, or is, beside the model's own."""
    for key in sorted(beside.keys() & _MODEL_KEYS):
        if beside[key] != model.get(key):
            inside = f"{shown(model[key], 40)} in it" if key in model else f"no {key!r} in it"
            raise ConfigError(
                f"has {key!r}: {shown(beside[key], 40)} beside 'model', but {inside}",
                path=path,
                hint="keep the one that is right, in 'model'",
            )


def build_config(
    params: MetaParams,
    *,
    intermediate_size: int,
    vocab_size: int,
    path: Path,
    tie_word_embeddings: bool = False,
    has_tiktoken: bool = False,
    generation: Generation | None = None,
) -> ModelConfig:
    """Join params.json with what the tensors show.

    Args:
        params: What params.json says.
        intermediate_size: Rows of w1 over all ranks.
        vocab_size: Rows of the embedding.
        path: params.json, for messages.
        tie_word_embeddings: Whether the head is the embedding.
        has_tiktoken: Whether the tokenizer is of Llama 3's kind.
        generation: Whose code the ranks are split for; None where their shapes do not tell.

    Returns:
        The model.

    Raises:
        ConfigError: If the heads do not divide the width, or it is not known which rope_theta is
            meant.
    """
    require_heads(
        ("dim", params.dim),
        ("n_heads", params.n_heads),
        ("n_kv_heads", params.key_value_heads()),
        path=path,
        hint=_META_HINT,
    )
    usual = generation_of(
        scaled_rope=params.use_scaled_rope, vocab_size=vocab_size, has_tiktoken=has_tiktoken
    )
    generation = generation or usual
    if params.rope_theta is None and generation != usual:
        raise ConfigError(
            f"says no 'rope_theta': the code of {LLAMA_2.name} then takes {LLAMA_2.rope_theta:g}, "
            f"that of {LLAMA_3.name} {LLAMA_3.rope_theta:g}; the ranks are split as those of "
            f"{generation.name}, but the vocabulary is not theirs",
            path=path,
            hint="write the right one into it",
        )
    return ModelConfig(
        hidden_size=params.dim,
        intermediate_size=intermediate_size,
        num_hidden_layers=params.n_layers,
        num_attention_heads=params.n_heads,
        num_key_value_heads=params.key_value_heads(),
        rms_norm_eps=params.norm_eps,
        rope_theta=generation.rope_theta if params.rope_theta is None else params.rope_theta,
        vocab_size=vocab_size,
        tie_word_embeddings=tie_word_embeddings,
        scaled_rope=params.use_scaled_rope,
        generation=generation,
    )
