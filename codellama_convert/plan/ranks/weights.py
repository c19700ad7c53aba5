"""Own the weights' part of a job that writes ranks: as they were saved, or as torch would save them now."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from codellama_convert.errors import ConvertError, one_line
from codellama_convert.formats.pth.saved_rank import SavedRank
from codellama_convert.formats.source_sums import TensorFile
from codellama_convert.model.asked import RECORD_NAME
from codellama_convert.model.config import ModelConfig
from codellama_convert.model.tensor_table import FREQUENCIES_NAME, build_layout
from codellama_convert.plan.ranks.options import DEFAULT_TORCH_LAYOUT, ReverseOptions
from codellama_convert.plan.ranks.plan import (
    EMBEDDING_NAME,
    HEAD_NAME,
    RanksPlan,
    frequencies,
    plan_ranks,
    standard_ranks,
)
from codellama_convert.plan.ranks.restoring import Recorded, read_recorded
from codellama_convert.plan.source import Source
from codellama_convert.plan.tiles import Passage
from codellama_convert.storage.threads import default_workers
from codellama_convert.tensors import Dtype


@dataclass(frozen=True, slots=True)
class RanksJob:
    """The weights of a job that writes ranks.

    Attributes:
        source: What is read.
        config: The model that is written.
        plan: What is written where.
        recorded: How the ranks were saved that the source was made of, where they are written so;
            None where they are laid out as torch would.
    """

    source: Source
    config: ModelConfig
    plan: RanksPlan
    recorded: Recorded | None = None

    def each_alone(self) -> RanksJob:
        """Divide the work so that each rank is a pass of its own."""
        return replace(self, plan=replace(self.plan, each_alone=True))

    @property
    def source_files(self) -> tuple[TensorFile, ...]:
        """The files that are read."""
        return self.source.files

    @property
    def source_dtypes(self) -> tuple[Dtype, ...]:
        """The dtypes of what is read."""
        return self.source.dtypes

    @property
    def cast(self) -> str | None:
        """Both dtypes where the elements are cast, such as "bfloat16 to float16"."""
        source, target = self.source.dtype_names, self.plan.dtype.name
        return None if source == target else f"{source} to {target}"


def plan_restored(
    source: Source, config: ModelConfig, options: ReverseOptions, dtype: Dtype
) -> tuple[RanksJob | None, tuple[str, ...]]:
    """Decide that the ranks are written as they were saved, where the source's record says how.

    Args:
        source: What is read.
        config: The model that is written.
        options: What is asked for.
        dtype: Of the written tensors.

    Returns:
        The weights, and a note; None where something else is asked for, or no usable record is
        there.
    """
    if source.is_metas or config != source.config or source.dtypes != (dtype,):
        return None, ()
    if not os.path.lexists(source.folder / RECORD_NAME):  # of a folder that others wrote
        return None, ()
    layout = options.torch_layout or DEFAULT_TORCH_LAYOUT
    try:
        recorded = read_recorded(source.folder, config)
        if recorded is None:
            note = (
                f"{RECORD_NAME} does not say how the ranks were saved: they are laid out as PyTorch "
                f"{layout} writes them"
            )
            return None, (note,)
        if not recorded.is_asked_for(options):
            return None, ()
        weights = _as_recorded(source, recorded, options, dtype)
    except (ValueError, ConvertError) as problem:
        note = (
            f"{RECORD_NAME} cannot be used ({one_line(str(problem))}): the ranks are laid out as "
            f"PyTorch {layout} writes them"
        )
        return None, (note,)
    return weights, (f"the ranks get the layout that is recorded in {RECORD_NAME}",)


def _as_recorded(
    source: Source, recorded: Recorded, options: ReverseOptions, dtype: Dtype
) -> RanksJob:
    original, config = recorded.original, source.config
    passages = _passages(source, config, len(original.roots), dtype)
    ranks = original.saved_ranks(
        {passage.target.name: passage.part_spec for passage in passages}, config.num_hidden_layers
    )
    plan = plan_ranks(
        _without_second(passages, ranks[0], config),
        ranks,
        rest=original.rest,
        layout=original.torch_layout,
        max_ram_bytes=options.max_ram_bytes,
        workers=options.workers or default_workers(),
        keep_workers=options.workers is not None,
    )
    if [file.n_bytes for file in plan.files] != [n_bytes for n_bytes, _ in recorded.files]:
        raise ValueError("it says how ranks of another size were saved")
    return RanksJob(source, config, plan, recorded)


def plan_standard(
    source: Source, config: ModelConfig, n_ranks: int, options: ReverseOptions, dtype: Dtype
) -> RanksJob:
    """Decide that the ranks are written as torch saves a plain dict in Meta's order.

    Args:
        source: What is read.
        config: The model that is written.
        n_ranks: Into how many files.
        options: What is asked for.
        dtype: Of the written tensors.

    Returns:
        The weights.

    Raises:
        ConfigError: If the buffers do not fit into what they may take.
    """
    passages = _passages(source, config, n_ranks, dtype)
    is_wanted = writes_frequencies(options, config)
    made = _frequencies(source, config, dtype) if is_wanted else {}
    ranks = standard_ranks(passages, config, made)
    plan = plan_ranks(
        _without_second(passages, ranks[0], config),
        ranks,
        rest=[b"".join(made.values())] * n_ranks,
        layout=options.torch_layout or DEFAULT_TORCH_LAYOUT,
        max_ram_bytes=options.max_ram_bytes,
        workers=options.workers or default_workers(),
        keep_workers=options.workers is not None,
    )
    return RanksJob(source, config, plan)


def _passages(source: Source, config: ModelConfig, n_ranks: int, dtype: Dtype) -> list[Passage]:
    passages = []
    for tensor in build_layout(config, n_ranks=n_ranks, dtype=dtype, with_head=True):
        placement, read_dtype = source.placements[tensor.meta.name]
        if placement.shape != tensor.meta.shape:  # rows of the vocabulary are left out
            placement = replace(placement, shape=tensor.meta.shape)
        passages.append(Passage(placement, tensor.meta, read_dtype, dtype, tensor.head_dim))
    return passages


def _without_second(passages: list[Passage], rank: SavedRank, config: ModelConfig) -> list[Passage]:
    """Leave out a head that is written with the embedding, where it lies."""
    is_second = config.tie_word_embeddings and rank.is_one(EMBEDDING_NAME, HEAD_NAME)
    return [one for one in passages if not (is_second and one.target.name == HEAD_NAME)]


def writes_frequencies(options: ReverseOptions, config: ModelConfig) -> bool:
    """Report whether ranks get rotary frequencies; Llama 3's have none, and its loader refuses them."""
    return options.rope_freqs and config.generation.has_frequencies


def _frequencies(source: Source, config: ModelConfig, dtype: Dtype) -> dict[str, bytes]:
    """Take the frequencies that the source has, or make them where they would be of another dtype."""
    if source.frequencies is not None and source.frequencies[1] == dtype:
        return {FREQUENCIES_NAME: source.frequencies[0]}
    return frequencies(config, dtype)
