"""Own config.json of any writer: the model that it describes, or why Meta's code cannot run it.

Meta's code has no biases, and one way of scaling frequencies; params.json has no key for others:
what is written without regard to them loads, and computes something else.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from codellama_convert.errors import ConfigError, shown
from codellama_convert.formats.file_kinds import HEAD_BYTES, refuse_other_kind
from codellama_convert.formats.strict_json import identical
from codellama_convert.hugging_face.rope_settings import read_rope
from codellama_convert.model.config import ModelConfig
from codellama_convert.model.foreign_params import SUPPORTED_HINT, refuse_other_families
from codellama_convert.model.generations import generation_of
from codellama_convert.model.settings import Settings, parse_settings, require_heads
from codellama_convert.storage.input_file import InputFile
from codellama_convert.tensors import DTYPES, Dtype

CONFIG_NAME = "config.json"
_MAX_BYTES = 1 << 20
_HINT = "is it the config.json of a Llama model, as transformers saves it?"
_ONE_VALUE = "keep the one that the model was trained with"
_DEFAULT_ROPE_THETA = 10000.0  # transformers', of every Llama

# As transformers spells them in `model_type`; any other is refused too, by that spelling.
_FAMILIES = {
    "mistral": "Mistral", "mixtral": "Mixtral", "qwen2": "Qwen2", "qwen2_moe": "Qwen2",
    "qwen3": "Qwen3", "qwen3_moe": "Qwen3", "gemma": "Gemma", "gemma2": "Gemma 2",
    "gemma3": "Gemma 3", "gemma3_text": "Gemma 3", "phi": "Phi", "phi3": "Phi-3",
    "llama4": "Llama 4 or Llama Guard 4", "llama4_text": "Llama 4 or Llama Guard 4", "mllama": "Llama 3.2 Vision",
    "llava": "LLaVA", "deepseek_v2": "DeepSeek", "deepseek_v3": "DeepSeek", "granite": "Granite",
    "falcon": "Falcon", "gpt2": "GPT-2", "gpt_neox": "GPT-NeoX", "starcoder2": "StarCoder2",
    "olmo2": "OLMo 2", "cohere": "Command R", "stablelm": "StableLM", "internlm2": "InternLM2",
    "deberta-v2": "DeBERTa, such as Prompt Guard",
}  # fmt: skip
# The second is what the first conversions called it.
_ARCHITECTURES = ("LlamaForCausalLM", "LLaMAForCausalLM")
# Keys of transformers' Llama that look like another model's to the table, and are judged here.
_OWN_KEYS = frozenset(
    {"rope_theta", "rope_scaling", "rope_parameters", "hidden_act", "quantization_config"}
)


@dataclass(frozen=True, slots=True)
class HuggingFaceConfig:
    """What a config.json says.

    Attributes:
        model: The model.
        dtype: Of the weights, as the file says it; None where it says none that a model has.
        rope_scaling_factor: By which the lowest rotary frequencies are divided; None where they are
            not scaled.
    """

    model: ModelConfig
    dtype: Dtype | None
    rope_scaling_factor: float | None = None


def read_config(path: Path) -> tuple[HuggingFaceConfig, bytes]:
    """Read a config.json; the result and errors of `parse_config`, and the file's bytes."""
    if not os.path.lexists(path):
        raise ConfigError(
            "No such file",
            path=path,
            hint="it comes with the weights; download it from the same place",
        )
    with InputFile(path, error=ConfigError, hint=_HINT) as file:
        content = file.read_whole(_MAX_BYTES, hint=_HINT)
    refuse_other_kind(content[:HEAD_BYTES], "JSON", path=path, error=ConfigError)
    return parse_config(content, path), content


def parse_config(content: bytes, path: Path) -> HuggingFaceConfig:
    """Read config.json in the spelling of transformers 4 or 5.

    Args:
        content: The file's bytes.
        path: Where they come from, for messages.

    Returns:
        What it says.

    Raises:
        ConfigError: If it is not a JSON object of plausible numbers, or of a model that Meta's code
            cannot run.

    Source:
        transformers configuration_llama.py, 4.57 and 5: keys and defaults.
    """
    said = parse_settings(content, path, hint=_HINT)
    _refuse_other_models(said)
    hidden_size = said.whole("hidden_size")
    n_heads = said.whole("num_attention_heads")
    n_kv_heads = said.optional_whole("num_key_value_heads") or n_heads
    _require_heads(said, hidden_size, n_heads, n_kv_heads)
    rope, vocab_size = read_rope(said), said.whole("vocab_size")
    scaled_rope = rope.scaling_factor is not None
    model = ModelConfig(
        hidden_size=hidden_size,
        intermediate_size=said.whole("intermediate_size"),
        num_hidden_layers=said.whole("num_hidden_layers"),
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv_heads,
        rms_norm_eps=said.real("rms_norm_eps"),
        rope_theta=_DEFAULT_ROPE_THETA if rope.theta is None else rope.theta,
        vocab_size=vocab_size,
        tie_word_embeddings=said.flag("tie_word_embeddings"),
        scaled_rope=scaled_rope,
        generation=generation_of(scaled_rope=scaled_rope, vocab_size=vocab_size),
    )
    return HuggingFaceConfig(model, _dtype(said), rope.scaling_factor)


def _refuse_other_models(said: Settings) -> None:
    """Refuse another architecture, weights that are no plain numbers, and what Meta's has not."""
    found, path = said.found, said.path
    kind = found.get("model_type")
    if kind != "llama":
        family = _FAMILIES.get(kind) if isinstance(kind, str) else None
        whose = f", which is {family}'s" if family else ""
        what = "no 'model_type'" if kind is None else f"'model_type': {shown(kind, 40)}{whose}"
        raise ConfigError(f"has {what}", path=path, hint=SUPPORTED_HINT)
    architectures = found.get("architectures")
    if architectures and not any(identical(architectures, [name]) for name in _ARCHITECTURES):
        raise ConfigError(
            f"has 'architectures': {shown(architectures)}, not {_ARCHITECTURES[0]}",
            path=path,
            hint="save the whole language model, with its head",
        )
    for key in ("quantization_config", "compression_config"):
        if found.get(key):
            method = found[key].get("quant_method") if isinstance(found[key], dict) else found[key]
            raise ConfigError(
                f"has {key!r} ({shown(method, 40)}): the weights are quantised",
                path=path,
                hint="use the weights before quantisation, in bfloat16, float16 or float32",
            )
    for key in ("attention_bias", "mlp_bias"):
        if said.flag(key):
            raise ConfigError(
                f"has {key!r}: true, but Meta's code has no biases", path=path, hint=SUPPORTED_HINT
            )
    activation = found.get("hidden_act")
    if activation not in (None, "silu"):
        raise ConfigError(
            f"has 'hidden_act': {shown(activation, 40)}, but Meta's code has only silu",
            path=path,
            hint=SUPPORTED_HINT,
        )
    refuse_other_families(found, _OWN_KEYS, path)


def _require_heads(said: Settings, hidden_size: int, n_heads: int, n_kv_heads: int) -> None:
    require_heads(
        ("hidden_size", hidden_size),
        ("num_attention_heads", n_heads),
        ("num_key_value_heads", n_kv_heads),
        path=said.path,
        hint=_HINT,
    )
    size = said.optional_whole("head_dim")
    if size not in (None, hidden_size // n_heads):
        raise ConfigError(
            f"has 'head_dim': {size}, but hidden_size {hidden_size} over num_attention_heads "
            f"{n_heads} gives {hidden_size // n_heads}, which is what Meta's code uses",
            path=said.path,
            hint=SUPPORTED_HINT,
        )


def _dtype(said: Settings) -> Dtype | None:
    old, new = (said.found.get(key) for key in ("torch_dtype", "dtype"))
    if old is not None and new is not None and old != new:
        raise ConfigError(
            f"has 'torch_dtype': {shown(old, 40)} and 'dtype': {shown(new, 40)}",
            path=said.path,
            hint=_ONE_VALUE,
        )
    return next((dtype for dtype in DTYPES if dtype.name in (old, new)), None)
