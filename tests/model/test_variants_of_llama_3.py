"""Which variants a Llama 3 has, and what the names of other families mean there."""

from __future__ import annotations

import pytest

from codellama_convert.errors import ConfigError
from codellama_convert.model.recognise import recognise
from tests.model.params import LLAMA_3_1_8B, model
from tests.refusals import refused


@pytest.mark.parametrize("flavor", ["python", "guard"])
def test_a_variant_that_a_llama_3_does_not_have_is_refused(flavor):
    """The folder's name said Instruct; the model lost its template and the ends of its turns."""
    config = model(LLAMA_3_1_8B, 14336, 128256)
    with refused(ConfigError, f"--variant {flavor}", "Llama 3.1 8B Instruct", "base or instruct"):
        recognise(config, folder_name="Llama3.1-8B-Instruct", flavor=flavor)
    guard = recognise(config, folder_name="Llama-Guard-3-8B", flavor="guard")
    assert (guard.flavor, guard.notes) == ("guard", ())


@pytest.mark.parametrize("folder", ["Llama3.1-8B-Instruct", "Llama3.1-8B", "Llama-3.1-8B-chat"])
def test_chat_of_a_llama_3_is_instruct(folder):
    config = model(LLAMA_3_1_8B, 14336, 128256)
    found = recognise(config, folder_name=folder, flavor="chat")
    assert (found.name, found.flavor, found.notes) == ("Llama 3.1 8B Instruct", "instruct", ())
    named = recognise(config, folder_name=folder)
    assert named.flavor == ("base" if folder == "Llama3.1-8B" else "instruct")
