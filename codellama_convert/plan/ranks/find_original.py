"""Own the question how a checkpoint's ranks were saved; the answer is given only where it is proven."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from codellama_convert.choices import TorchLayout
from codellama_convert.formats.pth.as_saved import find_saved
from codellama_convert.formats.pth.saved_rank import SavedRank, own_storages, spare_spans
from codellama_convert.formats.pth.writer import RankFilePlan
from codellama_convert.meta.checkpoint import Checkpoint
from codellama_convert.model.config import ModelConfig
from codellama_convert.model.generations import generation_of
from codellama_convert.plan.ranks.original import (
    MAX_PARAMS_CHARACTERS,
    MAX_REST_BYTES,
    Original,
    in_meta_order,
    original_json,
    parse_original,
)
from codellama_convert.plan.ranks.plan import EMBEDDING_NAME, HEAD_NAME, rank_name
from codellama_convert.storage.input_file import InputFile
from codellama_convert.tensors import Dtype, TensorSpec


def find_original(checkpoint: Checkpoint, dtype: Dtype) -> Original | None:
    """Find out how the ranks of a checkpoint were saved.

    Args:
        checkpoint: What is converted.
        dtype: Of the tensors that are written of it.

    Returns:
        It; None where the files would not come back byte for byte: elements are cast, a tied head
        is missing or has a storage of its own, ranks have copies of heads, no known version of
        torch.save writes such files, the ranks are not alike, tensors of the model overlap, or what
        is beside them is large.

    Raises:
        ConvertError: If a file cannot be read.
    """
    names = [rank_name(number) for number in range(len(checkpoint.ranks))]
    if (
        checkpoint.dtypes != (dtype,)
        or [rank.path.name for rank in checkpoint.ranks] != names
        or _holds_copies_of_heads(checkpoint)
        or not _shows_its_generation(checkpoint.config)
    ):
        return None
    params = _params(checkpoint)
    saved = _saved(checkpoint)
    if params is None or saved is None:
        return None
    is_tied = checkpoint.config.tie_word_embeddings
    if is_tied and not saved.ranks[0].is_one(EMBEDDING_NAME, HEAD_NAME):
        return None
    original = _described(checkpoint, saved, params)
    if original is None or not _can_be_read(original):
        return None
    specs = _specs(checkpoint)
    assert original.saved_ranks(specs, checkpoint.config.num_hidden_layers) == saved.ranks
    return original


def _holds_copies_of_heads(checkpoint: Checkpoint) -> bool:
    return any(len(one.meta.files) != len(checkpoint.ranks) for one in checkpoint.layout)


def _shows_its_generation(config: ModelConfig) -> bool:
    """Report whether config.json will tell how the ranks were split, which their shapes told here."""
    told = generation_of(scaled_rope=config.scaled_rope, vocab_size=config.vocab_size)
    return told == config.generation


@dataclass(frozen=True, slots=True)
class _Saved:
    """What torch.save was given of each rank, which torch it was, and where all of them have what."""

    ranks: tuple[SavedRank, ...]
    torch_layout: TorchLayout
    place: RankFilePlan


def _saved(checkpoint: Checkpoint) -> _Saved | None:
    """Find how all ranks were saved; None where one of them cannot be written again, or is unlike."""
    found = []
    for index in checkpoint.ranks:
        one = find_saved(index)
        if one is None:
            return None
        found.append(one)
    alike = {(replace(rank, root=""), len(rank.root), layout) for rank, layout, _ in found}
    _, layout, place = found[0]
    return _Saved(tuple(rank for rank, _, _ in found), layout, place) if len(alike) == 1 else None


def _specs(checkpoint: Checkpoint) -> dict[str, TensorSpec]:
    """Spell the part that a rank has of each tensor of the model, of a tied head too."""
    specs = {
        one.meta.name: TensorSpec(one.meta.name, one.spec.dtype, one.meta.part_shape)
        for one in checkpoint.layout
    }
    return specs | {
        HEAD_NAME: specs.get(HEAD_NAME) or replace(specs[EMBEDDING_NAME], name=HEAD_NAME)
    }


def _described(checkpoint: Checkpoint, saved: _Saved, params: str) -> Original | None:
    """Describe it in few words; None where what is beside the model's tensors is not small."""
    first = saved.ranks[0]
    specs = {tensor.spec.name: tensor.spec for tensor in first.tensors}
    others = specs.keys() - _specs(checkpoint).keys()
    moved = specs.keys() - others
    if checkpoint.config.tie_word_embeddings:
        moved -= {HEAD_NAME}
    try:
        spare = spare_spans(first, moved)
    except ValueError:
        return None
    if sum(end - start for _, start, end in spare) > MAX_REST_BYTES:
        return None
    is_in_order = tuple(specs) == in_meta_order(specs, checkpoint.config.num_hidden_layers)
    plain = own_storages(specs.values(), root="")
    is_plain = (plain.tensors, plain.storage_elements) == (first.tensors, first.storage_elements)
    places = tuple((tensor.storage, tensor.storage_offset) for tensor in first.tensors)
    return Original(
        params=params,
        torch_layout=saved.torch_layout,
        container=first.container,
        location=first.location,
        roots=tuple(rank.root for rank in saved.ranks),
        order=None if is_in_order else tuple(specs),
        others=tuple(specs[name] for name in sorted(others)),
        places=None if is_plain else places,
        storages=None if is_plain else first.storage_elements,
        rest=tuple(_read_spare(rank.path, saved.place, spare) for rank in checkpoint.ranks),
    )


def _params(checkpoint: Checkpoint) -> str | None:
    """Return params.json as a text; None where it is not one, or long."""
    if len(checkpoint.params) > MAX_PARAMS_CHARACTERS:
        return None
    try:
        text = checkpoint.params.decode()
    except UnicodeDecodeError:
        return None
    return text if len(json.dumps(text)) <= MAX_PARAMS_CHARACTERS else None


def _read_spare(path: Path, place: RankFilePlan, spare: Sequence[tuple[int, int, int]]) -> bytes:
    """Read what the storages of a rank hold besides the tensors of the model."""
    with InputFile(path) as file:
        return b"".join(
            file.read_exact(place.storage_spans[storage][0] + start, end - start)
            for storage, start, end in spare
        )


def _can_be_read(original: Original) -> bool:
    """Report whether the reader of the record would take it."""
    try:
        return parse_original(original_json(original)) == original
    except ValueError:
        return False
