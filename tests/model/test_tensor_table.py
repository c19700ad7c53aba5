"""The table spelled out for one model, over several ranks: which part each of them holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from codellama_convert.errors import LayoutError
from codellama_convert.model.config import ModelConfig
from codellama_convert.model.tensor_table import RULES, Part, build_layout, meta_name_of
from codellama_convert.tensors import BFLOAT16
from tests.refusals import refused
from tests.witness.checkpoints import Shape, meta_shapes

# Four heads of two rows, two of them for keys and values.
SHAPE = Shape(dim=8, n_layers=1, n_heads=4, n_kv_heads=2, hidden=12, vocab=6)
CONFIG = ModelConfig(
    hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, rms_norm_eps=1e-5, rope_theta=1e4, vocab_size=6,
)  # fmt: skip
SAME_FOLDER = "same model directory"  # what to do


@pytest.mark.parametrize(
    ("sizes", "n_ranks", "fact"),
    [
        ({}, 4, "2 key and value heads"),
        ({"hidden_size": 9}, 2, "9 hidden_size"),
        ({"intermediate_size": 13}, 2, "13 intermediate_size"),
        ({"vocab_size": 7}, 2, "7 vocab_size"),
    ],
)
def test_what_cannot_be_split_is_named(sizes: dict[str, int], n_ranks: int, fact: str) -> None:
    assert len(build_layout(CONFIG, n_ranks=2, dtype=BFLOAT16)) == len(meta_shapes(SHAPE))
    with refused(LayoutError, f"{fact} cannot", f"{n_ranks} ranks", SAME_FOLDER):
        build_layout(replace(CONFIG, **sizes), n_ranks=n_ranks, dtype=BFLOAT16)


# --- parts ----------------------------------------------------------------------------------------


def parts_of(meta_name: str, n_ranks: int) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    layout = build_layout(CONFIG, n_ranks=n_ranks, dtype=BFLOAT16)
    (tensor,) = [t for t in layout if t.meta_name == meta_name]
    return tensor.parts, tensor.sources


def test_ranks_split_the_rows_the_columns_or_hold_copies() -> None:
    """Four modules decided this for themselves; the table's answer is spelled here by hand."""
    rows = (Part(0, range(6), range(8)), Part(1, range(6, 12), range(8)))
    assert parts_of("layers.0.feed_forward.w1.weight", 2) == (rows, rows)
    columns = (Part(0, range(8), range(6)), Part(1, range(8), range(6, 12)))
    assert parts_of("layers.0.feed_forward.w2.weight", 2) == (columns, columns)
    copies = (Part(0, range(8), range(1)), Part(1, range(8), range(1)))
    assert parts_of("norm.weight", 2) == (copies, copies[:1])


@pytest.mark.parametrize("name", meta_shapes(SHAPE))
@pytest.mark.parametrize("n_ranks", [1, 2])
def test_the_sources_hold_every_element_once(name: str, n_ranks: int) -> None:
    n_rows, n_columns = (*meta_shapes(SHAPE)[name], 1)[:2]
    parts, sources = parts_of(name, n_ranks)
    assert [part.rank for part in parts] == list(range(n_ranks))
    held = [(row, column) for part in sources for row in part.rows for column in part.columns]
    assert sorted(held) == [(row, column) for row in range(n_rows) for column in range(n_columns)]


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
