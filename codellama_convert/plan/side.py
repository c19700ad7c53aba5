"""Own what differs between the sides of an output: above all, what names mean to loaders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from codellama_convert.hugging_face import loader_names
from codellama_convert.meta import target_names
from codellama_convert.meta.rank_names import is_meta_name

NameTest = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class TargetSide:
    """A side that is written; each test of names is asked with the name of an entry of its folder.

    Attributes:
        is_entrance: What loaders begin with: it goes first and comes last.
        is_of_weights: What holds weights, leads to them or says what they are.
        is_saved: What belongs to a saved model, and goes when it is replaced.
        is_taken: What changes how the folder loads, whoever wrote it.
        smaller_files: What a user does about files that are too large, as a hint says it.
    """

    is_entrance: NameTest
    is_of_weights: NameTest
    is_saved: NameTest
    is_taken: NameTest
    smaller_files: str


def _is_taken_beside_shards(name: str) -> bool:
    """Return whether a file of this name would make a Hugging Face folder another model's too.

    Ranks are not removed with older shards, as they may be the only ones, so they must not stay.
    Many programs call a file params.json: alone it is not a checkpoint.
    """
    return loader_names.is_taken_by_loaders(name) or is_meta_name(name)


HUGGING_FACE = TargetSide(
    loader_names.is_entrance,
    loader_names.is_of_weights,
    loader_names.is_saved_by_libraries,
    _is_taken_beside_shards,
    "set a smaller --max_shard_size",
)


def _is_taken_beside_ranks(name: str) -> bool:
    """Return whether a file of this name would make a folder of ranks another model's too.

    What a Hugging Face model is made of is not removed with older ranks, so it must not stay.
    """
    return target_names.is_taken(name) or loader_names.is_of_weights(name)


META = TargetSide(
    target_names.is_entrance,
    target_names.is_of_weights,
    target_names.is_saved,
    _is_taken_beside_ranks,
    "set more --ranks",
)
