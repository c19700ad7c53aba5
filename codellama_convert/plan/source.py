"""Own a folder of either side as the source of ranks: its tensors under Meta's names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from codellama_convert.errors import CheckpointError, listed
from codellama_convert.formats.pth.reader import RankIndex
from codellama_convert.formats.safetensors_reader import SafetensorsIndex
from codellama_convert.formats.source_sums import TensorFile
from codellama_convert.formats.tokenizer_model import holds_tiktoken
from codellama_convert.hugging_face.config_reader import CONFIG_NAME
from codellama_convert.hugging_face.folder import HuggingFaceCheckpoint, open_folder
from codellama_convert.hugging_face.loader_names import is_of_weights
from codellama_convert.meta.checkpoint import Checkpoint, open_checkpoint
from codellama_convert.meta.find import find_files
from codellama_convert.meta.rank_copies import read_copy
from codellama_convert.meta.rank_names import is_meta_name
from codellama_convert.model.config import ModelConfig
from codellama_convert.model.generations import generation_of
from codellama_convert.model.placement import Placement
from codellama_convert.model.tensor_table import (
    FREQUENCIES_NAME,
    build_layout,
    hf_name_of,
    meta_name_of,
)
from codellama_convert.storage.folders import names_in
from codellama_convert.tensors import Dtype

_HINT = (
    "--input_dir is a Hugging Face folder, which holds config.json, or the one that Meta's download "
    "script made"
)
_EMBEDDING, _HEAD = meta_name_of("embedding"), meta_name_of("head")


@dataclass(frozen=True, slots=True)
class Source:
    """The weights of a folder of either side.

    Attributes:
        folder: Where it lies.
        config: The model.
        files: The files that hold the weights, by their number.
        placements: By Meta's name: where each tensor is, and its dtype there. A tied head has the
            bytes of the embedding, under a name of its own.
        frequencies: The bytes of the rotary frequencies and their dtype; None where there are none.
        dropped: Names that are left out.
        paths: Every file that is read, tokenizer.model apart.
        inputs: What distinguishes them from others, as plain values.
        tokenizer: tokenizer.model, or None where there is none.
        notes: What the user should know.
        checkpoint: What it is as the input of the other direction; None of Hugging Face's side.
    """

    folder: Path
    config: ModelConfig
    files: tuple[TensorFile, ...]
    placements: Mapping[str, tuple[Placement, Dtype]]
    frequencies: tuple[bytes, Dtype] | None
    dropped: tuple[str, ...]
    paths: tuple[Path, ...]
    inputs: Mapping[str, Any]
    tokenizer: Path | None
    notes: tuple[str, ...]
    checkpoint: Checkpoint | None

    @property
    def is_metas(self) -> bool:
        """Whether it is a folder of Meta's side."""
        return self.checkpoint is not None

    @property
    def params(self) -> bytes | None:
        """The bytes of params.json; None where there is none."""
        return None if self.checkpoint is None else self.checkpoint.params

    @property
    def dtypes(self) -> tuple[Dtype, ...]:
        """The dtypes of its tensors, the embedding's first."""
        return tuple(dict.fromkeys(dtype for _, dtype in self.placements.values()))

    @property
    def dtype_names(self) -> str:
        """Their names, such as "bfloat16", or "bfloat16 and float32"."""
        return " and ".join(dtype.name for dtype in self.dtypes)


def open_source(
    folder: Path, *, dtype: Dtype | None, tokenizer_model: str | os.PathLike[str] | None = None
) -> Source:
    """Read the structure of a folder of either side, and check that all of it belongs together.

    Args:
        folder: A Hugging Face folder, or one of Meta's.
        dtype: What all tensors become; None means that they must be of one dtype.
        tokenizer_model: Where tokenizer.model is, if elsewhere.

    Returns:
        The source.

    Raises:
        ConvertError: If anything is missing, damaged, hostile or contradicts the rest.
    """
    names = names_in(folder, error=CheckpointError)
    ranks = sorted(filter(is_meta_name, names))
    signs = (CONFIG_NAME in names, _holds_weights(names))
    if all(signs) or (any(signs) and not ranks):
        source = _of_hugging_face(open_folder(folder, dtype=dtype), tokenizer_model)
        return replace(source, notes=(*source.notes, *_passed_over(ranks)))
    files = find_files(folder, tokenizer_model=tokenizer_model, hint=_HINT)
    # A context length is not written: of one beyond all, nothing is said.
    checkpoint = open_checkpoint(files, max_position_embeddings=1 << 30, skip_tokenizer=True)
    if dtype is None:
        checkpoint.common_dtype()
    return _of_meta(checkpoint)


def _holds_weights(names: Iterable[str]) -> bool:
    """Report whether one of a folder's files is of a Hugging Face model's weights."""
    return any(
        (is_of_weights(name) and not name.endswith(CONFIG_NAME))
        or (name.endswith(".safetensors") and not name.startswith("consolidated"))
        for name in names
    )


def _passed_over(ranks: Sequence[str]) -> tuple[str, ...]:
    """Say that Meta's ranks lie beside what is read, as some downloads have both."""
    if not ranks:
        return ()
    return (f"ignored {listed(ranks, 1)}: the Hugging Face model in the folder is read",)


def _of_hugging_face(
    checkpoint: HuggingFaceCheckpoint, tokenizer_model: str | os.PathLike[str] | None
) -> Source:
    found = {tensor.spec.name: tensor for tensor in checkpoint.tensors}
    config, files = checkpoint.config, list(checkpoint.files)
    tokenizer = checkpoint.tokenizer if tokenizer_model is None else Path(tokenizer_model)
    generation = generation_of(
        scaled_rope=config.scaled_rope,
        vocab_size=config.vocab_size,
        has_tiktoken=holds_tiktoken(tokenizer),
    )
    config = replace(config, generation=generation)
    if config.tie_word_embeddings:
        embedding = found[hf_name_of("embedding")]
        head, number = hf_name_of("head"), embedding.file
        files[number] = _with_alias(files[number], embedding.spec.name, head)
        spec = replace(embedding.spec, name=head)
        found[head] = replace(embedding, spec=spec)
    layout = build_layout(config, n_ranks=1, dtype=checkpoint.dtype, with_head=True)
    return Source(
        folder=checkpoint.folder,
        config=config,
        files=tuple(files),
        placements={
            tensor.meta.name: (one.placement, one.spec.dtype)
            for tensor in layout
            for one in (found[tensor.spec.name],)
        },
        frequencies=None,
        dropped=checkpoint.dropped,
        paths=(checkpoint.folder / CONFIG_NAME, *(file.path for file in checkpoint.files)),
        inputs=checkpoint.inputs(),
        tokenizer=tokenizer,
        notes=checkpoint.notes,
        checkpoint=None,
    )


def _of_meta(checkpoint: Checkpoint) -> Source:
    placements = {t.meta.name: (t.meta, t.spec.dtype) for t in checkpoint.layout}
    files = checkpoint.ranks
    if checkpoint.config.tie_word_embeddings:
        files = tuple(_with_alias(file, _EMBEDDING, _HEAD) for file in files)
        embedding, dtype = placements[_EMBEDDING]
        placements[_HEAD] = (replace(embedding, name=_HEAD), dtype)
    return Source(
        folder=checkpoint.files.folder,
        config=checkpoint.config,
        files=files,
        placements=placements,
        frequencies=_frequencies(checkpoint.ranks[0]),
        dropped=tuple(name for name in checkpoint.dropped if name != FREQUENCIES_NAME),
        paths=(checkpoint.files.params, *checkpoint.files.ranks),
        inputs=checkpoint.inputs(),
        tokenizer=checkpoint.files.tokenizer,
        notes=checkpoint.notes,
        checkpoint=checkpoint,
    )


def _frequencies(rank: RankIndex) -> tuple[bytes, Dtype] | None:
    """Read the rotary frequencies of a rank, where it has them once."""
    stored = rank.tensors.get(FREQUENCIES_NAME)
    return None if stored is None else (read_copy(rank, FREQUENCIES_NAME), stored.dtype)


_File = TypeVar("_File", bound="SafetensorsIndex | RankIndex")


def _with_alias(file: _File, name: str, alias: str) -> _File:
    """Let a tensor be read a second time, under another name."""
    tensors = {**file.tensors, alias: replace(file.tensors[name], name=alias)}
    return replace(file, tensors=tensors)
