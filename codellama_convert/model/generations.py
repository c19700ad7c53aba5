"""Own what Meta's code of a generation takes for granted, and its files do not say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Generation:
    """The models that one program of Meta's runs.

    Attributes:
        name: As people call them.
        rope_theta: Base of the rotary frequencies where params.json says none.
        has_frequencies: Whether its ranks hold `rope.freqs`.
    """

    name: str
    rope_theta: float
    has_frequencies: bool


# meta-llama/codellama llama/model.py, ModelArgs; the ranks: its released files.
LLAMA_2 = Generation("Llama 1, Llama 2 and Code Llama", 10000.0, has_frequencies=True)
# meta-llama/llama-models models/llama3/args.py; its loader refuses a `rope.freqs`.
LLAMA_3 = Generation("Llama 3", 500000.0, has_frequencies=False)

LLAMA_3_PIECES = 128000  # of its tokenizer.model, without the special ones


def generation_of(*, scaled_rope: bool, rope_theta: float | None, vocab_size: int) -> Generation:
    """Tell the generation of a model by what is known of it on either side.

    Args:
        scaled_rope: Whether its rotary frequencies are scaled; only Llama 3.1 and later has such.
        rope_theta: Their base; None where nothing is said.
        vocab_size: Rows of the embedding.
    """
    has_its_theta = rope_theta == LLAMA_3.rope_theta
    is_third = scaled_rope or has_its_theta or vocab_size >= LLAMA_3_PIECES
    return LLAMA_3 if is_third else LLAMA_2
