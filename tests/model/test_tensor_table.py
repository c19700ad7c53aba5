"""The table spelled out for one model, over several ranks: which part each of them holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from codellama_convert.errors import LayoutError
from codellama_convert.model.config import ModelConfig
from codellama_convert.model.generations import LLAMA_2, LLAMA_3
from codellama_convert.model.tensor_table import (
    RULES,
    build_layout,
    hf_name_of,
    key_value_names,
    meta_name_of,
    names_in_meta_order,
)
from codellama_convert.tensors import BFLOAT16, TensorSpec
from tests.refusals import refused
from tests.witness.checkpoints import Shape, meta_shapes

# Four heads of two rows, two of them for keys and values.
SHAPE = Shape(dim=8, n_layers=1, n_heads=4, n_kv_heads=2, hidden=12, vocab=6)
CONFIG = ModelConfig(
    hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, rms_norm_eps=1e-5, rope_theta=1e4, vocab_size=6,
)  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "n_ranks", "fact"),
    [
        ({}, 4, "2 key and value heads"),
        ({"hidden_size": 9}, 2, "9 columns of the hidden_size"),
        ({"intermediate_size": 13}, 2, "13 rows of the feed-forward network"),
        ({"vocab_size": 7}, 2, "7 rows of the head"),
    ],
)
def test_what_cannot_be_split_is_named(sizes: dict[str, int], n_ranks: int, fact: str) -> None:
    assert len(build_layout(CONFIG, n_ranks=2, dtype=BFLOAT16)) == len(meta_shapes(SHAPE))
    with refused(LayoutError, f"{fact} cannot", f"{n_ranks} ranks", "one consolidated.00.pth"):
        build_layout(replace(CONFIG, **sizes), n_ranks=n_ranks, dtype=BFLOAT16)


def test_each_role_is_that_of_one_tensor() -> None:
    assert meta_name_of("embedding") == "tok_embeddings.weight"
    assert meta_name_of("query") == "layers.0.attention.wq.weight"
    assert meta_name_of("gate") == "layers.0.feed_forward.w1.weight"
    assert meta_name_of("head") == "output.weight"
    assert sorted(rule.role for rule in RULES if rule.role) == [
        "embedding",
        "gate",
        "head",
        "query",
    ]
    assert hf_name_of("embedding") == "model.embed_tokens.weight"
    assert hf_name_of("query") == "model.layers.0.self_attn.q_proj.weight"
    assert hf_name_of("head") == "lm_head.weight"


def test_metas_order_is_that_of_a_rank_of_llama_2() -> None:
    names = [*names_in_meta_order(2)]
    assert names[:5] == [
        "tok_embeddings.weight",
        "norm.weight",
        "output.weight",
        "rope.freqs",
        "layers.0.attention.wq.weight",
    ]
    assert names[12:14] == ["layers.0.ffn_norm.weight", "layers.1.attention.wq.weight"]
    assert len(names) == len(set(names)) == 4 + 2 * 9


def test_keys_and_values_are_named_layer_by_layer() -> None:
    assert [*key_value_names(2)] == [
        "layers.0.attention.wk.weight",
        "layers.0.attention.wv.weight",
        "layers.1.attention.wk.weight",
        "layers.1.attention.wv.weight",
    ]


def test_where_two_ranks_hold_one_head_the_first_of_them_is_read() -> None:
    """Of Llama 3.1 405B in 16 ranks; all other tensors are split over all of them."""
    sizes = replace(CONFIG, vocab_size=8)
    layout = build_layout(sizes, n_ranks=4, dtype=BFLOAT16, head_copies=2)
    read = {tensor.meta.name: [*tensor.meta.files] for tensor in layout}
    of_heads = {"layers.0.attention.wk.weight", "layers.0.attention.wv.weight"}
    assert {name for name, files in read.items() if files == [0, 2]} == of_heads
    assert {name for name, files in read.items() if files == [0, 1, 2, 3]} == set(read) - of_heads
    alone = build_layout(sizes, n_ranks=2, dtype=BFLOAT16)
    assert all([*tensor.meta.files] == [0, 1] for tensor in alone)


def test_llama_3_splits_the_rows_of_the_embedding() -> None:
    splits = {
        generation: build_layout(replace(CONFIG, generation=generation), n_ranks=2, dtype=BFLOAT16)[
            0
        ].meta.split
        for generation in (LLAMA_2, LLAMA_3)
    }
    assert splits == {LLAMA_2: 1, LLAMA_3: 0}


def test_a_tied_head_has_no_row_unless_it_is_asked_for() -> None:
    tied = replace(CONFIG, tie_word_embeddings=True)
    for with_head, n_tensors in ((False, 11), (True, 12)):
        layout = build_layout(tied, n_ranks=2, dtype=BFLOAT16, with_head=with_head)
        assert len(layout) == n_tensors
        assert any(tensor.meta.name == "output.weight" for tensor in layout) is with_head
    assert len(build_layout(tied, n_ranks=2, dtype=BFLOAT16)) == 11


def test_metas_side_is_interleaved_and_hugging_faces_is_not() -> None:
    """By this difference rotary rows are reordered: were the sides alike, none would be."""
    for tensor in build_layout(CONFIG, n_ranks=2, dtype=BFLOAT16):
        assert tensor.meta.interleaved is True
        assert tensor.hugging_face.interleaved is False


def test_an_uneven_split_is_reported_for_the_ranks_folder() -> None:
    """The message begins with the folder, or with the fact where no folder is known."""
    fact = "2 key and value heads cannot be split evenly over 4 ranks"
    for path, line in ((Path("ranks"), f"ranks: {fact}"), (None, fact)):
        with pytest.raises(LayoutError) as caught:
            build_layout(CONFIG, n_ranks=4, dtype=BFLOAT16, path=path)
        assert caught.value.path == path
        assert str(caught.value).startswith(line)


def test_a_tied_head_is_not_split() -> None:
    """Its rows are the embedding's, whose columns the ranks share: seven rows suit two ranks.

    All other sizes are still checked, and seven rows of a head of its own are refused.
    """
    odd = replace(CONFIG, vocab_size=7)
    tied = replace(odd, tie_word_embeddings=True)
    assert build_layout(tied, n_ranks=2, dtype=BFLOAT16)[0].meta.part_shape == (7, 4)
    with refused(LayoutError, "7 rows of the head"):
        build_layout(odd, n_ranks=2, dtype=BFLOAT16)
    with refused(LayoutError, "13 rows of the feed-forward network"):
        build_layout(replace(tied, intermediate_size=13), n_ranks=2, dtype=BFLOAT16)


def test_both_sides_of_a_tensor_are_spelled_out() -> None:
    """Of the queries and the values of the second layer; only the queries' rows are rotary."""
    layout = build_layout(replace(CONFIG, num_hidden_layers=2), n_ranks=2, dtype=BFLOAT16)
    of = {tensor.meta.name: tensor for tensor in layout}
    query, value = of["layers.1.attention.wq.weight"], of["layers.1.attention.wv.weight"]
    assert query.spec == TensorSpec("model.layers.1.self_attn.q_proj.weight", BFLOAT16, (8, 8))
    assert value.spec == TensorSpec("model.layers.1.self_attn.v_proj.weight", BFLOAT16, (4, 8))
    assert (query.head_dim, value.head_dim) == (2, None)
