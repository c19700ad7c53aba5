"""Own the table of tensor rules, and hold it against the ranks; know nothing of bytes.

One row of `RULES` states everything about a tensor: both names, its shape, the dimension that is
split over ranks, and whether its rows rotate. Nothing else in the package tests a tensor's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from codellama_convert.errors import LayoutError
from codellama_convert.formats.pth_reader import RankIndex
from codellama_convert.formats.stored_tensor import StoredTensor
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

_EMBEDDING = "tok_embeddings.weight"
_QUERY = "layers.0.attention.wq.weight"
_GATE = "layers.0.feed_forward.w1.weight"


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
        for rule, layer in _rules_in_order(config.num_hidden_layers)
    )


def _rules_in_order(n_layers: int) -> Iterator[tuple[Rule, int]]:
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


def measure(ranks: Sequence[RankIndex], *, hidden_size: int) -> tuple[int, int]:
    """Measure what params.json may leave out or get wrong, and the number of ranks.

    Args:
        ranks: All of them.
        hidden_size: From params.json.

    Returns:
        intermediate_size and vocab_size.

    Raises:
        LayoutError: If a tensor that tells it is missing or no matrix, or ranks are missing.
    """
    query, gate, embedding = (_matrix(ranks[0], name) for name in (_QUERY, _GATE, _EMBEDDING))
    if query.shape[1] == hidden_size and hidden_size % query.shape[0] == 0:
        n_expected = hidden_size // query.shape[0]
        if n_expected != len(ranks):
            hint = "move the files of another model away"
            if len(ranks) < n_expected:
                missing = range(len(ranks), n_expected)
                hint = "download " + ", ".join(f"consolidated.{n:02d}.pth" for n in missing[:8])
            ranks_expected = f"{n_expected} rank" if n_expected == 1 else f"{n_expected} ranks"
            raise LayoutError(
                f"tensor {_QUERY!r} has {query.shape[0]} rows, so the checkpoint has "
                f"{ranks_expected}, but {len(ranks)} were found",
                path=ranks[0].path,
                hint=hint,
            )
    return gate.shape[0] * len(ranks), embedding.shape[0]


def _matrix(rank: RankIndex, name: str) -> StoredTensor:
    tensor = rank.tensors.get(name)
    if tensor is None:
        raise _missing(rank, name)
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise LayoutError(
            f"tensor {name!r} has shape {tensor.shape}, not a matrix",
            path=rank.path,
            hint=SAME_FOLDER_HINT,
        )
    return tensor


def _missing(rank: RankIndex, name: str) -> LayoutError:
    return LayoutError(
        f"tensor {name!r} is missing",
        path=rank.path,
        hint=SAME_FOLDER_HINT,
    )


def require_layers(rank: RankIndex, n_layers: int) -> None:
    """Look that a rank has every tensor, before the table is spelled out for every layer.

    Args:
        rank: The first one.
        n_layers: From params.json, which may claim millions.

    Raises:
        LayoutError: If a tensor is missing.
    """
    for rule, layer in _rules_in_order(n_layers):
        name = rule.meta_name.format(layer=layer)
        if name not in rank.tensors:
            raise _missing(rank, name)


def check_ranks(layout: Sequence[TensorLayout], ranks: Sequence[RankIndex]) -> tuple[str, ...]:
    """Hold every tensor of every rank against the layout.

    Args:
        layout: What the model needs.
        ranks: What was found.

    Returns:
        The names that are dropped, as rank 0 has them.

    Raises:
        LayoutError: If a tensor is missing, extra, of another shape or of another dtype.
    """
    names = {tensor.meta_name for tensor in layout}
    for rank in ranks:
        for tensor in layout:
            _check_part(tensor, rank)
        unknown = [n for n in rank.tensors if n not in names and not n.endswith(DROPPED_SUFFIX)]
        if unknown:
            shape = rank.tensors[unknown[0]].shape
            raise LayoutError(
                f"tensor {unknown[0]!r} of shape {shape} is none that a Llama model has"
                + (f" (nor are {len(unknown) - 1} more)" if len(unknown) > 1 else ""),
                path=rank.path,
                hint="Llama 1, Llama 2 and Code Llama are supported",
            )
    dropped = tuple(name for name in ranks[0].tensors if name not in names)
    _compare_head_size(layout, ranks[0], dropped)
    return dropped


def _compare_head_size(
    layout: Sequence[TensorLayout], rank: RankIndex, dropped: Sequence[str]
) -> None:
    """Hold the heads against rope.freqs, which has one value a pair of a head's rows.

    Without grouped heads no other tensor's shape tells a wrong `n_heads`, and the rows would be
    reordered wrongly.
    """
    head_dim = next(tensor.head_dim for tensor in layout if tensor.head_dim is not None)
    for name in dropped:
        found, expected = rank.tensors[name].shape, (head_dim // 2,)
        if len(found) == 1 and found != expected:
            raise LayoutError(
                f"tensor {name!r} has shape {found}, expected {expected} for heads of {head_dim}",
                path=rank.path,
                hint=SAME_FOLDER_HINT,
            )


def _check_part(tensor: TensorLayout, rank: RankIndex) -> None:
    found = rank.tensors.get(tensor.meta_name)
    if found is None:
        raise _missing(rank, tensor.meta_name)
    if found.shape != tensor.part_shape:
        raise LayoutError(
            f"tensor {tensor.meta_name!r} has shape {found.shape}, expected {tensor.part_shape}",
            path=rank.path,
            hint=SAME_FOLDER_HINT,
        )
    if found.dtype != tensor.spec.dtype:
        raise LayoutError(
            f"tensor {tensor.meta_name!r} is {found.dtype.name}, but others are "
            f"{tensor.spec.dtype.name}",
            path=rank.path,
            hint="a checkpoint has one dtype",
        )
