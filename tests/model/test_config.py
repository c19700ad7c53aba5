"""params.json and the released variants: what comes out is spelled here by hand, from FACTS."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from codellama_convert.errors import ConfigError
from codellama_convert.model.config import (
    ModelConfig,
    build_config,
    config_json,
    generation_config_json,
    parse_params,
)
from codellama_convert.model.recognise import VARIANTS, check_model_size, identify, read_folder_name
from codellama_convert.tensors import BFLOAT16

PATH = Path("params.json")
LLAMA_1_7B = b'{"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-06, "vocab_size": -1}'
LLAMA_1_13B = b'{"dim": 5120, "multiple_of": 256, "n_heads": 40, "n_layers": 40, "norm_eps": 1e-06, "vocab_size": -1}'
LLAMA_1_30B = b'{"dim": 6656, "multiple_of": 256, "n_heads": 52, "n_layers": 60, "norm_eps": 1e-06, "vocab_size": -1}'
LLAMA_1_65B = b'{"dim": 8192, "multiple_of": 256, "n_heads": 64, "n_layers": 80, "norm_eps": 1e-05, "vocab_size": -1}'
LLAMA_2_7B = b'{"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-05, "vocab_size": -1}\n'
LLAMA_2_13B = b'{"dim": 5120, "multiple_of": 256, "n_heads": 40, "n_layers": 40, "norm_eps": 1e-05, "vocab_size": -1}\n'
LLAMA_2_70B = b'{"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64, "n_kv_heads": 8, "n_layers": 80, "norm_eps": 1e-05, "vocab_size": -1}'
CODE_7B = b'{"dim": 4096, "n_layers": 32, "n_heads": 32, "multiple_of": 256, "ffn_dim_multiplier": 1.0, "norm_eps": 1e-5, "rope_theta": 1000000}'
CODE_13B = b'{"dim": 5120, "n_layers": 40, "n_heads": 40, "multiple_of": 256, "ffn_dim_multiplier": 1.0, "norm_eps": 1e-5, "rope_theta": 1000000}'
CODE_34B = b'{"dim": 8192, "n_layers": 48, "n_heads": 64, "n_kv_heads": 8, "multiple_of": 256, "ffn_dim_multiplier": 1.0, "norm_eps": 1e-5, "rope_theta": 1000000.0}'
CODE_70B = b'{"dim": 8192, "n_layers": 80, "n_heads": 64, "n_kv_heads": 8, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "norm_eps": 1e-5, "rope_theta": 1000000}'
CODE_70B_TUNED = CODE_70B.replace(b"1000000", b"10000")


def model(content: bytes, intermediate_size: int, vocab_size: int) -> ModelConfig:
    params, _ = parse_params(content, PATH)
    return build_config(
        params, intermediate_size=intermediate_size, vocab_size=vocab_size, path=PATH
    )


# content, feed-forward width, vocabulary, folder -> name, flavour, positions, rope_theta; every
# released model, and one that was renamed
RELEASED = [
    (LLAMA_1_7B, 11008, 32000, "7B", "Llama 7B", "base", 2048, 10000.0),
    (LLAMA_1_13B, 13824, 32000, "13B", "Llama 13B", "base", 2048, 10000.0),
    (LLAMA_1_30B, 17920, 32000, "30B", "Llama 30B", "base", 2048, 10000.0),
    (LLAMA_1_65B, 22016, 32000, "65B", "Llama 65B", "base", 2048, 10000.0),
    (LLAMA_2_7B, 11008, 32000, "llama-2-7b", "Llama 2 7B", "base", 4096, 10000.0),
    (LLAMA_2_7B, 11008, 32000, "Llama-2-7b-chat", "Llama 2 7B Chat", "chat", 4096, 10000.0),
    (LLAMA_2_13B, 13824, 32000, "llama-2-13b", "Llama 2 13B", "base", 4096, 10000.0),
    (LLAMA_2_13B, 13824, 32000, "llama-2-13b-chat", "Llama 2 13B Chat", "chat", 4096, 10000.0),
    (LLAMA_2_70B, 28672, 32000, "llama-2-70b", "Llama 2 70B", "base", 4096, 10000.0),
    (LLAMA_2_70B, 28672, 32000, "llama-2-70b-chat", "Llama 2 70B Chat", "chat", 4096, 10000.0),
    (CODE_7B, 11008, 32016, "CodeLlama-7b", "Code Llama 7B", "base", 16384, 1e6),
    (CODE_7B, 11008, 32016, "CodeLlama-7b-Instruct", "Code Llama 7B Instruct", "instruct", 16384, 1e6),
    (CODE_7B, 11008, 32000, "CodeLlama-7b-Python", "Code Llama 7B Python", "python", 16384, 1e6),
    (CODE_7B, 11008, 32000, "renamed", "Code Llama 7B Python", "python", 16384, 1e6),
    (CODE_13B, 13824, 32016, "CodeLlama-13b", "Code Llama 13B", "base", 16384, 1e6),
    (CODE_13B, 13824, 32016, "CodeLlama-13b-Instruct", "Code Llama 13B Instruct", "instruct", 16384, 1e6),
    (CODE_13B, 13824, 32000, "CodeLlama-13b-Python", "Code Llama 13B Python", "python", 16384, 1e6),
    (CODE_34B, 22016, 32000, "CodeLlama-34b", "Code Llama 34B", "base", 16384, 1e6),
    (CODE_34B, 22016, 32000, "CodeLlama-34b-Python", "Code Llama 34B Python", "python", 16384, 1e6),
    (CODE_34B, 22016, 32000, "CodeLlama-34b-Instruct", "Code Llama 34B Instruct", "instruct", 16384, 1e6),
    (CODE_70B, 28672, 32016, "CodeLlama-70b", "Code Llama 70B", "base", 16384, 1e6),
    (CODE_70B_TUNED, 28672, 32016, "CodeLlama-70b-Python", "Code Llama 70B Python", "python", 4096, 10000.0),
    (CODE_70B_TUNED, 28672, 32016, "CodeLlama-70b-Instruct", "Code Llama 70B Instruct", "instruct", 4096, 10000.0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "width", "vocab", "folder", "name", "flavor", "positions", "rope_theta"), RELEASED
)
def test_a_released_model_is_recognised_without_a_note(
    content, width, vocab, folder, name, flavor, positions, rope_theta
):
    config = model(content, width, vocab)
    found = identify(config, folder_name=folder)
    assert (found.name, found.flavor, found.max_position_embeddings) == (name, flavor, positions)
    assert found.notes == ()
    assert config.rope_theta == rope_theta


def test_every_row_of_the_table_is_spelled_here_too():
    assert {row[4] for row in RELEASED} == {variant.name for variant in VARIANTS}


def test_every_row_of_the_table_is_found_by_its_own_name():
    folders = {"Llama 1": "{size}", "Llama 2": "llama-2-{size}", "Code Llama": "CodeLlama-{size}"}
    for row in VARIANTS:
        folder = folders[row.family].format(size=row.size)
        folder += "" if row.flavor == "base" else f"-{row.flavor}"
        config = ModelConfig(
            row.shape.hidden_size, row.shape.intermediate_size, row.shape.num_hidden_layers,
            row.shape.num_attention_heads, row.shape.num_key_value_heads, row.norm_epsilons[0],
            row.rope_theta, row.vocab_size,
        )  # fmt: skip
        found = identify(config, folder_name=folder)
        assert found.name == row.name
        assert found.notes == ()
        assert row.source


def test_early_downloads_of_llama_2_7b_chat_are_told_of_the_corrected_epsilon():
    found = identify(model(LLAMA_1_7B, 11008, 32000), folder_name="llama-2-7b-chat")
    assert (found.name, found.max_position_embeddings) == ("Llama 2 7B Chat", 4096)
    assert len(found.notes) == 1
    assert "1e-06" in found.notes[0]
    assert "1e-05" in found.notes[0]


def test_what_fits_two_releases_of_another_context_is_a_note_and_an_option():
    config = model(LLAMA_1_7B, 11008, 32000)
    found = identify(config, folder_name="renamed")
    assert found.max_position_embeddings == 2048
    assert "--max_position_embeddings" in found.notes[1]
    told = identify(config, folder_name="renamed", max_position_embeddings=3000, flavor="base")
    assert told.max_position_embeddings == 3000
    assert told.notes == ()


def test_a_renamed_model_that_may_be_one_for_dialogue_is_a_note_and_an_option():
    """Nothing in the weights tells Instruct from base; a chat template was left out in silence."""
    config = model(CODE_7B, 11008, 32016)
    (note,) = identify(config, folder_name="ckpt").notes
    assert "Code Llama 7B or Code Llama 7B Instruct" in note
    assert "no chat template" in note
    assert "--variant" in note
    for flavor in ("base", "instruct"):
        assert identify(config, folder_name="ckpt", flavor=flavor).notes == ()


@pytest.mark.parametrize(
    ("folder", "flavor", "said"),
    [
        ("ckpt", "python", "python was asked for"),
        ("CodeLlama-7b", "chat", "chat was asked for"),
        ("CodeLlama-7b-Python", None, "the folder's name says python"),
    ],
)
def test_a_variant_that_the_weights_contradict_is_a_note(folder, flavor, said):
    found = identify(model(CODE_7B, 11008, 32016), folder_name=folder, flavor=flavor)
    (note,) = found.notes
    assert note == (f"{said}, but the weights are those of Code Llama 7B or Code Llama 7B Instruct")
    assert identify(model(CODE_7B, 11008, 32000), folder_name=folder, flavor="python").notes == ()


@pytest.mark.parametrize(
    ("rope_theta", "folder", "positions"),
    [(1e6, "tiny", 16384), (1e4, "tiny", 2048), (1e4, "my-llama-2-tiny", 4096)],
)
def test_a_model_that_was_never_released_gets_a_note(rope_theta, folder, positions):
    config = ModelConfig(64, 176, 2, 8, 4, 1e-5, rope_theta, 320)
    found = identify(config, folder_name=folder)
    assert found.max_position_embeddings == positions
    assert len(found.notes) == 1
    assert "--max_position_embeddings" in found.notes[0]


def test_a_folder_named_after_another_family_is_a_note():
    found = identify(model(LLAMA_2_7B, 11008, 32000), folder_name="CodeLlama-7b")
    assert found.max_position_embeddings == 4096
    assert "Code Llama" in found.notes[0]


@pytest.mark.parametrize(
    ("name", "family", "flavor"),
    [
        ("CodeLlama-7b-Instruct", "Code Llama", "instruct"),
        ("code_llama_13b_python", "Code Llama", "python"),
        ("llama-2-70b", "Llama 2", "base"),
        ("Llama2-7b-chat", "Llama 2", "chat"),
        ("13B", "Llama 1", "base"),
        ("llama-2b-sized", None, None),
        ("checkpoint", None, None),
    ],
)
def test_a_folders_name_is_read(name, family, flavor):
    assert read_folder_name(name) == (family, flavor)


def test_the_model_size_is_held_against_the_number_of_files():
    tiny = ModelConfig(64, 176, 2, 8, 4, 1e-5, 1e6, 320)
    with pytest.raises(ConfigError, match=r"13B has 2 .*but the checkpoint has 1"):
        check_model_size("13B", tiny, 1)
    note = check_model_size("7B", tiny, 1)
    assert note is not None
    assert "64" in note
    assert "4096" in note
    assert check_model_size("7B", model(CODE_7B, 11008, 32016), 1) is None
    assert check_model_size("70Bf", model(LLAMA_2_70B, 28672, 32000), 8) is None


def test_params_may_lie_below_model_and_unknown_keys_are_noted():
    inner = json.loads(CODE_7B) | {"dropout": 3, "max_seq_len": 2048}
    params, notes = parse_params(json.dumps({"model": inner, "lr": 1}).encode(), PATH)
    assert params.dim == 4096
    assert notes == ("params.json: ignored 'dropout'",)


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


def test_params_that_contradict_the_tensors_are_refused():
    model(CODE_7B, 11008, 32016)
    with pytest.raises(ConfigError, match=r"11008.*11264"):
        model(CODE_7B, 11264, 32016)
    with pytest.raises(ConfigError, match=r"32000.*32016"):
        model(CODE_7B.replace(b'"dim"', b'"vocab_size": 32000, "dim"'), 11008, 32016)
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


def test_config_json_is_what_both_versions_of_transformers_read():
    config = model(CODE_34B, 22016, 32000)
    written = json.loads(
        config_json(
            config, dtype=BFLOAT16, max_position_embeddings=16384, bos_token_id=3, eos_token_id=4
        )
    )
    assert written == {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 3,
        "eos_token_id": 4,
        "hidden_act": "silu",
        "hidden_size": 8192,
        "initializer_range": 0.02,
        "intermediate_size": 22016,
        "max_position_embeddings": 16384,
        "model_type": "llama",
        "num_attention_heads": 64,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 32000,
    }
    for stop_token_ids, end in (((4,), 4), ((2, 32015), [2, 32015])):
        content = generation_config_json(bos_token_id=3, stop_token_ids=stop_token_ids)
        assert json.loads(content) == {"bos_token_id": 3, "eos_token_id": end}


@pytest.mark.transformers
def test_transformers_reads_the_config(tmp_path):
    from transformers import AutoConfig, GenerationConfig

    config = model(CODE_7B, 11008, 32016)
    content = config_json(
        config, dtype=BFLOAT16, max_position_embeddings=16384, bos_token_id=1, eos_token_id=2
    )
    (tmp_path / "config.json").write_bytes(content)
    generation = generation_config_json(bos_token_id=1, stop_token_ids=(2,))
    (tmp_path / "generation_config.json").write_bytes(generation)
    read = AutoConfig.from_pretrained(tmp_path)
    theta = getattr(read, "rope_theta", None) or read.rope_parameters["rope_theta"]
    assert theta == 1e6
    assert read.max_position_embeddings == 16384
    assert str(getattr(read, "dtype", None) or read.torch_dtype) == "torch.bfloat16"
    generation = GenerationConfig.from_pretrained(tmp_path)
    assert (generation.bos_token_id, generation.eos_token_id) == (1, 2)
    assert not generation.do_sample
