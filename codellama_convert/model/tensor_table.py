"""Own the table of a model's tensors.

One row of `RULES` states everything about a tensor: both names, its shape, the dimension that is
split over ranks, and whether its rows rotate. Nothing else in the package tests a tensor's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from codellama_convert.errors import LayoutError
from codellama_convert.model.config import SAME_FOLDER_HINT, ModelConfig
from codellama_convert.tensors import Dtype, TensorSpec

Dimension = Literal["vocab_size", "hidden_size", "intermediate_size", "key_value_size"]


@dataclass(frozen=True, slots=True)
class Rule:
    """Everything about one kind of tensor.

    Attributes:
        meta_name: Meta's name; "{layer}" stands for the layer's number.
        hf_name: Hugging Face's name.
        shape: The whole tensor's shape, as properties of `ModelConfig`.
        tp_dim: The dimension that is split over ranks; None where every rank has a copy.
        rotary: Whether its rows are rotary, to be reordered head by head.
    """

    meta_name: str
    hf_name: str
    shape: tuple[Dimension, ...]
    tp_dim: int | None
    rotary: bool = False


# Names: meta-llama/codellama llama/model.py; transformers modeling_llama.py. Split dimensions:
# fairscale nn/model_parallel/layers.py (ColumnParallelLinear: 0; RowParallelLinear and
# ParallelEmbedding: 1). The order is that of Hugging Face's state dict.
RULES: tuple[Rule, ...] = (
    Rule("tok_embeddings.weight", "model.embed_tokens.weight", ("vocab_size", "hidden_size"), 1),
    Rule("layers.{layer}.attention.wq.weight", "model.layers.{layer}.self_attn.q_proj.weight", ("hidden_size", "hidden_size"), 0, rotary=True),
    Rule("layers.{layer}.attention.wk.weight", "model.layers.{layer}.self_attn.k_proj.weight", ("key_value_size", "hidden_size"), 0, rotary=True),
    Rule("layers.{layer}.attention.wv.weight", "model.layers.{layer}.self_attn.v_proj.weight", ("key_value_size", "hidden_size"), 0),
    Rule("layers.{layer}.attention.wo.weight", "model.layers.{layer}.self_attn.o_proj.weight", ("hidden_size", "hidden_size"), 1),
    Rule("layers.{layer}.feed_forward.w1.weight", "model.layers.{layer}.mlp.gate_proj.weight", ("intermediate_size", "hidden_size"), 0),
    Rule("layers.{layer}.feed_forward.w3.weight", "model.layers.{layer}.mlp.up_proj.weight", ("intermediate_size", "hidden_size"), 0),
    Rule("layers.{layer}.feed_forward.w2.weight", "model.layers.{layer}.mlp.down_proj.weight", ("hidden_size", "intermediate_size"), 1),
    Rule("layers.{layer}.attention_norm.weight", "model.layers.{layer}.input_layernorm.weight", ("hidden_size",), None),
    Rule("layers.{layer}.ffn_norm.weight", "model.layers.{layer}.post_attention_layernorm.weight", ("hidden_size",), None),
    Rule("norm.weight", "model.norm.weight", ("hidden_size",), None),
    Rule("output.weight", "lm_head.weight", ("vocab_size", "hidden_size"), 0),
)  # fmt: skip

# The rotary frequencies follow from rope_theta, and Hugging Face computes them: dropped. Llama 1 7B
# has them in every layer, later releases at the top, some not at all.
DROPPED_SUFFIX = "rope.freqs"


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """Where one output tensor comes from.

    Attributes:
        spec: Hugging Face's name, the ranks' dtype and the whole shape.
        meta_name: Its name in every rank.
        tp_dim: The dimension that is split over ranks, or None.
        head_dim: Rows of a head where the rows are rotary, or None.
        n_ranks: How many ranks hold a part (or a copy) of it.
    """

    spec: TensorSpec
    meta_name: str
    tp_dim: int | None
    head_dim: int | None
    n_ranks: int

    @property
    def part_shape(self) -> tuple[int, ...]:
        """The shape that each rank holds."""
        return tuple(
            size // self.n_ranks if dimension == self.tp_dim else size
            for dimension, size in enumerate(self.spec.shape)
        )


def build_layout(config: ModelConfig, *, n_ranks: int, dtype: Dtype) -> tuple[TensorLayout, ...]:
    """Spell the table out for one model.

    Args:
        config: The model.
        n_ranks: Over how many ranks it is split.
        dtype: Of the ranks' tensors.

    Returns:
        One layout a tensor, in the order of Hugging Face's state dict.

    Raises:
        LayoutError: If the model cannot be split over that many ranks.
    """
    _refuse_uneven_split(config, n_ranks)
    return tuple(
        TensorLayout(
            spec=TensorSpec(
                rule.hf_name.format(layer=layer),
                dtype,
                tuple(getattr(config, dimension) for dimension in rule.shape),
            ),
            meta_name=rule.meta_name.format(layer=layer),
            tp_dim=rule.tp_dim,
            head_dim=config.head_dim if rule.rotary else None,
            n_ranks=n_ranks,
        )
        for rule, layer in rules_in_order(config.num_hidden_layers)
    )


def rules_in_order(n_layers: int) -> Iterator[tuple[Rule, int]]:
    """Repeat the layers' rows once a layer, where they stand in the table."""
    in_layers = [rule for rule in RULES if "{layer}" in rule.meta_name]
    first = RULES.index(in_layers[0])
    yield from ((rule, 0) for rule in RULES[:first])
    yield from ((rule, layer) for layer in range(n_layers) for rule in in_layers)
    yield from ((rule, 0) for rule in RULES[first + len(in_layers) :])


def _refuse_uneven_split(config: ModelConfig, n_ranks: int) -> None:
    for what, size in (
        ("key and value heads", config.num_key_value_heads),
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
        ("vocab_size", config.vocab_size),
    ):
        if size % n_ranks:
            raise LayoutError(
                f"{size} {what} cannot be split over {n_ranks} ranks",
                hint=SAME_FOLDER_HINT,
            )
