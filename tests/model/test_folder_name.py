"""What a folder's name says of the model."""

from __future__ import annotations

import pytest

from codellama_convert.model.folder_name import read_folder_name


@pytest.mark.parametrize(
    ("name", "family", "flavor"),
    [
        ("CodeLlama-7b-Instruct", "Code Llama", "instruct"),
        ("code_llama_13b_python", "Code Llama", "python"),
        ("llama-2-70b", "Llama 2", "base"),
        ("Llama2-7b-chat", "Llama 2", "chat"),
        ("13B", "Llama 1", "base"),
        ("llama-2b-sized", None, None),
        ("Hermes-3-Llama-3.1-8B", "Llama 3.1", "base"),
        ("Meta-Llama-3-1b-chat", "Llama 3", "chat"),
        ("Llama-4-Scout", None, None),
        ("llama-30b-x", None, None),
        ("checkpoint", None, None),
    ],
)
def test_a_folders_name_is_read(name, family, flavor):
    assert read_folder_name(name) == (family, flavor)
