"""Own what the names in an output folder mean to those who load from it: one value for each side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from codellama_convert.hugging_face import loader_names
from codellama_convert.meta import target_names

NameTest = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class TargetSide:
    """Which names of a folder matter to loaders; each test is asked with the name of an entry.

    Attributes:
        is_entrance: What loaders begin with: it goes first and comes last.
        is_of_weights: What holds weights, leads to them or says what they are.
        is_saved: What belongs to a saved model, and goes when it is replaced.
        is_taken: What changes how the folder loads, whoever wrote it.
    """

    is_entrance: NameTest
    is_of_weights: NameTest
    is_saved: NameTest
    is_taken: NameTest


HUGGING_FACE = TargetSide(
    loader_names.is_entrance,
    loader_names.is_of_weights,
    loader_names.is_saved_by_libraries,
    loader_names.is_taken_by_loaders,
)
META = TargetSide(
    target_names.is_entrance,
    target_names.is_of_weights,
    target_names.is_saved,
    target_names.is_taken,
)
