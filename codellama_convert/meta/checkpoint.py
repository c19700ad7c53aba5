"""Own the input: what its files hold, and whether they belong together.

Everything that can be refused is refused here, before the first output byte.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from codellama_convert.choices import Flavor
from codellama_convert.errors import ConfigError, LayoutError, listed
from codellama_convert.formats.file_kinds import HEAD_BYTES, refuse_other_kind
from codellama_convert.formats.pth.reader import PickleCache, RankIndex, read_rank
from codellama_convert.formats.tokenizer_model import (
    TokenizerModel,
    holds_tiktoken,
    read_tokenizer_model,
)
from codellama_convert.meta.find import CheckpointFiles, missing_tokenizer
from codellama_convert.meta.held_twice import distinct_heads, head_equals_embedding
from codellama_convert.meta.places import model_name
from codellama_convert.meta.rank_copies import compare_copies, refuse_copied_ranks
from codellama_convert.meta.rank_tensors import (
    check_ranks,
    is_tied,
    measure,
    require_layers,
    with_dtypes,
)
from codellama_convert.meta.state_dict import find_state_dict
from codellama_convert.model.config import MetaParams, ModelConfig, build_config, parse_params
from codellama_convert.model.generations import LLAMA_3
from codellama_convert.model.lagging import lagging_notes
from codellama_convert.model.recognise import (
    Recognised,
    check_model_size,
    is_released,
    recognise,
    wanted_flavor,
)
from codellama_convert.model.tensor_table import TensorLayout, build_layout, meta_name_of
from codellama_convert.storage.input_file import InputFile
from codellama_convert.tensors import Dtype
from codellama_convert.tokenizer.hf_files import check_embedding_rows

_MAX_PARAMS_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose structure was read and checked.

    Attributes:
        files: Where it lies.
        config: The model.
        recognised: Which released model it is.
        ranks: What each rank holds.
        layout: Where every output tensor comes from.
        dropped: Names of tensors that are left out.
        params: The bytes of params.json.
        tokenizer: tokenizer.model, or None where it is not wanted.
        notes: What the user should know.
    """

    files: CheckpointFiles
    config: ModelConfig
    recognised: Recognised
    ranks: tuple[RankIndex, ...]
    layout: tuple[TensorLayout, ...]
    dropped: tuple[str, ...]
    params: bytes
    tokenizer: TokenizerModel | None
    notes: tuple[str, ...]

    @property
    def dtypes(self) -> tuple[Dtype, ...]:
        """The dtypes of its tensors, the embedding's first."""
        return tuple(dict.fromkeys(tensor.spec.dtype for tensor in self.layout))

    @property
    def dtype_names(self) -> str:
        """Their names, such as "bfloat16", or "bfloat16 and float32"."""
        return " and ".join(dtype.name for dtype in self.dtypes)

    def inputs(self) -> dict[str, Any]:
        """Return what distinguishes these files from others, as plain values."""
        ranks = {rank.path.name: rank.fingerprint for rank in self.ranks}
        return {"params.json": hashlib.sha256(self.params).hexdigest(), **ranks}

    def common_dtype(self) -> Dtype:
        """Return the one dtype of all tensors.

        Raises:
            LayoutError: If they have several.
        """
        first = self.layout[0].spec.dtype
        for tensor in self.layout:
            if tensor.spec.dtype != first:
                raise LayoutError(
                    f"tensor {tensor.meta.name!r} is {tensor.spec.dtype.name}, but others are "
                    f"{first.name}",
                    path=self.ranks[0].path,
                    hint="choose one dtype for all of them with --dtype",
                )
        return first


def open_checkpoint(
    files: CheckpointFiles,
    *,
    model_size: str | None = None,
    flavor: Flavor | None = None,
    max_position_embeddings: int | None = None,
    rope_scaling_factor: float | None = None,
    skip_tokenizer: bool = False,
) -> Checkpoint:
    """Read a checkpoint's structure and check that all of it belongs together.

    Args:
        files: Where it lies.
        model_size: What the user says it is.
        flavor: What the user says it was tuned for.
        max_position_embeddings: The context length that the user says it has.
        rope_scaling_factor: By which the user says that its rotary frequencies are scaled.
        skip_tokenizer: Whether tokenizer.model is not needed.

    Returns:
        The checkpoint; of the weights, only the small copies of norms are read.

    Raises:
        ConvertError: If anything is missing, damaged, hostile or contradicts the rest.
    """
    content = _read_params(files.params)
    params, param_notes = parse_params(content, files.params)
    # Before the ranks: what is kept of them then takes the memory that this needs for a moment.
    tokenizer = None if skip_tokenizer else _read_tokenizer(files)
    cache: PickleCache = {}
    ranks = tuple(read_rank(path, choose=find_state_dict, cache=cache) for path in files.ranks)
    config = _measured_config(params, ranks, files)
    require_layers(ranks[0], config.num_hidden_layers, tied=config.tie_word_embeddings)
    heads = distinct_heads(config, ranks)
    config = heads.config
    layout, dropped = _check_weights(config, ranks, heads.copies)
    lagging = lagging_notes(
        params,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        tied=config.tie_word_embeddings,
    )
    size_note = check_model_size(model_size, config, len(ranks)) if model_size else None
    recognised = recognise(
        config,
        folder_name=model_name(files.folder),
        flavor=wanted_flavor(model_size, flavor),
        max_position_embeddings=max_position_embeddings,
        rope_scaling_factor=rope_scaling_factor,
    )
    notes = (
        *files.place_notes,
        *files.notes,
        *param_notes,
        *dict.fromkeys(note for rank in ranks for note in rank.notes),
        *_kind_notes(config, layout, ranks[0]),
        *heads.notes,
        *lagging,
        *_row_notes(tokenizer, config),
        *_unsummed_notes(ranks),
        *_renamed_notes(ranks),
        *((size_note,) if size_note else ()),
        *recognised.notes,
    )
    return Checkpoint(files, config, recognised, ranks, layout, dropped, content, tokenizer, notes)


def _measured_config(
    params: MetaParams, ranks: Sequence[RankIndex], files: CheckpointFiles
) -> ModelConfig:
    """Build the configuration from params.json and from the shapes of the tensors."""
    measured = measure(ranks, hidden_size=params.dim)
    config = build_config(
        params,
        intermediate_size=measured.intermediate_size,
        vocab_size=measured.vocab_size,
        path=files.params,
        has_tiktoken=holds_tiktoken(files.tokenizer),
        generation=measured.generation,
    )
    # In older models a head with the numbers of the embedding was not tied to it: it is written.
    tied = is_tied(ranks) or (config.generation == LLAMA_3 and head_equals_embedding(ranks))
    return replace(config, tie_word_embeddings=tied)


def _check_weights(
    config: ModelConfig, ranks: Sequence[RankIndex], head_copies: int
) -> tuple[tuple[TensorLayout, ...], tuple[str, ...]]:
    """Compare the ranks with the table and with each other.

    Returns:
        Where every output tensor comes from, and the names that are left out.
    """
    layout = build_layout(
        config,
        n_ranks=len(ranks),
        dtype=ranks[0].tensors[meta_name_of("embedding")].dtype,
        path=ranks[0].path.parent,
        head_copies=head_copies,
    )
    layout = with_dtypes(layout, ranks[0])
    dropped = check_ranks(layout, ranks)
    refuse_copied_ranks(ranks)
    compare_copies(layout, ranks)
    return layout, dropped


def _kind_notes(
    config: ModelConfig, layout: Sequence[TensorLayout], rank: RankIndex
) -> tuple[str, ...]:
    """Note that the head is the embedding, and that tensors have several dtypes."""
    notes = []
    if config.tie_word_embeddings:
        head, embedding = (rank.tensors.get(meta_name_of(role)) for role in ("head", "embedding"))
        why = "is missing, so it is the embedding"
        if head is not None and embedding is not None:
            is_view = head.place == embedding.place
            why = "is the embedding itself" if is_view else "equals the embedding, bit for bit"
        notes.append(
            f"{meta_name_of('head')} {why}: tie_word_embeddings is true, and no lm_head is written"
        )
    counts = Counter(tensor.spec.dtype.name for tensor in layout)
    if len(counts) > 1:
        parts = [f"{n} {'is' if n == 1 else 'are'} {name}" for name, n in counts.items()]
        notes.append(
            f"of {len(layout)} tensors, {' and '.join(parts)}: each is cast from its own dtype"
        )
    return tuple(notes)


def _read_params(path: Path) -> bytes:
    """Read the whole of params.json; refuse a file that is too large, or a web page."""
    with InputFile(path, error=ConfigError) as file:
        content = file.read_whole(_MAX_PARAMS_BYTES, hint="download it again")
    refuse_other_kind(content[:HEAD_BYTES], "JSON", path=path, error=ConfigError)
    return content


def _read_tokenizer(files: CheckpointFiles) -> TokenizerModel:
    if files.tokenizer is None:
        raise missing_tokenizer(
            files.folder,
            hint="give its path with --tokenizer_model, or convert only the weights with --skip_tokenizer",
        )
    return read_tokenizer_model(files.tokenizer)


def _row_notes(tokenizer: TokenizerModel | None, config: ModelConfig) -> tuple[str, ...]:
    """Compare the tokenizer with the embedding."""
    if tokenizer is None:
        return ()
    return check_embedding_rows(tokenizer, config.vocab_size, is_released=is_released(config))


def _unsummed_notes(ranks: Sequence[RankIndex]) -> tuple[str, ...]:
    """Note which ranks were saved without sums: a flipped bit in them would go into the output."""
    bare = [rank for rank in ranks if not rank.has_sums]
    if not bare:
        return ()
    note = (
        f"{listed([rank.path.name for rank in bare], 1)}: saved without CRC-32 sums, so damage cannot be detected; "
        "--checksums strict compares them with checklist.chk"
    )
    return (note,)


def _renamed_notes(ranks: Sequence[RankIndex]) -> tuple[str, ...]:
    """Note which ranks were saved under another number: if two were swapped, every tensor is wrong.

    torch calls a zip's root folder after the file that it writes; where all ranks have one root,
    it says nothing about their order.
    """
    if len({rank.root for rank in ranks}) == 1:
        return ()
    renamed = [
        rank
        for index, rank in enumerate(ranks)
        if re.fullmatch(r"consolidated\.\d\d", rank.root) and int(rank.root[-2:]) != index
    ]
    if not renamed:
        return ()
    note = (
        f"{listed([rank.path.name for rank in renamed], 1)}: saved as {renamed[0].root}.pth and renamed; if ranks "
        "were swapped, the model is wrong"
    )
    return (note,)
