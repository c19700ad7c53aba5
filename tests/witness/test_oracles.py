"""The tests' spelling of Meta's forward pass agrees with transformers, and sees wrong orders."""

from __future__ import annotations

import pytest
import torch

from tests.witness.checkpoints import (
    GQA,
    MHA,
    WIDE,
    Shape,
    State,
    expected_state_dict,
    half_split_rows,
    random_model,
)
from tests.witness.meta_forward import meta_logits

TOLERANCE = 1e-4  # logits are of order one; float32 sums of a few hundred terms
CLEARLY_WRONG = 0.05


def hf_logits(
    tensors: State, shape: Shape, tokens: torch.Tensor, rope_theta: float
) -> torch.Tensor:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.dim,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        rms_norm_eps=1e-5,
        rope_theta=rope_theta,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    assert list(model.state_dict()) == list(tensors)
    model.load_state_dict(tensors, strict=True)
    with torch.no_grad():
        return model(tokens[None]).logits[0]


def largest_difference(
    tensors: State, state: State, shape: Shape, *, hf_theta: float, meta_theta: float
) -> float:
    tokens = torch.randint(0, shape.vocab, (24,), generator=torch.Generator().manual_seed(5))
    wanted = meta_logits(state, shape, tokens, rope_theta=meta_theta)
    return (hf_logits(tensors, shape, tokens, hf_theta) - wanted).abs().max().item()


def without_reordering(state: State, tensors: State) -> State:
    """Meta's rotary rows as they are, under Hugging Face's names."""
    plain = dict(tensors)
    for i in range(sum(name.endswith("q_proj.weight") for name in tensors)):
        plain[f"model.layers.{i}.self_attn.q_proj.weight"] = state[
            f"layers.{i}.attention.wq.weight"
        ]
        plain[f"model.layers.{i}.self_attn.k_proj.weight"] = state[
            f"layers.{i}.attention.wk.weight"
        ]
    return plain


def with_the_inverse_reordering(state: State, tensors: State, shape: Shape) -> State:
    """Rotary rows sent to where the right reordering would fetch them from."""
    inverse = dict(without_reordering(state, tensors))
    for name, n_heads in (("q_proj", shape.n_heads), ("k_proj", shape.n_kv_heads)):
        rows = torch.tensor(half_split_rows(n_heads, shape.head_dim))
        for i in range(shape.n_layers):
            key = f"model.layers.{i}.self_attn.{name}.weight"
            moved = torch.empty_like(inverse[key])
            moved[rows] = inverse[key]
            inverse[key] = moved
    return inverse


@pytest.mark.transformers
@pytest.mark.parametrize("theta", [1e4, 1e6])
@pytest.mark.parametrize("shape", [MHA, GQA, WIDE], ids=["MHA", "GQA", "WIDE"])
def test_metas_formula_and_transformers_agree_on_the_expected_tensors(shape, theta):
    state = random_model(shape, torch.float32, seed=1)
    tensors = expected_state_dict(state, shape)
    difference = largest_difference(tensors, state, shape, hf_theta=theta, meta_theta=theta)
    assert difference < TOLERANCE


@pytest.mark.transformers
@pytest.mark.parametrize("theta", [1e4, 1e6])
@pytest.mark.parametrize("shape", [MHA, GQA, WIDE], ids=["MHA", "GQA", "WIDE"])
def test_wrong_reorderings_and_a_wrong_theta_are_told_apart(shape, theta):
    """Negative controls: without them an oracle that ignores rotations would pass too."""
    state = random_model(shape, torch.float32, seed=1)
    right = expected_state_dict(state, shape)
    for wrong in (
        without_reordering(state, right),
        with_the_inverse_reordering(state, right, shape),
    ):
        assert wrong.keys() == right.keys()
        assert (
            largest_difference(wrong, state, shape, hf_theta=theta, meta_theta=theta)
            > CLEARLY_WRONG
        )
    assert (
        largest_difference(right, state, shape, hf_theta=theta, meta_theta=theta * 10)
        > CLEARLY_WRONG
    )


def test_half_split_rows_are_written_out_for_two_heads_of_six():
    assert half_split_rows(2, 6) == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
