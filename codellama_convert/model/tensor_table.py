"""Own the table of a model's tensors.

One row of `RULES` states everything about a tensor: both names, its shape, the dimension that is
split over ranks, whether its rows are rotary, and what a checkpoint is measured by. Nothing else in the
package tests a tensor's name, and nothing else asks which dimension is split: `Placement.parts` says
which rows and columns each rank holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from codellama_convert.errors import LayoutError
from codellama_convert.model.config import ModelConfig
from codellama_convert.model.generations import LLAMA_2, LLAMA_3, Generation
from codellama_convert.model.placement import Placement, in_one_file
from codellama_convert.tensors import Dtype, TensorSpec

Dimension = Literal["vocab_size", "hidden_size", "intermediate_size", "key_value_size"]
Role = Literal["embedding", "query", "gate", "head"]


@dataclass(frozen=True, slots=True)
class Rule:
    """Everything about one kind of tensor.

    Attributes:
        meta_name: Meta's name; "{layer}" stands for the layer's number.
        hf_name: Hugging Face's name.
        shape: The whole tensor's shape, as properties of `ModelConfig`.
        tp_dim: The dimension that is split over ranks; None where every rank has a copy.
        rotary: Whether its rows are rotary, to be reordered head by head.
        role: What code may ask for it by, instead of its name; None if nothing asks for it.
    """

    meta_name: str
    hf_name: str
    shape: tuple[Dimension, ...]
    tp_dim: int | None
    rotary: bool = False
    role: Role | None = None


# Names: meta-llama/codellama llama/model.py; transformers modeling_llama.py. Split dimensions:
# fairscale nn/model_parallel/layers.py (ColumnParallelLinear: 0; RowParallelLinear and
# ParallelEmbedding: 1). The order is that of Hugging Face's state dict.
RULES: tuple[Rule, ...] = (
    Rule("tok_embeddings.weight", "model.embed_tokens.weight", ("vocab_size", "hidden_size"), 1, role="embedding"),
    Rule("layers.{layer}.attention.wq.weight", "model.layers.{layer}.self_attn.q_proj.weight", ("hidden_size", "hidden_size"), 0, rotary=True, role="query"),
    Rule("layers.{layer}.attention.wk.weight", "model.layers.{layer}.self_attn.k_proj.weight", ("key_value_size", "hidden_size"), 0, rotary=True),
    Rule("layers.{layer}.attention.wv.weight", "model.layers.{layer}.self_attn.v_proj.weight", ("key_value_size", "hidden_size"), 0),
    Rule("layers.{layer}.attention.wo.weight", "model.layers.{layer}.self_attn.o_proj.weight", ("hidden_size", "hidden_size"), 1),
    Rule("layers.{layer}.feed_forward.w1.weight", "model.layers.{layer}.mlp.gate_proj.weight", ("intermediate_size", "hidden_size"), 0, role="gate"),
    Rule("layers.{layer}.feed_forward.w3.weight", "model.layers.{layer}.mlp.up_proj.weight", ("intermediate_size", "hidden_size"), 0),
    Rule("layers.{layer}.feed_forward.w2.weight", "model.layers.{layer}.mlp.down_proj.weight", ("hidden_size", "intermediate_size"), 1),
    Rule("layers.{layer}.attention_norm.weight", "model.layers.{layer}.input_layernorm.weight", ("hidden_size",), None),
    Rule("layers.{layer}.ffn_norm.weight", "model.layers.{layer}.post_attention_layernorm.weight", ("hidden_size",), None),
    Rule("norm.weight", "model.norm.weight", ("hidden_size",), None),
    Rule("output.weight", "lm_head.weight", ("vocab_size", "hidden_size"), 0, role="head"),
)  # fmt: skip

# meta-llama/llama-models models/llama3/model.py: its VocabParallelEmbedding splits rows.
RULES_OF_LLAMA_3: tuple[Rule, ...] = tuple(
    replace(rule, tp_dim=0) if rule.role == "embedding" else rule for rule in RULES
)
_RULES_OF = {LLAMA_2: RULES, LLAMA_3: RULES_OF_LLAMA_3}

# The rotary frequencies follow from rope_theta, and Hugging Face computes them: dropped. Llama 1 7B
# has them in every layer, later releases at the top, some not at all.
DROPPED_SUFFIX = "rope.freqs"

MERGE_HINT = "merge the ranks into one consolidated.00.pth with the program that split them"
_HEADS_HINT = (
    "if each rank has a copy of a head, merge the ranks into one consolidated.00.pth with the program "
    "that split them; if not, n_kv_heads in params.json is wrong"
)
_ROWS_HINT = (
    "such ranks have different sizes, or are padded: merge them into one consolidated.00.pth with the "
    "program that split them"
)


# The order in a rank of Llama 2 70B (datascience.stackexchange.com, question 126942): it changes a
# file's bytes, but nothing that is read from it.
FREQUENCIES_NAME = "rope.freqs"
_META_ORDER = (
    "tok_embeddings.weight", "norm.weight", "output.weight", FREQUENCIES_NAME,
    "layers.{layer}.attention.wq.weight", "layers.{layer}.attention.wk.weight",
    "layers.{layer}.attention.wv.weight", "layers.{layer}.attention.wo.weight",
    "layers.{layer}.feed_forward.w1.weight", "layers.{layer}.feed_forward.w2.weight",
    "layers.{layer}.feed_forward.w3.weight", "layers.{layer}.attention_norm.weight",
    "layers.{layer}.ffn_norm.weight",
)  # fmt: skip


def names_in_meta_order(n_layers: int) -> Iterator[str]:
    """Yield the names of a rank's tensors in Meta's order.

    Args:
        n_layers: Of the model.

    Yields:
        Meta's names, the rotary frequencies among them.
    """
    in_layers = [name for name in _META_ORDER if "{layer}" in name]
    yield from (name for name in _META_ORDER if name not in in_layers)
    yield from (name.format(layer=layer) for layer in range(n_layers) for name in in_layers)


def meta_name_of(role: Role) -> str:
    """Name the tensor that has a role, in Meta's spelling; in layers, that of the first one."""
    return next(rule.meta_name.format(layer=0) for rule in RULES if rule.role == role)


def hf_name_of(role: Role) -> str:
    """Name the tensor that has a role, in Hugging Face's spelling; in layers, that of the first."""
    return next(rule.hf_name.format(layer=0) for rule in RULES if rule.role == role)


def key_value_names(n_layers: int) -> Iterator[str]:
    """Yield Meta's names of the tensors whose rows are key and value heads, layer by layer."""
    names = [rule.meta_name for rule in RULES if "key_value_size" in rule.shape]
    yield from (name.format(layer=layer) for layer in range(n_layers) for name in names)


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """One tensor of a model, on both sides.

    Attributes:
        spec: Hugging Face's name, the ranks' dtype and the whole shape.
        meta: Where the ranks have it.
        head_dim: Rows of a head where the rows are rotary, or None.
    """

    spec: TensorSpec
    meta: Placement
    head_dim: int | None

    @property
    def hugging_face(self) -> Placement:
        """Where it is in Hugging Face's order: whole, in one file."""
        return in_one_file(self.spec.name, self.spec.shape)


def build_layout(
    config: ModelConfig,
    *,
    n_ranks: int,
    dtype: Dtype,
    path: Path | None = None,
    with_head: bool = False,
    head_copies: int = 1,
) -> tuple[TensorLayout, ...]:
    """Spell the table out for one model.

    Args:
        config: The model.
        n_ranks: Over how many ranks it is split.
        dtype: Of the ranks' tensors.
        path: The ranks' folder, for messages.
        with_head: Whether a tied head has its row too, as Meta's loaders need it.
        head_copies: How many neighbouring ranks hold the same key and value heads.

    Returns:
        One layout a tensor, in the order of Hugging Face's state dict.

    Raises:
        LayoutError: If the model cannot be split over that many ranks.
    """
    _refuse_uneven_split(config, n_ranks, path, head_copies)
    tied = config.tie_word_embeddings and not with_head
    layouts = []
    rules = rules_in_order(config.num_hidden_layers, tied=tied, generation=config.generation)
    for rule, layer in rules:
        shape = tuple(getattr(config, dimension) for dimension in rule.shape)
        step = head_copies if "key_value_size" in rule.shape else 1
        layouts.append(
            TensorLayout(
                spec=TensorSpec(rule.hf_name.format(layer=layer), dtype, shape),
                meta=Placement(
                    rule.meta_name.format(layer=layer),
                    shape,
                    range(0, n_ranks, step),
                    rule.tp_dim,
                    interleaved=True,
                ),
                head_dim=config.head_dim if rule.rotary else None,
            )
        )
    return tuple(layouts)


def rules_in_order(
    n_layers: int, *, tied: bool = False, generation: Generation = LLAMA_2
) -> Iterator[tuple[Rule, int]]:
    """Yield the rows of the table, those of a layer once for each layer.

    Args:
        n_layers: Of the model.
        tied: Whether the head is the embedding, and has no row of its own.
        generation: Whose table is taken; all tables have the same names in the same order.

    Yields:
        A row, and the layer's number.
    """
    rules = _RULES_OF[generation]
    in_layers = [rule for rule in rules if "{layer}" in rule.meta_name]
    first = rules.index(in_layers[0])
    yield from ((rule, 0) for rule in rules[:first])
    yield from ((rule, layer) for layer in range(n_layers) for rule in in_layers)
    behind = rules[first + len(in_layers) :]
    yield from ((rule, 0) for rule in behind if not (tied and rule.role == "head"))


def _refuse_uneven_split(
    config: ModelConfig, n_ranks: int, path: Path | None, head_copies: int
) -> None:
    """Refuse sizes that Meta's code could not split over that many ranks, each with its own hint."""
    rows = (
        [] if config.tie_word_embeddings else [("rows of the head", config.vocab_size, _ROWS_HINT)]
    )
    for what, size, hint in (
        ("key and value heads", config.num_key_value_heads * head_copies, _HEADS_HINT),
        ("columns of the hidden_size", config.hidden_size, MERGE_HINT),
        ("rows of the feed-forward network", config.intermediate_size, MERGE_HINT),
        *rows,
    ):
        if size % n_ranks:
            raise LayoutError(
                f"{size} {what} cannot be split evenly over {n_ranks} ranks", path=path, hint=hint
            )
