"""Own the check of config.json and generation_config.json: every key, its type and its value.

What they should hold is spelled here a second time, so that a mistake of the writer is seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from codellama_convert.model.config import ModelConfig
from codellama_convert.verify.report import Problems, check_json


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


def check_config(
    folder: Path,
    config: ModelConfig,
    *,
    dtype: str,
    context: int,
    marks: Marks,
    problems: Problems,
) -> None:
    """Compare config.json with params.json and with the tensors, value by value.

    Args:
        folder: The output.
        config: The model, from the checkpoint.
        dtype: Name of the dtype of the tensors in the output.
        context: Tokens of context.
        marks: The ids that begin and end a text.
        problems: Gets what differs.
    """
    expected = {
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
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }
    check_json(folder / "config.json", expected, problems)


def check_generation_config(folder: Path, *, marks: Marks, chat: bool, problems: Problems) -> None:
    """Compare generation_config.json: where a text ends, and no sampling defaults.

    Args:
        folder: The output.
        marks: The ids that begin and end a text.
        chat: Whether it is a chat model.
        problems: Gets what differs.
    """
    end = [marks.eos, marks.step] if chat and marks.step is not None else marks.eos
    expected = {"bos_token_id": marks.bos, "eos_token_id": end}
    check_json(folder / "generation_config.json", expected, problems)
