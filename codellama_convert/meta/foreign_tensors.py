"""Own the names of tensors that show a file to be of another kind of model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codellama_convert.errors import LayoutError, shown
from codellama_convert.formats.pth.pickle_names import View
from codellama_convert.model.foreign_params import SUPPORTED_HINT

_MAX_SHOWN = 120


@dataclass(frozen=True, slots=True)
class ForeignTensor:
    """One kind of tensor that no supported checkpoint has.

    Attributes:
        pattern: Somewhere in its name.
        what: Follows the name in a message.
        hint: What to do.
    """

    pattern: re.Pattern[str]
    what: str
    hint: str = SUPPORTED_HINT


# The first row that fits is told. Names: meta-llama/llama-models, models/llama3/reference_impl/
# multimodal/model.py; mistralai/mistral-inference, moe.py and vision_encoder.py; torchtune and
# peft, LoRA; transformers, modeling_llama.py; pytorch-labs/gpt-fast, model.py and quantize.py;
# Lightning-AI/litgpt, model.py.
FOREIGN_TENSORS: tuple[ForeignTensor, ...] = (
    ForeignTensor(
        re.compile(r"(?:^|\.)(?:vision_\w+|cross_attention_layers|multi_modal_projector)\."),
        "belongs to a model that reads images, such as Llama 3.2 Vision",
    ),
    ForeignTensor(
        re.compile(r"(?:^|\.)(?:lora_\w+|lora|adapter\w*|base_layer)(?:\.|$)"),
        "belongs to a LoRA or another adapter",
        "merge the adapter into its model first, with the program that trained it",
    ),
    ForeignTensor(
        re.compile(r"\.(?:experts|router\w*|block_sparse_moe|feed_forward\.gate)\."),
        "belongs to a mixture of experts, such as Mixtral",
    ),
    ForeignTensor(
        re.compile(
            r"\.(?:qweight|qzeros|g_idx|scales|zeros|weight_scale\w*|absmax|quant_map|SCB)$"
        ),
        "belongs to quantised weights",
        "use the weights before quantisation, in bfloat16, float16 or float32",
    ),
    ForeignTensor(
        re.compile(r"\.attention\.wqkv\."),
        "holds queries, keys and values joined, as gpt-fast writes them",
        "use the files that it was made from",
    ),
    ForeignTensor(
        re.compile(r"(?:^|\.)transformer\.(?:wte|h\.[0-9]+)\."),
        "is not one of Meta's: litgpt and GPT-2 name their tensors like this",
        "get Meta's files, or use the program that wrote this one",
    ),
    ForeignTensor(
        re.compile(
            r"(?:^|\.)(?:embed_tokens|lm_head|self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)\."
        ),
        "is not one of Meta's: these are Hugging Face's names already",
        "load the model with transformers as it is, or get Meta's files",
    ),
)


def is_foreign(name: str) -> bool:
    """Report whether a tensor's name is of another kind of model."""
    return any(row.pattern.search(name) for row in FOREIGN_TENSORS)


def refuse_foreign(path: Path, entries: Mapping[str, Any]) -> None:
    """Refuse the tensors of another kind of model by what they are.

    Args:
        path: The file, for the message.
        entries: What it holds, by name; nothing was checked.

    Raises:
        LayoutError: If a name shows it.
    """
    for row in FOREIGN_TENSORS:
        name = next((name for name in entries if row.pattern.search(name)), None)
        if name is not None:
            value = entries[name]
            of_shape = f" of shape {shown(value.shape)}" if type(value) is View else ""
            raise LayoutError(
                f"tensor {shown(name, _MAX_SHOWN)}{of_shape} {row.what}", path=path, hint=row.hint
            )
