"""By how much rotary frequencies are scaled, and what is said where that is not sure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from codellama_convert.errors import ConfigError
from codellama_convert.model.recognise import recognise
from tests.model.params import (
    CODE_7B,
    LLAMA_3_1_8B,
    LLAMA_3_2_1B,
    LLAMA_3_2_3B,
    LLAMA_3_8B,
    model,
)
from tests.refusals import refused


@pytest.mark.parametrize("tied", [False, True])
def test_llama_guard_3_1b_gets_the_hubs_factor_and_a_note(tied):
    """Its base model, Llama 3.2 1B, has 32; copies of the hub's config.json have 8.

    Whether Meta's file has a head of its own was never seen, so either is the release.
    """
    config = replace(model(LLAMA_3_2_1B, 8192, 128256), tie_word_embeddings=tied)
    found = recognise(config, folder_name="Llama-Guard-3-1B")
    assert (found.name, found.rope_scaling_factor) == ("Llama Guard 3 1B", 8.0)
    (note,) = found.notes
    assert "assumed to be 8, as in copies of the hub's config.json" in note
    assert "Llama 3.2 1B, which it was made of, has 32" in note
    assert "--rope_scaling_factor" in note


@pytest.mark.parametrize(("tied", "factor"), [(True, 32.0), (False, 8.0)])
def test_a_factor_that_is_not_known_is_a_note_and_an_option(tied, factor):
    """1B has the numbers of Llama 3.2 and of Guard 3: a head of its own speaks for Guard."""
    config = replace(model(LLAMA_3_2_1B, 8192, 128256), tie_word_embeddings=tied)
    found = recognise(config, folder_name="renamed")
    assert found.rope_scaling_factor == factor
    assert not found.scaling_is_known
    assert f"assumed to be {factor:g}; set it with --rope_scaling_factor" in found.notes[-1]
    for asked in (8.0, 32.0):  # one of the two is right
        told = recognise(config, folder_name="renamed", rope_scaling_factor=asked)
        assert (told.rope_scaling_factor, told.scaling_is_known) == (asked, True)
        assert not any("scaling" in note for note in told.notes)


@pytest.mark.parametrize(
    ("content", "width", "tied", "folder", "asked", "said"),
    [
        (LLAMA_3_2_1B, 8192, True, "Llama3.2-1B", 8.0, "Llama 3.2 1B has 32"),
        (LLAMA_3_2_3B, 8192, True, "renamed", 8.0, "Llama 3.2 3B or Llama 3.2 3B Instruct has 32"),
        (LLAMA_3_1_8B, 14336, False, "Llama3.1-8B", 32.0, "Llama 3.1 8B has 8"),
        (LLAMA_3_8B, 14336, False, "Meta-Llama-3-8B", 8.0, "Llama 3 8B has none"),
        (LLAMA_3_2_1B, 8192, True, "Llama-Guard-3-1B", 16.0, "Llama Guard 3 1B has 8"),
    ],
)
def test_a_factor_that_a_known_release_does_not_have_is_a_note(
    content, width, tied, folder, asked, said
):
    """It was taken in silence, and beyond some 80,000 tokens the model is wrong."""
    config = replace(model(content, width, 128256), tie_word_embeddings=tied)
    found = recognise(config, folder_name=folder, rope_scaling_factor=asked)
    assert (found.rope_scaling_factor, found.scaling_is_known) == (asked, True)
    assert f"--rope_scaling_factor {asked:g} is written as asked for, but {said}" in found.notes[-1]


@pytest.mark.parametrize("folder", ["Llama3.2-1B", "Llama3.1-8B"])
def test_the_factor_that_a_known_release_has_is_no_note(folder):
    """The accepting neighbour of the test above."""
    content, width = (LLAMA_3_2_1B, 8192) if "1B" in folder else (LLAMA_3_1_8B, 14336)
    config = replace(model(content, width, 128256), tie_word_embeddings="1B" in folder)
    known = recognise(config, folder_name=folder)
    assert known.notes == ()
    factor = known.rope_scaling_factor
    assert recognise(config, folder_name=folder, rope_scaling_factor=factor) == known


def test_a_1b_with_a_head_of_its_own_is_not_the_release_that_it_is_named_after():
    """Llama 3.2 1B has a tied head, Guard 3 1B one of its own, and a factor of 8: 32 was certain."""
    untied = model(LLAMA_3_2_1B, 8192, 128256)
    found = recognise(untied, folder_name="Llama3.2-1B")
    assert (found.rope_scaling_factor, found.scaling_is_known) == (32.0, False)
    (note,) = found.notes
    assert "Llama 3.2 1B has no head of its own, and this model has one" in note
    assert "assumed to be 32; set it with --rope_scaling_factor" in note
    tied = replace(untied, tie_word_embeddings=True)
    assert recognise(tied, folder_name="Llama3.2-1B").notes == ()


@pytest.mark.parametrize(
    ("folder", "name", "flavor"),
    [
        ("Llama-Guard-3-8B", "Llama Guard 3 8B", "guard"),
        ("Llama3.1-8B-Instruct", "Llama 3.1 8B Instruct", "instruct"),
    ],
)
def test_a_scaling_that_params_json_leaves_out_is_a_note(folder, name, flavor):
    """Meta's own list says that Guard 3 8B is not scaled, the hub that it is by 8.

    The file at hand is followed. Such a folder was said to be Llama 3's, and nothing was said of
    the scaling.
    """
    plain = model(LLAMA_3_8B, 14336, 128256)
    found = recognise(plain, folder_name=folder)
    assert (found.name, found.flavor, found.special_names) == (name, flavor, "3.1")
    assert (found.rope_scaling_factor, found.scaling_is_known) == (None, False)
    assert (found.max_position_embeddings, found.context_is_known) == (8192, False)
    (scaling,) = found.notes  # --max_position_embeddings was named first, which is not needed
    assert (
        f"does not say that the rotary frequencies are scaled, as those of {name} are, by 8"
        in scaling
    )
    assert "--rope_scaling_factor 8 scales them, for a context of 131072" in scaling
    told = recognise(plain, folder_name=folder, rope_scaling_factor=8.0)
    assert (told.rope_scaling_factor, told.max_position_embeddings) == (8.0, 131072)
    (note,) = told.notes
    assert "params.json does not say" in note
    assert "scaled by 8, as asked for" in note


def test_a_scaling_that_a_fine_tunes_name_speaks_of_is_a_note_too():
    """Its shape is nobody's, so its name alone says that it should be scaled."""
    config = replace(model(LLAMA_3_8B, 14336, 128256), num_hidden_layers=7)
    found = recognise(config, folder_name="my-Llama-3.2-pruned")
    assert (found.rope_scaling_factor, found.scaling_is_known) == (None, False)
    assert "as those of Llama 3.2 are, by 32" in found.notes[-1]
    for folder in ("my-Llama-3-pruned", "pruned", "my-llama-2"):
        found = recognise(config, folder_name=folder)
        assert (found.scaling_is_known, len(found.notes)) == (True, 1)


def test_a_factor_of_one_on_a_scaled_model_is_a_note():
    """It cancels the scaling; of a model that is not a released one, nothing was said."""
    config = replace(model(LLAMA_3_1_8B, 14336, 128256), num_hidden_layers=7)
    found = recognise(config, folder_name="pruned", rope_scaling_factor=1)
    assert "--rope_scaling_factor 1 leaves the rotary frequencies as they are" in found.notes[-1]
    found = recognise(config, folder_name="pruned", rope_scaling_factor=2)
    assert not any("--rope_scaling_factor" in note for note in found.notes)


def test_a_factor_for_what_cannot_be_scaled_is_refused():
    with refused(ConfigError, "--rope_scaling_factor 8", "Code Llama", "leave it out"):
        recognise(model(CODE_7B, 11008, 32016), folder_name="x", rope_scaling_factor=8)
