"""Own what Llama 3's ranks may hold twice: the embedding as the head, and key and value heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from codellama_convert.formats.pth.reader import RankIndex
from codellama_convert.model.config import ModelConfig
from codellama_convert.model.generations import LLAMA_3
from codellama_convert.model.tensor_table import key_value_names, meta_name_of

# Llama 3.1 405B: 8 key and value heads; of 16 ranks, each pair holds one.
_PAIRED_RANKS = 16


def head_equals_embedding(ranks: Sequence[RankIndex]) -> bool:
    """Report whether every rank has the same bits as its head and as its embedding."""
    head, embedding = meta_name_of("head"), meta_name_of("embedding")
    return all(
        head in rank.tensors
        and _may_be_equal(rank, embedding, rank, head)
        # What is dropped must be equal, and not only have an equal sum.
        and _are_read_as_equal(rank, embedding, rank, head)
        for rank in ranks
    )


@dataclass(frozen=True, slots=True)
class HeldHeads:
    """The key and value heads of a model, each once.

    Attributes:
        config: The model.
        copies: How many neighbouring ranks hold the same ones.
        notes: What the user should know.
    """

    config: ModelConfig
    copies: int = 1
    notes: tuple[str, ...] = ()


def distinct_heads(config: ModelConfig, ranks: Sequence[RankIndex]) -> HeldHeads:
    """Count heads of which each is in two ranks once.

    Meta's program repeats heads where there are more ranks than heads; params.json then says the
    number with copies, unless somebody corrected it.

    Args:
        config: The model, as params.json says it.
        ranks: All of them; only of the first it is known that it has every tensor.

    Returns:
        The model as it is written. Heads that are not the same in pairs of ranks are all kept.

    Source:
        meta-llama/llama-models models/checkpoint.py, `reshard_mp`.
    """
    if not _may_hold_pairs(config, ranks):
        return HeldHeads(config)
    n_ranks, unequal = len(ranks), _first_unequal_pair(config, ranks)
    if unequal is None:
        note = (
            f"{n_ranks} ranks hold {n_ranks // 2} key and value heads, each twice: the copies are "
            "equal, and written once"
        )
        return HeldHeads(replace(config, num_key_value_heads=n_ranks // 2), 2, (note,))
    note = (
        f"tensor {unequal!r} is not the same in pairs of ranks: all {n_ranks} key and value heads "
        "are written"
    )
    return HeldHeads(replace(config, num_key_value_heads=n_ranks), 1, (note,))


def _may_hold_pairs(config: ModelConfig, ranks: Sequence[RankIndex]) -> bool:
    """Report whether the shapes are those of ranks of which two hold the same head."""
    key = ranks[0].tensors[next(key_value_names(1))]
    return (
        config.generation == LLAMA_3
        and len(ranks) == _PAIRED_RANKS
        and config.num_key_value_heads in (_PAIRED_RANKS, _PAIRED_RANKS // 2)
        and key.shape == (config.head_dim, config.hidden_size)
    )


def _first_unequal_pair(config: ModelConfig, ranks: Sequence[RankIndex]) -> str | None:
    """Compare the heads of neighbouring ranks, by their CRC-32 where the ranks have one.

    Reading them would take minutes; the sums are those that the conversion checks.
    """
    for name in key_value_names(config.num_hidden_layers):
        for one, other in zip(ranks[::2], ranks[1::2], strict=True):
            if not _are_equal(one, other, name):
                return name
    return None


def _are_equal(one: RankIndex, other: RankIndex, name: str) -> bool:
    if name not in one.tensors or name not in other.tensors:
        return False
    if not _may_be_equal(one, name, other, name):
        return False
    return one.tensors[name].crc is not None or _are_read_as_equal(one, name, other, name)


def _may_be_equal(one: RankIndex, name: str, other: RankIndex, other_name: str) -> bool:
    """Report whether two tensors have one shape and dtype, and no sums that differ."""
    first, second = one.tensors[name], other.tensors[other_name]
    return (first.shape, first.dtype) == (second.shape, second.dtype) and (
        None in (first.crc, second.crc) or first.crc == second.crc
    )


def _are_read_as_equal(one: RankIndex, name: str, other: RankIndex, other_name: str) -> bool:
    # Planning does without numpy, unless such tensors have to be read.
    from codellama_convert.formats.same_tensor import same_bits  # noqa: PLC0415

    return same_bits(one, name, other, other_name)
