"""Own the names that loaders of Meta's ranks take from a folder, whoever wrote them.

Meta's own code takes every `*.pth` for a rank, and stops where their count is not that of its
processes; llama.cpp, tinygrad and others count `consolidated.NN.pth`. All of them read params.json.
"""

from __future__ import annotations

from codellama_convert.meta.checklist import LIST_NAMES
from codellama_convert.meta.find import PARAMS_NAME, TOKENIZER_NAME
from codellama_convert.meta.rank_names import is_meta_name


def is_entrance(name: str) -> bool:
    """Return whether loaders begin with a file of this name: without it they read no rank."""
    return name == PARAMS_NAME


def is_of_weights(name: str) -> bool:
    """Return whether a file of this name holds weights, or says what they are."""
    return is_entrance(name) or is_meta_name(name)


def is_saved(name: str) -> bool:
    """Return whether a file of this name is a saved checkpoint's, and goes when it is replaced."""
    return is_of_weights(name) or name in (*LIST_NAMES, TOKENIZER_NAME)


def is_taken(name: str) -> bool:
    """Return whether a file of this name changes what the folder loads as."""
    return is_saved(name) or name.endswith(".pth")
