"""Own what the tensors prove wrong of params.json, which tools copy from model to model."""

from __future__ import annotations

from codellama_convert.model.config import MetaParams


def lagging_notes(
    params: MetaParams, *, intermediate_size: int, vocab_size: int, tied: bool
) -> tuple[str, ...]:
    """Say what of params.json the tensors prove wrong; the tensors are right.

    Args:
        params: What params.json says.
        intermediate_size: Rows of w1 over all ranks.
        vocab_size: Rows of the embedding.
        tied: Whether the head is the embedding.

    Returns:
        A note on each; empty where they agree.
    """
    notes = []
    width = params.feed_forward_width()
    if width != intermediate_size:
        why = (
            f"multiple_of {params.multiple_of} and ffn_dim_multiplier {params.ffn_dim_multiplier} "
            f"give a feed-forward width of {width}"
            if params.hidden_dim is None
            else f"hidden_dim is {width}"
        )
        notes.append(f"params.json: {why}; the tensors' {intermediate_size} is used")
    if params.vocab_size not in (None, vocab_size):
        notes.append(
            f"params.json: vocab_size is {params.vocab_size}; the embedding's "
            f"{vocab_size} rows are used"
        )
    if params.tie_word_embeddings and not tied:
        notes.append(
            "params.json: the head is the embedding; output.weight differs from it, and is written"
        )
    return tuple(notes)
