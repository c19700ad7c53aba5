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


def generation_of(*, scaled_rope: bool, vocab_size: int, has_tiktoken: bool = False) -> Generation:
    """Find the generation of a model from what is known of it on either side.

    The base of the frequencies does not decide: some trained Llama 2 further with that of Llama 3.

    Args:
        scaled_rope: Whether its rotary frequencies are scaled; only Llama 3.1 and later has such.
        vocab_size: Rows of the embedding.
        has_tiktoken: Whether its tokenizer.model is of Llama 3's kind; its vocabulary may be small.
    """
    is_third = scaled_rope or has_tiktoken or vocab_size >= LLAMA_3_PIECES
    return LLAMA_3 if is_third else LLAMA_2
