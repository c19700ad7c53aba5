"""Own Hugging Face's side as an input: a folder whose structure was read and checked.

Everything that can be refused is refused here, before the first output byte: Meta's loader takes
whatever it is given, and says nothing of a missing weight.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from codellama_convert.errors import LayoutError, and_others
from codellama_convert.formats.pth.reader import RankIndex
from codellama_convert.hugging_face.buffers import check_frequencies, is_buffer
from codellama_convert.hugging_face.config_reader import (
    CONFIG_NAME,
    HuggingFaceConfig,
    read_config,
)
from codellama_convert.hugging_face.files import ModelFiles, Shard, read_model_files
from codellama_convert.hugging_face.foreign_names import (
    refuse_foreign_tensors,
    refuse_other_dtypes,
    refuse_wrapped,
)
from codellama_convert.hugging_face.rope_settings import scaling_notes
from codellama_convert.model.config import ModelConfig
from codellama_convert.model.foreign_params import SUPPORTED_HINT
from codellama_convert.model.placement import Placement, in_one_file
from codellama_convert.model.tensor_table import (
    TensorLayout,
    build_layout,
    hf_name_of,
    rules_in_order,
)
from codellama_convert.tensors import BFLOAT16, Dtype, TensorSpec

_TOKENIZER_NAME = "tokenizer.model"
_SAME_FOLDER_HINT = "config.json and the files of the weights must come from the same model"


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A tensor as a folder holds it, whole and in one file.

    Attributes:
        spec: Hugging Face's name, the dtype that it is stored in, and its shape.
        file: The number of its file.
    """

    spec: TensorSpec
    file: int

    @property
    def placement(self) -> Placement:
        """Where this side has it."""
        return in_one_file(self.spec.name, self.spec.shape, self.file)


@dataclass(frozen=True, slots=True)
class HuggingFaceCheckpoint:
    """A Hugging Face folder whose structure was read and checked.

    Attributes:
        folder: Where it lies.
        config: The model.
        files: The files that hold the weights, read up to their tensors.
        tensors: All that the model has, in the order of Hugging Face's state dict; where
            `config.tie_word_embeddings` is true, the head is the embedding, and not among them.
        dtype: What all tensors become: the one asked for, or the one that all have.
        dropped: Names that are left out.
        config_sha256: SHA-256 of config.json.
        tokenizer: tokenizer.model, or None where there is none.
        notes: What the user should know.
    """

    folder: Path
    config: ModelConfig
    files: tuple[Shard, ...]
    tensors: tuple[SourceTensor, ...]
    dtype: Dtype
    dropped: tuple[str, ...]
    config_sha256: str
    tokenizer: Path | None
    notes: tuple[str, ...]

    def inputs(self) -> dict[str, Any]:
        """Return what distinguishes these files from others, as plain values."""
        files = {file.path.name: file.fingerprint for file in self.files}
        return {CONFIG_NAME: self.config_sha256, **files}


def open_folder(folder: Path, *, dtype: Dtype | None = None) -> HuggingFaceCheckpoint:
    """Read a folder's structure and check that all of it belongs together.

    Args:
        folder: It holds config.json and safetensors files or pytorch_model.bin, whoever wrote them.
        dtype: What all tensors are to become; None means that they must be of one dtype.

    Returns:
        The checkpoint. Of the weights, only saved rotary frequencies are read, and a head that is
        stored although config.json says that it is the embedding.

    Raises:
        CheckpointError: If a file is missing, damaged, hostile or of another kind.
        LayoutError: If the tensors are not those of the model.
        ConfigError: If config.json is wrong, or of a model that Meta's code cannot run.
    """
    found = read_model_files(folder)
    said, content = read_config(folder / CONFIG_NAME)
    _check_names(folder, said.model, found)
    layout = build_layout(said.model, n_ranks=1, dtype=dtype or BFLOAT16)
    tensors = tuple(_source(found, tensor) for tensor in layout)
    dropped, dropped_notes = _check_dropped(found, said.model)
    tokenizer = folder / _TOKENIZER_NAME
    return HuggingFaceCheckpoint(
        folder=folder,
        config=said.model,
        files=found.files,
        tensors=tensors,
        dtype=dtype or _common_dtype(found.files, tensors),
        dropped=dropped,
        config_sha256=hashlib.sha256(content).hexdigest(),
        # A dangling link counts: its own error says more than "missing".
        tokenizer=tokenizer if os.path.lexists(tokenizer) else None,
        notes=(
            *found.notes,
            *dropped_notes,
            *_dtype_notes(said, tensors),
            *scaling_notes(said.rope_scaling_factor),
        ),
    )


def _check_names(folder: Path, config: ModelConfig, found: ModelFiles) -> None:
    """Compare the names with the table; a head that is tied may be stored all the same."""
    names = [name for name in found.file_of if not is_buffer(name)]
    refuse_foreign_tensors(folder, names)
    refuse_wrapped(folder, names, hf_name_of("embedding"))
    others = found.other_dtypes.items()
    refuse_other_dtypes(folder, {name: code for name, code in others if not is_buffer(name)})
    wanted: set[str] = set()
    # config.json may claim millions of layers: the first that is missing ends it.
    for rule, layer in rules_in_order(config.num_hidden_layers, tied=config.tie_word_embeddings):
        name = rule.hf_name.format(layer=layer)
        wanted.add(name)
        if name not in found.file_of:
            raise _missing(folder, name)
    head = hf_name_of("head")
    unknown = [name for name in names if name not in wanted and name != head]
    if unknown:
        raise _unknown(folder, unknown, wanted)


def _missing(folder: Path, name: str) -> LayoutError:
    if name == hf_name_of("head"):
        return LayoutError(
            f"tensor {name!r} is missing, and config.json does not say that it is the embedding",
            path=folder,
            hint="if it is, set tie_word_embeddings to true in config.json",
        )
    return LayoutError(f"tensor {name!r} is missing", path=folder, hint=_SAME_FOLDER_HINT)


def _unknown(folder: Path, unknown: Sequence[str], wanted: set[str]) -> LayoutError:
    """Say what a tensor is that the table does not have: of a layer too many, or of another model."""
    name, others = unknown[0], and_others(unknown)
    parts = name.split(".")
    if parts[:2] == ["model", "layers"] and ".".join([*parts[:2], "0", *parts[3:]]) in wanted:
        return LayoutError(
            f"tensor {name!r}{others} belongs to a layer beyond the num_hidden_layers of config.json",
            path=folder,
            hint=_SAME_FOLDER_HINT,
        )
    return LayoutError(
        f"tensor {name!r} does not belong to a Llama model{others}",
        path=folder,
        hint=SUPPORTED_HINT,
    )


def _source(found: ModelFiles, tensor: TensorLayout) -> SourceTensor:
    """Find a tensor of the table in the files, of the right shape."""
    index = found.holding(tensor.spec.name)
    stored = index.tensors[tensor.spec.name]
    if stored.shape != tensor.spec.shape:
        raise LayoutError(
            f"tensor {stored.name!r} has shape {stored.shape}, expected {tensor.spec.shape}",
            path=index.path,
            hint=_SAME_FOLDER_HINT,
        )
    spec = replace(tensor.spec, dtype=stored.dtype)
    return SourceTensor(spec, found.file_of[stored.name])


def _check_dropped(
    found: ModelFiles, config: ModelConfig
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Check that what is left out follows from the rest; return its names, and a note on it."""
    buffers = [name for name in found.file_of if is_buffer(name)]
    buffers += [n for one in found.files if isinstance(one, RankIndex) for n in one.dropped]
    notes = []
    for name in filter(found.file_of.__contains__, buffers):
        index = found.holding(name)
        if name in index.tensors:  # not one of another dtype
            check_frequencies(index.path, index.tensors[name], config)
    if buffers:
        listed = buffers[0] + and_others(buffers)
        notes.append(f"left out {listed}: buffers computed from config.json, not weights")
    embedding, head = hf_name_of("embedding"), hf_name_of("head")
    if not config.tie_word_embeddings:
        return tuple(buffers), tuple(notes)
    if head not in found.file_of:
        notes.append(f"{head} is not stored: tie_word_embeddings says that it is the embedding")
        return tuple(buffers), tuple(notes)
    # Planning does without numpy, unless a head is stored twice.
    from codellama_convert.hugging_face.two_heads import require_same  # noqa: PLC0415

    require_same(found.holding(embedding), embedding, found.holding(head), head)
    notes.append(f"{head} is stored, and equal to the embedding, as tie_word_embeddings says")
    return (*buffers, head), tuple(notes)


def _common_dtype(files: Sequence[Shard], tensors: Sequence[SourceTensor]) -> Dtype:
    first = tensors[0].spec
    for tensor in tensors:
        if tensor.spec.dtype != first.dtype:
            raise LayoutError(
                f"tensor {tensor.spec.name!r} is {tensor.spec.dtype.name}, but others are "
                f"{first.dtype.name}",
                path=files[tensor.file].path,
                hint="choose one dtype for all of them with --dtype",
            )
    return first.dtype


def _dtype_notes(said: HuggingFaceConfig, tensors: Sequence[SourceTensor]) -> list[str]:
    counts = Counter(tensor.spec.dtype.name for tensor in tensors)
    if len(counts) > 1:
        parts = [f"{n} {'is' if n == 1 else 'are'} {name}" for name, n in counts.items()]
        return [
            f"of {len(tensors)} tensors, {' and '.join(parts)}: each is cast from its own dtype"
        ]
    if said.dtype is not None and said.dtype.name not in counts:
        return [f"config.json says {said.dtype.name}, but the tensors are {next(iter(counts))}"]
    return []
