"""params.json is written so that Meta's code builds the model: the fewest keys, and the true width."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace

import pytest

from codellama_convert.errors import ConfigError
from codellama_convert.model.config import ModelConfig, build_config, parse_params
from codellama_convert.model.generations import LLAMA_2, LLAMA_3
from codellama_convert.model.params_json import feed_forward_rule, params_json
from codellama_convert.model.releases import RELEASES
from tests.model import params
from tests.model.params import PATH, model
from tests.refusals import refused


def width(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """Spell Meta's formula a second time (meta-llama/codellama llama/model.py, FeedForward)."""
    hidden = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        hidden = int(multiplier * hidden)
    return multiple_of * ((hidden + multiple_of - 1) // multiple_of)


@pytest.mark.parametrize(
    ("text", "intermediate_size"),
    [
        (params.LLAMA_1_7B, 11008),
        (params.LLAMA_1_13B, 13824),
        (params.LLAMA_1_30B, 17920),
        (params.LLAMA_1_65B, 22016),
        (params.LLAMA_2_7B, 11008),
        (params.LLAMA_2_13B, 13824),
        (params.LLAMA_2_70B, 28672),
    ],
)
def test_a_release_has_its_own_text(text, intermediate_size):
    config = model(text, intermediate_size, 32000)
    assert params_json(config) == text
    assert params_json(replace(config, tie_word_embeddings=True)) == text
    assert params_json(replace(config, vocab_size=32001)) != text


def test_the_text_of_llama_2_7b_has_the_published_md5():
    text = params_json(model(params.LLAMA_2_7B, 11008, 32000))
    digest = hashlib.md5(text, usedforsecurity=False).hexdigest()
    assert digest == "9a3757de7196d1840b551a85b82efbc8"


@pytest.mark.parametrize(
    ("text", "intermediate_size", "md5"),
    [
        (params.LLAMA_3_1_8B, 14336, "b1fa8bedb515f79e326bd31609e75f8c"),
        (params.LLAMA_3_1_70B, 28672, "0956af3a2c289b9d3005f4bc559d6bb8"),
        (params.LLAMA_3_2_3B, 8192, None),
    ],
)
def test_a_llama_3_release_has_the_text_whose_sum_is_published(text, intermediate_size, md5):
    config = model(text, intermediate_size, 128256)
    assert params_json(config) == text
    digest = hashlib.md5(text, usedforsecurity=False).hexdigest()
    git = hashlib.sha1(b"blob %d\0" % len(text) + text, usedforsecurity=False).hexdigest()
    assert digest == md5 or git == "3bf279893fb57e49e10bf879dd0adbcff5dab286"


def test_llama_3_has_all_keys_of_its_releases_and_3_0_not_the_one_that_its_code_does_not_know():
    scaled = model(params.LLAMA_3_2_1B, 8192, 128256)
    assert json.loads(params_json(scaled)) == {
        "dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256,
        "multiple_of": 8192, "norm_eps": 1e-05, "rope_theta": 500000.0, "use_scaled_rope": True,
    }  # fmt: skip
    plain = json.loads(params_json(model(params.LLAMA_3_8B, 14336, 128256)))
    assert list(plain) == [
        "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of",
        "ffn_dim_multiplier", "norm_eps", "rope_theta",
    ]  # fmt: skip
    assert plain["rope_theta"] == 500000.0


def test_the_early_llama_2_7b_chat_keeps_its_epsilon():
    """Its numbers are those of Llama 1 7B; Llama 2's text has the corrected epsilon."""
    config = replace(model(params.LLAMA_2_7B, 11008, 32000), rms_norm_eps=1e-6)
    assert params_json(config) == params.LLAMA_1_7B


@pytest.mark.parametrize(
    ("text", "intermediate_size", "vocab_size", "wanted"),
    [
        (params.CODE_7B, 11008, 32016, '"n_heads": 32, "n_layers": 32, "norm_eps": 1e-05, "rope_theta": 1000000, "vocab_size": 32016}'),
        (params.CODE_7B, 11008, 32000, '"n_heads": 32, "n_layers": 32, "norm_eps": 1e-05, "rope_theta": 1000000, "vocab_size": 32000}'),
        (params.CODE_13B, 13824, 32016, '"n_heads": 40, "n_layers": 40, "norm_eps": 1e-05, "rope_theta": 1000000, "vocab_size": 32016}'),
        (params.CODE_34B, 22016, 32000, '"n_heads": 64, "n_kv_heads": 8, "n_layers": 48, "norm_eps": 1e-05, "rope_theta": 1000000, "vocab_size": 32000}'),
        (params.CODE_70B, 28672, 32016, '"ffn_dim_multiplier": 1.3, "n_heads": 64, "n_kv_heads": 8, "n_layers": 80, "norm_eps": 1e-05, "rope_theta": 1000000, "vocab_size": 32016}'),
        (params.CODE_70B_TUNED, 28672, 32016, '"ffn_dim_multiplier": 1.3, "n_heads": 64, "n_kv_heads": 8, "n_layers": 80, "norm_eps": 1e-05, "vocab_size": 32016}'),
    ],
)  # fmt: skip
def test_code_llama_has_metas_numbers_and_its_true_vocabulary(
    text, intermediate_size, vocab_size, wanted
):
    """Meta's files leave vocab_size out, and readers take that for 32000."""
    config = model(text, intermediate_size, vocab_size)
    multiple_of = 4096 if intermediate_size == 28672 else 256
    dim = config.hidden_size
    assert params_json(config).decode() == (
        f'{{"dim": {dim}, "multiple_of": {multiple_of}, {wanted}\n'
    )


def test_every_released_model_reads_back():
    for release in RELEASES:
        shape = release.shape
        for epsilon in release.norm_epsilons:
            config = ModelConfig(
                shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers,
                shape.num_attention_heads, shape.num_key_value_heads, epsilon,
                release.rope_theta, release.vocab_size,
                scaled_rope=release.rope_scaling_factor is not None,
                generation=LLAMA_3 if release.vocab_size == 128256 else LLAMA_2,
            )  # fmt: skip
            assert read_back(params_json(config), config.vocab_size) == config, release.name


def read_back(text: bytes, vocab_size: int) -> ModelConfig:
    found, notes = parse_params(text, PATH)
    assert notes == ()
    measured = width(found.dim, found.multiple_of, found.ffn_dim_multiplier)
    return build_config(found, intermediate_size=measured, vocab_size=vocab_size, path=PATH)


def test_any_width_at_any_size_reads_back_to_the_same_model():
    """Odd widths need a multiplier of many digits, some of them the next number above the ratio."""
    chance = random.Random(17)
    for _ in range(20_000):
        head_dim = 2 * chance.randint(1, 64)
        n_heads = chance.randint(1, 96)
        dim = head_dim * n_heads
        config = ModelConfig(
            hidden_size=dim,
            intermediate_size=chance.randint(1, 5 * dim),
            num_hidden_layers=chance.randint(1, 99),
            num_attention_heads=n_heads,
            num_key_value_heads=chance.choice([n for n in range(1, n_heads + 1) if n_heads % n == 0]),
            rms_norm_eps=chance.choice([1e-6, 1e-5, 0.00123]),
            rope_theta=chance.choice([1e4, 1e6, 5e5, 1234.5]),
            vocab_size=chance.randint(1, 200_000),
        )  # fmt: skip
        if config.vocab_size >= 128000:  # Llama 3's
            config = replace(config, generation=LLAMA_3)
        text = params_json(config)
        assert read_back(text, config.vocab_size) == config
        said = json.loads(text)
        assert said["vocab_size"] == config.vocab_size
        is_third = config.generation == LLAMA_3
        assert ("n_kv_heads" in said) == (is_third or config.num_key_value_heads != n_heads)
        assert ("rope_theta" in said) == (is_third or config.rope_theta != 1e4)
        assert "use_scaled_rope" not in said


@pytest.mark.parametrize(
    ("dim", "intermediate_size", "multiple_of", "multiplier"),
    [
        (4096, 11008, 256, None),
        (8192, 28672, 4096, 1.3),
        (4096, 14336, 2048, 1.3),  # Llama 3 8B and Mistral 7B
        (288, 768, 256, None),  # stories15M
        (64, 172, 4, None),  # stories260K: 170 rounded up
        (2048, 5632, 256, None),  # TinyLlama
        (4096, 16384, 16384, None),
    ],
)
def test_the_rule_is_the_one_that_a_person_would_write(
    dim, intermediate_size, multiple_of, multiplier
):
    assert feed_forward_rule(dim, intermediate_size) == (multiple_of, multiplier)
    assert width(dim, multiple_of, multiplier) == intermediate_size


def test_a_width_that_the_formula_cannot_give_is_refused():
    """Above 2**53 a floating-point product skips whole numbers."""
    with refused(ConfigError, "intermediate_size 9007199254740993", "hidden_size 4096"):
        feed_forward_rule(4096, 2**53 + 1)
    assert feed_forward_rule(4096, 2**53) == (2**53, None)
