"""The length of context: one that is asked for is written, and noted where the release has more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from codellama_convert.model.recognise import recognise
from tests.model.params import CODE_7B, LLAMA_1_7B, LLAMA_2_7B, LLAMA_3_1_8B, model


@pytest.mark.parametrize(
    ("content", "width", "vocab_size", "folder", "positions"),
    [
        (LLAMA_3_1_8B, 14336, 128256, "Llama3.1-8B", 131072),
        (LLAMA_2_7B, 11008, 32000, "llama-2-7b", 4096),
        (CODE_7B, 11008, 32016, "CodeLlama-7b", 16384),
    ],
)
def test_a_context_below_that_of_the_release_is_a_note(
    content, width, vocab_size, folder, positions
):
    """It was written without a word, and programs cut or refuse what the model could read."""
    config = model(content, width, vocab_size)
    found = recognise(config, folder_name=folder, max_position_embeddings=positions - 1)
    assert (found.max_position_embeddings, found.context_is_known) == (positions - 1, True)
    (note,) = found.notes
    assert f"max_position_embeddings {positions - 1} " in note
    assert f" has {positions}" in note
    for enough in (positions, positions + 1):
        assert recognise(config, folder_name=folder, max_position_embeddings=enough).notes == ()


def test_a_short_context_is_no_note_where_no_release_is_known():
    never_released = replace(model(CODE_7B, 11008, 32016), intermediate_size=8)
    assert recognise(never_released, folder_name="mine", max_position_embeddings=1).notes == ()
    one_of_two = model(LLAMA_1_7B, 11008, 32000)  # of 2,048 positions, or of 4,096
    found = recognise(one_of_two, folder_name="renamed", max_position_embeddings=1024)
    assert not any("max_position_embeddings" in note for note in found.notes)
