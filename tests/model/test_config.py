"""params.json: what is read of it, and what is refused."""

from __future__ import annotations

import json

import pytest

from codellama_convert.errors import ConfigError
from codellama_convert.model.config import parse_params
from codellama_convert.model.lagging import lagging_notes
from tests.model.params import CODE_7B, CODE_34B, PATH, model


def test_params_may_lie_below_model_and_unknown_keys_are_noted():
    inner = json.loads(CODE_7B) | {"dropout": 3, "max_seq_len": 2048}
    params, notes = parse_params(json.dumps({"model": inner, "lr": 1}).encode(), PATH)
    assert params.dim == 4096
    assert notes == (
        "params.json: ignored 'dropout'",
        "params.json: ignored 'lr' beside 'model'",
    )


def test_what_lies_beside_model_is_read_too():
    """It was never looked at: a model of scaled frequencies was converted without a word."""
    inner = json.loads(CODE_7B)

    def parse(**outer):
        return parse_params(json.dumps({"model": inner} | outer).encode(), PATH)

    for outer in ({"rope_scaling": {"factor": 4}}, {"sliding_window": 4096}, {"moe": {"n": 8}}):
        (key,) = outer
        with pytest.raises(ConfigError, match=f"has '{key}': "):
            parse(**outer)
    assert parse(rope_scaling=None, sliding_window=0, max_batch_size=4)[1] == ()
    with pytest.raises(ConfigError, match=r"has 'rope_theta': 10000 beside 'model', and 1000000 "):
        parse(rope_theta=10000)
    with pytest.raises(
        ConfigError, match=r"has 'n_kv_heads': 8 beside 'model', and no 'n_kv_heads' "
    ):
        parse(n_kv_heads=8)
    params, notes = parse(rope_theta=1e6, n_kv_heads=None, epoch=2, data={"seed": 3})
    assert params == parse_params(CODE_7B, PATH)[0]
    assert notes == ("params.json: ignored 'data', 'epoch' beside 'model'",)


@pytest.mark.parametrize(
    ("key", "value", "family"),
    [
        ("use_scaled_rope", True, "Llama 3.1 and later"),
        ("rope_scaling_factor", 8.0, "Llama 4"),
        ("rope_freq_scale", 0.25, "the supported models do not have"),
        ("rope_freq_scale", 0, "the supported models do not have"),
        ("rope_scaling", {"type": "linear", "factor": 4}, "the supported models do not have"),
        ("rope_parameters", {"rope_theta": 1e6}, "the supported models do not have"),
        ("Rope_Theta", 1e6, "the supported models do not have"),
        ("xpos_rope", "yes", "the supported models do not have"),
        ("sliding_window", 4096, "Mistral"),
        ("sliding_window", -1, "Mistral"),
        ("moe", {"num_experts": 8, "num_experts_per_tok": 2}, "Mixtral"),
        ("num_experts", 8, "mixtures of experts"),
        ("num_experts_per_tok", 1, "mixtures of experts"),
        ("moe_args", {"num_experts": 16}, "Llama 4"),
        ("use_qk_norm", True, "Llama 4"),
        ("nope_layer_interval", 4, "Llama 4"),
        ("attention_chunk_size", 8192, "Llama 4"),
        ("vision_args", {"image_size": {"height": 336}}, "Llama 4"),
        ("vision_chunk_size", 448, "Llama 3.2 Vision"),
        ("vision_num_cross_attention_layers", 8, "Llama 3.2 Vision"),
        ("quantization_args", {"group_size": 32}, "quantized Llama 3.2"),
        ("lora_args", {"rank": 16}, "quantized Llama 3.2"),
    ],
)
def test_a_key_that_changes_the_model_is_refused_by_name(key, value, family):
    """All but the first were a note, and the output loaded and computed something else."""
    given = json.loads(CODE_7B)
    parse_params(json.dumps(given).encode(), PATH)
    for said in (given | {key: value}, {"model": given | {key: value}}):
        with pytest.raises(ConfigError) as caught:
            parse_params(json.dumps(said).encode(), PATH)
        assert f"has {key!r}: {value!r}"[:50] in str(caught.value)
        assert family in str(caught.value)
        assert "Llama 1, Llama 2 and Code Llama are supported" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, nothing) for key in ("rope_scaling", "sliding_window", "vision_args", "moe")
          for nothing in (None, False, {}, [], "", 0)),
        ("use_scaled_rope", False),
        ("rope_freq_scale", 1.0),
        ("rope_scaling_factor", 1),
        ("rope_freq_scale", None),
        ("num_experts", 0),
    ],
)  # fmt: skip
def test_a_key_that_says_nothing_of_another_model_is_no_more_than_that(key, value):
    params, notes = parse_params(json.dumps(json.loads(CODE_7B) | {key: value}).encode(), PATH)
    assert params == parse_params(CODE_7B, PATH)[0]
    assert notes == ()


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"{", "not JSON"),
        (b"[1]", "object"),
        (b"{}", "'dim'"),
        (CODE_7B.replace(b"4096", b"-4096"), "'dim'"),
        (CODE_7B.replace(b"4096", b"true"), "'dim'"),
        (CODE_7B.replace(b"4096", b"4096.0"), "'dim'"),
        (CODE_7B.replace(b"4096", b"1" * 5000), ""),
        (CODE_7B.replace(b"4096", b"99999999999"), "'dim'"),
        (CODE_7B.replace(b"1e-5", b"NaN"), "not JSON"),
        (CODE_7B.replace(b"1e-5", b"1e999"), "'norm_eps'"),
        (CODE_7B.replace(b"1e-5", b'"x"'), "'norm_eps'"),
        (CODE_7B.replace(b'"n_layers"', b'"dim"'), "twice"),
        (CODE_7B.replace(b'"dim"', b'"use_scaled_rope": true, "dim"'), "Llama 3.1"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
    ],
)
def test_params_that_are_no_numbers_are_refused_in_one_line(content, fact):
    with pytest.raises(ConfigError) as caught:
        parse_params(content, PATH)
    assert fact in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_params_that_lag_behind_the_tensors_are_a_note():
    """They were refused, though the tensors leave no doubt."""

    def notes(content, intermediate_size=11008, vocab_size=32016):
        params, _ = parse_params(content, PATH)
        return lagging_notes(params, intermediate_size=intermediate_size, vocab_size=vocab_size)

    assert notes(CODE_7B) == ()
    (note,) = notes(CODE_7B, intermediate_size=11264)
    assert "give a feed-forward width of 11008; taken is the tensors' 11264" in note
    (note,) = notes(CODE_7B.replace(b'"dim"', b'"vocab_size": 32000, "dim"'))
    assert "vocab_size is 32000; taken are the embedding's 32016 rows" in note
    assert notes(CODE_7B.replace(b'"dim"', b'"vocab_size": 32016, "dim"')) == ()


def test_heads_that_do_not_divide_the_width_are_refused():
    model(CODE_7B, 11008, 32016)
    with pytest.raises(ConfigError, match=r"n_heads"):
        model(CODE_7B.replace(b'"n_heads": 32', b'"n_heads": 33'), 11008, 32016)
    with pytest.raises(ConfigError, match=r"n_kv_heads"):
        model(CODE_34B.replace(b'"n_kv_heads": 8', b'"n_kv_heads": 7'), 22016, 32000)


def test_a_head_has_so_many_rows_at_most():
    """A head is the least that is held in memory; 128 in every release."""
    wide = {"dim": 2048, "n_layers": 1, "n_heads": 2, "norm_eps": 1e-5}
    assert model(json.dumps(wide).encode(), 5632, 32000).head_dim == 1024
    wider = json.dumps(wide | {"dim": 2052}).encode()
    with pytest.raises(
        ConfigError, match=r"dim 2052 over n_heads 2 gives heads of 1026, more than 1024"
    ):
        model(wider, 5632, 32000)
