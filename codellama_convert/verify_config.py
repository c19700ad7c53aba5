"""Own the check of config.json and generation_config.json: every key, its type and its value.

What they should hold is spelled here a second time, so that a mistake of the writer is seen. Know
nothing of weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codellama_convert.config import ModelConfig
from codellama_convert.errors import VerifyError
from codellama_convert.output_reader import json_file
from codellama_convert.verify_report import Problems


@dataclass(frozen=True, slots=True)
class Marks:
    """The ids that begin and end a text.

    Attributes:
        bos: Begins a text.
        eos: Ends one.
        step: Ends an answer too, in Code Llama 70B Instruct; None where there is no such piece.
    """

    bos: int
    eos: int
    step: int | None = None


# Of every tokenizer.model that Meta released for Llama 1, Llama 2 and Code Llama.
META_MARKS = Marks(bos=1, eos=2)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a conversion was asked for that the checkpoint does not tell.

    Attributes:
        context: Tokens of context; None where nobody said, so that any number may stand there.
        chat: Whether it is a chat model; None where nobody said.
        tokenizer_class: What tokenizer_config.json names.
        class_is_known: Whether that was said, be it nothing.
        dtype: Name of the tensors' dtype; None where nobody said.
    """

    context: int | None
    chat: bool | None
    tokenizer_class: str | None
    class_is_known: bool
    dtype: str | None


def check_config(
    folder: Path,
    config: ModelConfig,
    *,
    dtype: str | None,
    marks: Marks,
    asked: Asked,
    problems: Problems,
) -> int | None:
    """Compare config.json with params.json and with the tensors, value by value.

    Args:
        folder: The output.
        config: The model, from the checkpoint.
        dtype: Name of the dtype of the tensors in the output; None where they have several.
        marks: The ids that begin and end a text.
        asked: What the conversion was asked for.
        problems: Gets what differs.

    Returns:
        The context length that should stand in it; None where nothing tells.
    """
    try:
        found = json_file(folder / "config.json")
    except VerifyError as problem:
        problems.add(str(problem))
        return asked.context
    context = found.get("max_position_embeddings")
    if asked.context is not None or type(context) is not int or context <= 0:
        context = asked.context
    expected: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": marks.bos,
        "eos_token_id": marks.eos,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": context,
        "model_type": "llama",
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }
    problems.add_differences("config.json", found, expected)
    return context


def check_generation_config(
    folder: Path, *, marks: Marks, asked: Asked, problems: Problems
) -> None:
    """Compare generation_config.json: where a text ends, and no sampling defaults.

    Args:
        folder: The output.
        marks: The ids that begin and end a text.
        asked: What the conversion was asked for.
        problems: Gets what differs.
    """
    try:
        found = json_file(folder / "generation_config.json")
    except VerifyError as problem:
        problems.add(str(problem))
        return
    chat = type(found.get("eos_token_id")) is list if asked.chat is None else asked.chat
    end = [marks.eos, marks.step] if chat and marks.step is not None else marks.eos
    expected = {"bos_token_id": marks.bos, "eos_token_id": end}
    problems.add_differences("generation_config.json", found, expected)
