"""Recognising a release: what comes out is spelled here by hand, from FACTS."""

from __future__ import annotations

from dataclasses import replace

import pytest

from codellama_convert.model.config import ModelConfig
from codellama_convert.model.recognise import check_model_size, recognise
from codellama_convert.model.releases import RELEASES
from tests.model.params import (
    CODE_7B,
    CODE_13B,
    CODE_34B,
    CODE_70B,
    CODE_70B_TUNED,
    LLAMA_1_7B,
    LLAMA_1_13B,
    LLAMA_1_30B,
    LLAMA_1_65B,
    LLAMA_2_7B,
    LLAMA_2_13B,
    LLAMA_2_70B,
    LLAMA_3_1_8B,
    LLAMA_3_1_70B,
    LLAMA_3_1_405B,
    LLAMA_3_2_1B,
    LLAMA_3_2_3B,
    LLAMA_3_8B,
    LLAMA_3_70B,
    model,
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

# content, feed-forward width, folder as Meta's programs and the hub name it -> name, flavour,
# positions, factor of the rotary scaling, names of the special tokens
RELEASED_3 = [
    (LLAMA_3_8B, 14336, "Meta-Llama-3-8B", "Llama 3 8B", "base", 8192, None, "3"),
    (LLAMA_3_8B, 14336, "Meta-Llama-3-8B-Instruct", "Llama 3 8B Instruct", "instruct", 8192, None, "3"),
    (LLAMA_3_8B, 14336, "Llama-3-8B-Instruct", "Llama 3 8B Instruct", "instruct", 8192, None, "3"),
    (LLAMA_3_70B, 28672, "Meta-Llama-3-70B", "Llama 3 70B", "base", 8192, None, "3"),
    (LLAMA_3_70B, 28672, "Llama-3-70B-Instruct", "Llama 3 70B Instruct", "instruct", 8192, None, "3"),
    (LLAMA_3_8B, 14336, "Llama-Guard-2-8B", "Llama Guard 2 8B", "guard", 8192, None, "3"),
    (LLAMA_3_8B, 14336, "llama-guard-2", "Llama Guard 2 8B", "guard", 8192, None, "3"),
    (LLAMA_3_1_8B, 14336, "Llama3.1-8B", "Llama 3.1 8B", "base", 131072, 8.0, "3.1"),
    (LLAMA_3_1_8B, 14336, "Meta-Llama-3.1-8B", "Llama 3.1 8B", "base", 131072, 8.0, "3.1"),
    (LLAMA_3_1_8B, 14336, "Llama3.1-8B-Instruct", "Llama 3.1 8B Instruct", "instruct", 131072, 8.0, "3.1"),
    (LLAMA_3_1_8B, 14336, "Llama-Guard-3-8B", "Llama Guard 3 8B", "guard", 131072, 8.0, "3.1"),
    (LLAMA_3_1_70B, 28672, "Llama3.1-70B", "Llama 3.1 70B", "base", 131072, 8.0, "3.1"),
    (LLAMA_3_1_70B, 28672, "Llama-3.1-70B-Instruct", "Llama 3.1 70B Instruct", "instruct", 131072, 8.0, "3.1"),
    (LLAMA_3_1_70B, 28672, "Llama3.3-70B-Instruct", "Llama 3.3 70B Instruct", "instruct", 131072, 8.0, "3.1"),
    (LLAMA_3_1_405B, 53248, "Llama3.1-405B-bf16-mp8", "Llama 3.1 405B", "base", 131072, 8.0, "3.1"),
    (LLAMA_3_1_405B, 53248, "Llama3.1-405B-Instruct-bf16-mp16", "Llama 3.1 405B Instruct", "instruct", 131072, 8.0, "3.1"),
    (LLAMA_3_2_1B, 8192, "Llama3.2-1B", "Llama 3.2 1B", "base", 131072, 32.0, "3.1"),
    (LLAMA_3_2_1B, 8192, "Llama-3.2-1B-Instruct", "Llama 3.2 1B Instruct", "instruct", 131072, 32.0, "3.1"),
    (LLAMA_3_2_3B, 8192, "Llama3.2-3B", "Llama 3.2 3B", "base", 131072, 32.0, "3.1"),
    (LLAMA_3_2_3B, 8192, "Llama3.2-3B-Instruct", "Llama 3.2 3B Instruct", "instruct", 131072, 32.0, "3.1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "width", "folder", "name", "flavor", "positions", "factor", "names"), RELEASED_3
)
def test_a_model_of_llama_3_is_recognised_without_a_note(
    content, width, folder, name, flavor, positions, factor, names
):
    # Only the small ones of 3.2 have no head of their own.
    config = replace(model(content, width, 128256), tie_word_embeddings=factor == 32.0)
    found = recognise(config, folder_name=folder)
    assert (found.name, found.flavor, found.max_position_embeddings) == (name, flavor, positions)
    assert (found.rope_scaling_factor, found.special_names) == (factor, names)
    assert found.scaling_is_known
    assert found.notes == ()
    assert (config.rope_theta, config.generation.name) == (500000.0, "Llama 3")


@pytest.mark.parametrize(
    ("folder", "factor", "names"),
    [
        ("Meta-Llama-3-8B-Instruct", None, "3"),
        ("Meta-Llama-3-8B-Instruct", 8.0, "3"),
        ("Llama-Guard-2-8B", 8.0, "3"),
        ("renamed", 8.0, "3"),
        ("Llama-Guard-3-8B", None, "3.1"),
        ("Llama-Guard-3-8B", 8.0, "3.1"),
    ],
)
def test_the_names_of_special_tokens_follow_the_release_and_not_the_factor(folder, factor, names):
    """A factor that was asked for gave Llama 3 the names, and the stop ids, of Llama 3.1."""
    plain = model(LLAMA_3_8B, 14336, 128256)
    found = recognise(plain, folder_name=folder, rope_scaling_factor=factor)
    assert found.special_names == names


@pytest.mark.parametrize(
    ("folder", "scaled", "names"),
    [
        ("my-Llama-3.1-pruned", False, "3.1"),
        ("my-Llama-3-pruned", False, "3"),
        ("pruned", True, "3.1"),
        ("pruned", False, "3"),
    ],
)
def test_the_names_of_special_tokens_of_a_model_that_was_never_released(folder, scaled, names):
    config = replace(model(LLAMA_3_8B, 14336, 128256), num_hidden_layers=7, scaled_rope=scaled)
    for factor in (None, 8.0):
        found = recognise(config, folder_name=folder, rope_scaling_factor=factor)
        assert found.special_names == names


def test_a_family_without_a_base_model_is_taken_for_the_one_that_it_has():
    """Llama 3.3 was released as Instruct alone; the note said that the name says base."""
    config = model(LLAMA_3_1_70B, 28672, 128256)
    found = recognise(config, folder_name="Llama-3.3-70B")
    assert (found.name, found.flavor) == ("Llama 3.3 70B Instruct", "instruct")
    (note,) = found.notes
    assert "does not say what it was tuned for" in note
    assert "those of Llama 3.3 70B Instruct: taken for it" in note
    assert "--variant base" in note
    base = recognise(config, folder_name="Llama-3.3-70B", flavor="base")
    assert base.flavor == "base"
    (note,) = base.notes
    assert note == "base was asked for, but the weights are those of Llama 3.3 70B Instruct"
    assert recognise(config, folder_name="Llama-3.1-70B").notes == ()


@pytest.mark.parametrize(
    ("folder", "scaled", "factor", "positions"),
    [
        ("tiny", True, 8.0, 131072),
        ("my-Llama-3.2-pruned", True, 32.0, 131072),
        ("tiny", False, None, 8192),
    ],
)
def test_a_model_in_llama_3s_layout_that_was_never_released(folder, scaled, factor, positions):
    config = replace(model(LLAMA_3_8B, 14336, 128256), num_hidden_layers=7, scaled_rope=scaled)
    found = recognise(config, folder_name=folder)
    assert (found.rope_scaling_factor, found.max_position_embeddings) == (factor, positions)
    assert len(found.notes) == 1 + scaled
    assert "--max_position_embeddings" in found.notes[0]


def test_the_405b_of_16_files_is_as_released_as_that_of_8():
    config = model(LLAMA_3_1_405B, 53248, 128256)
    assert check_model_size("405B", config, 8) is None
    assert check_model_size("405B", config, 16) is None
    note = check_model_size("405B", config, 4)
    assert note is not None
    assert "released in 8 files, the checkpoint has 4" in note
    assert check_model_size("70B", model(LLAMA_3_1_70B, 28672, 128256), 8) is None


@pytest.mark.parametrize(
    ("content", "width", "vocab", "folder", "name", "flavor", "positions", "rope_theta"), RELEASED
)
def test_a_released_model_is_recognised_without_a_note(
    content, width, vocab, folder, name, flavor, positions, rope_theta
):
    config = model(content, width, vocab)
    found = recognise(config, folder_name=folder)
    assert (found.name, found.flavor, found.max_position_embeddings) == (name, flavor, positions)
    assert found.notes == ()
    assert config.rope_theta == rope_theta


def test_every_row_of_the_table_is_spelled_here_too():
    spelled = {row[4] for row in RELEASED} | {row[3] for row in RELEASED_3} | {"Llama Guard 3 1B"}
    assert spelled == {release.name for release in RELEASES}


def test_every_row_of_the_table_is_found_by_its_own_name():
    folders = {"Llama 1": "{size}", "Llama 2": "llama-2-{size}", "Code Llama": "CodeLlama-{size}"}
    for row in RELEASES:
        folder = folders.get(row.family, f"{row.family}-{{size}}").format(size=row.size)
        folder += "" if row.flavor in ("base", "guard") else f"-{row.flavor}"
        config = ModelConfig(
            row.shape.hidden_size, row.shape.intermediate_size, row.shape.num_hidden_layers,
            row.shape.num_attention_heads, row.shape.num_key_value_heads, row.norm_epsilons[0],
            row.rope_theta, row.vocab_size, row.tied, row.rope_scaling_factor is not None,
        )  # fmt: skip
        found = recognise(config, folder_name=folder)
        assert found.name == row.name
        assert found.rope_scaling_factor == row.rope_scaling_factor
        assert len(found.notes) == (row.name == "Llama Guard 3 1B")
        assert row.source


def test_early_downloads_of_llama_2_7b_chat_are_told_of_the_corrected_epsilon():
    found = recognise(model(LLAMA_1_7B, 11008, 32000), folder_name="llama-2-7b-chat")
    assert (found.name, found.max_position_embeddings) == ("Llama 2 7B Chat", 4096)
    assert len(found.notes) == 1
    assert "1e-06" in found.notes[0]
    assert "1e-05" in found.notes[0]


def test_what_fits_two_releases_of_another_context_is_a_note_and_an_option():
    config = model(LLAMA_1_7B, 11008, 32000)
    found = recognise(config, folder_name="renamed")
    assert found.max_position_embeddings == 2048
    assert "--max_position_embeddings" in found.notes[1]
    told = recognise(config, folder_name="renamed", max_position_embeddings=3000, flavor="base")
    assert told.max_position_embeddings == 3000
    assert told.notes == ()


def test_a_renamed_model_that_may_be_one_for_dialogue_is_a_note_and_an_option():
    """Nothing in the weights tells Instruct from base; a chat template was left out in silence."""
    config = model(CODE_7B, 11008, 32016)
    (note,) = recognise(config, folder_name="ckpt").notes
    assert "Code Llama 7B or Code Llama 7B Instruct" in note
    assert "no chat template" in note
    assert "--variant" in note
    for flavor in ("base", "instruct"):
        assert recognise(config, folder_name="ckpt", flavor=flavor).notes == ()


@pytest.mark.parametrize(
    ("folder", "flavor", "said"),
    [
        ("ckpt", "python", "python was asked for"),
        ("CodeLlama-7b", "chat", "chat was asked for"),
        ("CodeLlama-7b-Python", None, "the folder's name says python"),
    ],
)
def test_a_variant_that_the_weights_contradict_is_a_note(folder, flavor, said):
    found = recognise(model(CODE_7B, 11008, 32016), folder_name=folder, flavor=flavor)
    (note,) = found.notes
    assert note == (f"{said}, but the weights are those of Code Llama 7B or Code Llama 7B Instruct")
    assert recognise(model(CODE_7B, 11008, 32000), folder_name=folder, flavor="python").notes == ()


@pytest.mark.parametrize(
    ("rope_theta", "folder", "positions"),
    [(1e6, "tiny", 16384), (1e4, "tiny", 2048), (1e4, "my-llama-2-tiny", 4096)],
)
def test_a_model_that_was_never_released_gets_a_note(rope_theta, folder, positions):
    config = ModelConfig(64, 176, 2, 8, 4, 1e-5, rope_theta, 320)
    found = recognise(config, folder_name=folder)
    assert found.max_position_embeddings == positions
    assert len(found.notes) == 1
    assert "--max_position_embeddings" in found.notes[0]


def test_a_folder_named_after_another_family_is_a_note():
    found = recognise(model(LLAMA_2_7B, 11008, 32000), folder_name="CodeLlama-7b")
    assert found.max_position_embeddings == 4096
    assert "Code Llama" in found.notes[0]


def test_a_model_size_that_the_tensors_contradict_is_a_note():
    """Another number of files than the release's was refused; the tensors tell it better."""
    tiny = ModelConfig(64, 176, 2, 8, 4, 1e-5, 1e6, 320)
    merged = check_model_size("13B", model(CODE_13B, 13824, 32016), 1)
    assert merged == (
        "--model_size 13B was released in 2 files, the checkpoint has 1 file: the tensors fit 1"
    )
    assert check_model_size("13B", model(CODE_13B, 13824, 32016), 2) is None
    note = check_model_size("7B", tiny, 1)
    assert note is not None
    assert "64" in note
    assert "4096" in note
    assert check_model_size("7B", model(CODE_7B, 11008, 32016), 1) is None
    assert check_model_size("70Bf", model(LLAMA_2_70B, 28672, 32000), 8) is None
