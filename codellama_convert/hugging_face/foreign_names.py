"""Own the names that show a folder or a tensor to be of another kind than a Llama's whole weights."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from codellama_convert.errors import CheckpointError, LayoutError, shown
from codellama_convert.model.foreign_params import SUPPORTED_HINT

_MAX_SHOWN = 120
_MERGE = "merge the adapter into its model first, with the program that trained it"
_PLAIN = "use the weights before quantisation, in bfloat16, float16 or float32"
_SAVE_AGAIN = "load it with transformers and save it with save_pretrained, which writes safetensors"


@dataclass(frozen=True, slots=True)
class ForeignName:
    """One kind of name.

    Attributes:
        pattern: Of the name.
        what: Follows the name in a message.
        hint: What to do.
    """

    pattern: re.Pattern[str]
    what: str
    hint: str


def _row(pattern: str, what: str, hint: str) -> ForeignName:
    return ForeignName(re.compile(pattern), what, hint)


# Beside whole weights too: transformers puts an adapter on them, and their numbers are not the
# model's.
_ADAPTERS = _row(
    r"adapter_config\.json|adapter_model\..*", "which belongs to an adapter such as LoRA", _MERGE
)
# Of folders without weights that are read. The first row that fits is told.
_OTHER_WEIGHTS = (
    _row(
        r"consolidated.*\.safetensors",
        "which holds the weights under Meta's or Mistral's names",
        "use the folder that transformers loads",
    ),
    _row(
        r"consolidated.*\.pth|params\.json",
        "which belongs to a checkpoint in Meta's layout",
        "name a Hugging Face folder: config.json beside model.safetensors",
    ),
    _row(
        r".*\.gguf|ggml.*\.bin",
        "which is a llama.cpp model, often quantised",
        "use the weights that it was made from, as safetensors",
    ),
    _row(r"(tf|flax)_model.*", "which is another framework's format", _SAVE_AGAIN),
    _row(r".*\.(bin|pth|pt)", "which is torch's format", _SAVE_AGAIN),
)
# Names: transformers, modeling_llama.py and modeling_mixtral.py; peft; AutoGPTQ; AutoAWQ;
# bitsandbytes, nn/modules.py; compressed-tensors; MLX.
_TENSORS = (
    _row(r".*(\.|^)(lora_\w+|adapter\w*|base_layer|modules_to_save)(\..*|$)", "belongs to an adapter", _MERGE),
    _row(
        r".*\.(qweight|qzeros|g_idx|scales|biases|absmax|quant_map|nested_absmax|nested_quant_map|"
        r"quant_state\..*|SCB|weight_format|weight_scale\w*|weight_zero_point|weight_packed|"
        r"weight_shape|input_scale)",
        "belongs to quantised weights",
        _PLAIN,
    ),
    _row(
        r".*\.(experts|block_sparse_moe|router)\..*",
        "belongs to a mixture of experts, such as Mixtral",
        SUPPORTED_HINT,
    ),
    _row(r".*\.bias", "is a bias, but Meta's code has no biases", SUPPORTED_HINT),
    _row(
        r".*\.(q_norm|k_norm)\.weight",
        "normalises queries or keys, which Meta's code does not",
        SUPPORTED_HINT,
    ),
    _row(
        r"tok_embeddings\.weight|layers\.[0-9]+\.(attention|feed_forward)\..*",
        "has Meta's name, not transformers'",
        "use the folder that transformers loads",
    ),
)  # fmt: skip


def refuse_adapters(folder: Path, names: Collection[str]) -> None:
    """Refuse a folder in which an adapter lies, alone or beside the weights.

    Raises:
        CheckpointError: With the file.
    """
    for name in sorted(names):
        if _ADAPTERS.pattern.fullmatch(name):
            raise CheckpointError(
                f"holds {name}, {_ADAPTERS.what}", path=folder, hint=_ADAPTERS.hint
            )


def without_weights(folder: Path, names: Collection[str]) -> CheckpointError:
    """Say what a folder holds that has neither safetensors files nor pytorch_model.bin.

    Args:
        folder: The folder.
        names: All in it.

    Returns:
        The error.
    """
    for row in _OTHER_WEIGHTS:
        name = next((name for name in sorted(names) if row.pattern.fullmatch(name)), None)
        if name is not None:
            return CheckpointError(
                f"holds neither safetensors files nor pytorch_model.bin, but {name}, {row.what}",
                path=folder,
                hint=row.hint,
            )
    return CheckpointError(
        "holds neither safetensors files nor pytorch_model.bin",
        path=folder,
        hint="name the folder of a model in Hugging Face's format, with config.json",
    )


def refuse_foreign_tensors(folder: Path, names: Iterable[str]) -> None:
    """Refuse the tensors of another kind of model by what they are.

    Raises:
        LayoutError: With the tensor.
    """
    names = tuple(names)
    for row in _TENSORS:
        name = next((name for name in names if row.pattern.fullmatch(name)), None)
        if name is not None:
            raise LayoutError(
                f"tensor {shown(name, _MAX_SHOWN)} {row.what}", path=folder, hint=row.hint
            )


def refuse_other_dtypes(folder: Path, codes: Mapping[str, str]) -> None:
    """Refuse a tensor of integers or of 8 bits, by name.

    Args:
        folder: Where it is, for the message.
        codes: The dtypes that no model has, by the tensor's name.

    Raises:
        LayoutError: With the tensor.
    """
    for name, code in codes.items():
        wide = code in ("F64", "C64")
        raise LayoutError(
            f"tensor {shown(name, _MAX_SHOWN)} is {code}"
            + ("" if wide else ": the weights are quantised"),
            path=folder,
            hint="save it in bfloat16, float16 or float32" if wide else _PLAIN,
        )


def refuse_wrapped(folder: Path, names: Collection[str], anchor: str) -> None:
    """Refuse names with something before them that a wrapper put there, or without "model.".

    Args:
        folder: Where they are, for the message.
        names: Of all tensors.
        anchor: A name that every model has.

    Raises:
        LayoutError: With what stands before the names, or does not.
    """
    if anchor in names:
        return
    wrapped = next((name for name in sorted(names) if name.endswith(f".{anchor}")), None)
    if wrapped is not None:
        prefix = wrapped.removesuffix(anchor)
        raise LayoutError(
            f"every tensor's name begins with {shown(prefix, _MAX_SHOWN)}, as a wrapper saves it",
            path=folder,
            hint="save the model that is inside the wrapper (merge an adapter first)",
        )
    bare = anchor.partition(".")[2]
    if bare in names:
        raise LayoutError(
            f"tensor {bare!r} is there, but {anchor!r} is not: the model was saved without its "
            "head",
            path=folder,
            hint="save the whole language model (LlamaForCausalLM)",
        )
