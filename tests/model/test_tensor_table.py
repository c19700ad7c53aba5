"""The table spelled out for one model, over several ranks: which part each of them holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from codellama_convert.errors import LayoutError
from codellama_convert.model.config import ModelConfig
from codellama_convert.model.tensor_table import RULES, build_layout, meta_name_of
from codellama_convert.tensors import BFLOAT16
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
