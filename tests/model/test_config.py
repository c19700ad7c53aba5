"""params.json: what is read of it, and what is refused."""

from __future__ import annotations

import json

import pytest

from codellama_convert.errors import ConfigError
from codellama_convert.model.config import parse_params
from codellama_convert.model.lagging import lagging_notes
from tests.model import params as releases
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
    with pytest.raises(ConfigError, match=r"has 'rope_theta': 10000 beside 'model', but 1000000 "):
        parse(rope_theta=10000)
    with pytest.raises(
        ConfigError, match=r"has 'n_kv_heads': 8 beside 'model', but no 'n_kv_heads' "
    ):
        parse(n_kv_heads=8)
    params, notes = parse(rope_theta=1e6, n_kv_heads=None, epoch=2, data={"seed": 3})
    assert params == parse_params(CODE_7B, PATH)[0]
    assert notes == ("params.json: ignored 'data', 'epoch' beside 'model'",)


@pytest.mark.parametrize(
    ("key", "value", "family"),
    [
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
        ("quantization_args", {"group_size": 32}, "quantised Llama 3.2"),
        ("lora_args", {"rank": 16}, "quantised Llama 3.2"),
        ("llama_4_scaling", {"beta": 0.1}, "Mistral"),
        ("kv_lora_rank", 512, "DeepSeek"),
        ("q_lora_rank", 1536, "DeepSeek"),
        *(
            (key, value, "the supported models do not have")
            for key, value in (
                ("yarn", {"factor": 16}),
                ("pos_scaling", 4.0),
                ("sliding_window_size", 4096),
                ("window_size", 512),
                ("qk_norm", True),
                ("use_qk_norms", True),
                ("attn_temperature_tuning", True),
                ("attention_temperature", 0.1),
                ("quantization", {"qformat_weight": "fp8_e4m3"}),
                ("is_quantized", True),
                ("lora", {"rank": 64}),
                ("use_qlora", True),
                ("moe_every", 2),
                ("has_vision", True),
                ("norm_type", "layernorm"),
                ("activation", "gelu"),
                ("causal", False),
                ("causal", 0),
            )
        ),
    ],
)
def test_a_key_that_changes_the_model_is_refused_by_name(key, value, family):
    """They were a note, and the output loaded and computed something else."""
    given = json.loads(CODE_7B)
    parse_params(json.dumps(given).encode(), PATH)
    for said in (given | {key: value}, {"model": given | {key: value}}):
        with pytest.raises(ConfigError) as caught:
            parse_params(json.dumps(said).encode(), PATH)
        assert f"has {key!r}: {value!r}"[:50] in str(caught.value)
        assert family in str(caught.value)
        assert "Llama 1, Llama 2, Code Llama and Llama 3 to 3.3 (text) are supported" in str(
            caught.value
        )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, nothing) for key in ("rope_scaling", "sliding_window", "vision_args", "moe")
          for nothing in (None, False, {}, [], "", 0)),
        ("rope_freq_scale", 1.0),
        ("rope_scaling_factor", 1),
        ("rope_freq_scale", None),
        ("num_experts", 0),
        *((key, nothing)
          for key in ("yarn", "llama_4_scaling", "sliding_window_size", "window_size", "qk_norm",
                      "attn_temperature_tuning", "q_lora_rank", "quantization", "lora", "norm_type",
                      "head_dim", "softmax_scale")
          for nothing in (None, False, {}, [], "", 0)),
        ("norm_type", "RMSNorm"),
        ("activation", "silu"),
        ("causal", True),
        ("causal", None),
        ("head_dim", 128),
        ("softmax_scale", 0.08838834764831845),
        ("tied_embeddings", False),
        ("tie_word_embeddings", None),
    ],
)  # fmt: skip
def test_a_key_that_says_nothing_of_another_model_is_no_more_than_that(key, value):
    params, notes = parse_params(json.dumps(json.loads(CODE_7B) | {key: value}).encode(), PATH)
    assert params == parse_params(CODE_7B, PATH)[0]
    assert notes == ()


@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        ("head_dim", 96, "128"),
        ("head_dim", "128", "128"),
        ("head_dim", 10**30, "128"),
        ("head_dim", True, "128"),
        ("head_dim", -128, "128"),
        ("softmax_scale", 0.1, "0.0883883"),
    ],
)
def test_heads_of_another_size_or_scale_are_refused(key, value, right):
    """They were ignored: dim 4096 over 32 heads is 128."""
    given = json.loads(CODE_7B)
    for said in (given | {key: value}, {"model": given, key: value}):
        with pytest.raises(ConfigError, match=f"has '{key}': {value!r}, but dim 4096 ") as caught:
            parse_params(json.dumps(said).encode(), PATH)
        assert f"over n_heads 32 gives {right}" in str(caught.value)


@pytest.mark.parametrize(
    "key",
    ["revision", "temperature", "exploration", "max_position_embeddings", "head", "supervision"],
)
def test_a_key_that_sounds_like_another_models_is_a_note(key):
    params, notes = parse_params(json.dumps(json.loads(CODE_7B) | {key: 7}).encode(), PATH)
    assert params == parse_params(CODE_7B, PATH)[0]
    assert notes == (f"params.json: ignored {key!r}",)


@pytest.mark.parametrize(
    "name", [name for name in vars(releases) if name.isupper() and name != "PATH"]
)
def test_the_releases_say_nothing_of_another_model(name):
    assert parse_params(getattr(releases, name), PATH)[1] == ()


@pytest.mark.parametrize("key", ["tied_embeddings", "tie_word_embeddings"])
def test_a_head_that_is_tied_in_params_json_alone_is_a_note(key):
    """It was ignored: the tensors are right, as they are about every other number."""
    params, notes = parse_params(json.dumps(json.loads(CODE_7B) | {key: True}).encode(), PATH)
    assert notes == ()
    (note,) = lagging_notes(params, intermediate_size=11008, vocab_size=32016, tied=False)
    assert note == (
        "params.json: the head is the embedding; output.weight differs from it, and is written"
    )
    assert lagging_notes(params, intermediate_size=11008, vocab_size=32016, tied=True) == ()


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
        (
            CODE_7B.replace(b'"dim"', b'"use_scaled_rope": "yes", "dim"'),
            "'use_scaled_rope' is 'yes'",
        ),
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
        return lagging_notes(
            params, intermediate_size=intermediate_size, vocab_size=vocab_size, tied=False
        )

    assert notes(CODE_7B) == ()
    (note,) = notes(CODE_7B, intermediate_size=11264)
    assert "give a feed-forward width of 11008; the tensors' 11264 is used" in note
    (note,) = notes(CODE_7B.replace(b'"dim"', b'"vocab_size": 32000, "dim"'))
    assert "vocab_size is 32000; the embedding's 32016 rows are used" in note
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
