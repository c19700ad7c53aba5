"""Own the check of config.json and generation_config.json: every key, its type and its value.

What they should hold is spelled here a second time, so that a mistake of the writer is seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from codellama_convert.model.config import ModelConfig
from codellama_convert.model.generations import LLAMA_3
from codellama_convert.verify.report import Problems, check_json


@dataclass(frozen=True, slots=True)
class Marks:
    """The ids that begin and end a text.

    Attributes:
        bos: Begins a text.
        eos: Ends one.
        step: Ends an answer too, in Code Llama 70B Instruct; None where there is no such piece.
        others: End a text too, in Llama 3.
    """

    bos: int
    eos: int
    step: int | None = None
    others: tuple[int, ...] = ()


# Of every tokenizer.model that Meta released for Llama 1, Llama 2 and Code Llama.
META_MARKS = Marks(bos=1, eos=2)
_LLAMA_3_TOKENS, _LLAMA_3_ROWS = 128000, 128256


def marks_without_tokenizer(vocab_size: int, flavor: str | None, *, scaled: bool) -> Marks:
    """Say which ids begin and end a text, by the vocabulary; Llama 3.1 and later is scaled."""
    if vocab_size < _LLAMA_3_ROWS:
        return META_MARKS
    return marks_of_llama_3(_LLAMA_3_TOKENS, flavor, scaled=scaled)


def marks_of_llama_3(n_tokens: int, flavor: str | None, *, scaled: bool) -> Marks:
    """Say which ids begin and end a text: the special tokens behind those of the file."""
    eom, eot = n_tokens + 8, n_tokens + 9
    others: dict[tuple[str | None, bool], tuple[int, ...]] = {
        ("instruct", False): (eot,), ("chat", False): (eot,),
        ("instruct", True): (eom, eot), ("chat", True): (eom, eot), ("guard", True): (eom, eot),
    }  # fmt: skip
    return Marks(n_tokens, n_tokens + 1, others=others.get((flavor, scaled), ()))


def check_config(
    folder: Path,
    config: ModelConfig,
    *,
    dtype: str,
    context: int,
    factor: float | None,
    marks: Marks,
    problems: Problems,
) -> None:
    """Compare config.json with params.json and with the tensors, value by value.

    Args:
        folder: The output.
        config: The model, from the checkpoint.
        dtype: Name of the dtype of the tensors in the output.
        context: Tokens of context.
        factor: By which the rotary frequencies are scaled; None where they are not.
        marks: The ids that begin and end a text.
        problems: Gets what differs.
    """
    scaling = {
        "factor": factor, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    }  # fmt: skip
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": marks.bos,
        "eos_token_id": [marks.eos, *marks.others] if marks.others else marks.eos,
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
        "rope_scaling": None if factor is None else scaling,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }
    if config.generation == LLAMA_3:
        expected["transformers_version"] = "4.43.0"
    check_json(folder / "config.json", expected, problems)


def check_generation_config(folder: Path, *, marks: Marks, chat: bool, problems: Problems) -> None:
    """Compare generation_config.json: where a text ends, and no sampling defaults.

    Args:
        folder: The output.
        marks: The ids that begin and end a text.
        chat: Whether it is a chat model.
        problems: Gets what differs.
    """
    others = (*marks.others, *((marks.step,) if chat and marks.step is not None else ()))
    end = [marks.eos, *others] if others else marks.eos
    expected = {"bos_token_id": marks.bos, "eos_token_id": end}
    check_json(folder / "generation_config.json", expected, problems)
