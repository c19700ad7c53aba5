"""Own which ranks are to be expected of a source, spelled out from the table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from codellama_convert.choices import TorchLayout
from codellama_convert.formats.pth.saved_rank import SavedRank, own_storages
from codellama_convert.formats.tokenizer_model import TokenizerModel
from codellama_convert.model.asked import AskedRanks
from codellama_convert.model.config import ModelConfig
from codellama_convert.model.generations import LLAMA_3
from codellama_convert.model.tensor_table import (
    FREQUENCIES_NAME,
    TensorLayout,
    build_layout,
    meta_name_of,
    names_in_meta_order,
)
from codellama_convert.plan.ranks.job import ReverseJob
from codellama_convert.plan.ranks.original import Original
from codellama_convert.plan.source import Source
from codellama_convert.plan.tiles import Passage, TensorPlan
from codellama_convert.tensors import Dtype, TensorSpec, dtype_named
from codellama_convert.verify.ranks.folder import rank_name

_EMBEDDING, _HEAD = meta_name_of("embedding"), meta_name_of("head")


@dataclass(frozen=True, slots=True)
class ExpectedRanks:
    """What a folder of ranks must hold.

    Attributes:
        source: What they are made of.
        config: The model that they hold.
        n_ranks: How many there are.
        dtype: Of all their tensors.
        layout: The version of PyTorch whose files they equal.
        frequencies: The bytes of the rotary frequencies; None where they are left out.
        tokenizer: The tokenizer beside them; None where it is left out.
        checklist: Whether Meta's list of MD5 sums lies beside them.
        original: How they were saved before, if they come back as they were.
    """

    source: Source
    config: ModelConfig
    n_ranks: int
    dtype: Dtype
    layout: TorchLayout
    frequencies: bytes | None
    tokenizer: TokenizerModel | None
    checklist: bool
    original: Original | None

    @property
    def others(self) -> tuple[TensorSpec, ...]:
        """What each rank has beside the tensors of the model."""
        if self.original is not None:
            return self.original.others
        if self.frequencies is None:
            return ()
        return (TensorSpec(FREQUENCIES_NAME, self.dtype, (self.config.head_dim // 2,)),)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the ranks, in order."""
        return tuple(map(rank_name, range(self.n_ranks)))

    @property
    def laid_out_otherwise(self) -> str:
        """Say of a file that a byte beside its weights is another."""
        if self.original is None:
            return f"is not laid out as PyTorch {self.layout} writes it"
        return "differs from the original file"

    @property
    def origin_of_frequencies(self) -> str:
        """Say why the frequencies are as they are."""
        if _has_frequencies(self.source, self.dtype):
            return "as the source has it"
        return f"by the rope_theta {self.config.rope_theta}"

    def options(self) -> dict[str, Any]:
        """Spell the options that the record has."""
        return {
            "checklist": self.checklist,
            "dtype": self.dtype.name,
            "ranks": self.n_ranks,
            "rope_freqs": bool(self.others),
            "skip_tokenizer": self.tokenizer is None,
            "torch_layout": self.layout,
            "vocab_rows": self.config.vocab_size,
        }

    @property
    def second_names(self) -> tuple[TensorSpec, ...]:
        """The head, where it is the embedding under a second name: it is compared by its place."""
        names = _EMBEDDING, _HEAD
        is_second = self.config.tie_word_embeddings and self.saved(0).is_one(*names)
        return (self._parts()[_HEAD],) if is_second else ()

    def tensors(self, tile_bytes: int) -> tuple[TensorPlan, ...]:
        """Place each tensor on both sides, cut into tiles of a size."""
        found, passed_over = self.source.placements, {one.name for one in self.second_names}
        return tuple(
            # Rows of the vocabulary that are left out are the last ones.
            Passage(
                replace(found[one.meta.name][0], shape=one.meta.shape),
                one.meta,
                found[one.meta.name][1],
                self.dtype,
                one.head_dim,
            ).plan(tile_bytes=tile_bytes)
            for one in self._layout()
            if one.meta.name not in passed_over
        )

    def saved(self, number: int) -> SavedRank:
        """Spell what torch.save is given of a rank.

        Every tensor is by itself and they are in Meta's order, if they were not saved otherwise
        before. Of Llama 3, a tied head is the embedding.
        """
        parts = self._parts()
        n_layers = self.config.num_hidden_layers
        if self.original is not None:
            return self.original.saved_ranks(parts, n_layers)[number]
        parts |= {spec.name: spec for spec in self.others}
        specs = [parts[name] for name in names_in_meta_order(n_layers) if name in parts]
        is_tied = self.config.tie_word_embeddings and self.config.generation == LLAMA_3
        return own_storages(
            specs,
            root=rank_name(number).removesuffix(".pth"),
            second_names={_HEAD: _EMBEDDING} if is_tied else {},
        )

    def _layout(self) -> tuple[TensorLayout, ...]:
        return build_layout(self.config, n_ranks=self.n_ranks, dtype=self.dtype, with_head=True)

    def _parts(self) -> dict[str, TensorSpec]:
        """Spell the part that a rank has of each tensor of the model."""
        return {
            one.meta.name: TensorSpec(one.meta.name, self.dtype, one.meta.part_shape)
            for one in self._layout()
        }


def expected_ranks(job: ReverseJob, asked: AskedRanks, original: Original | None) -> ExpectedRanks:
    """Spell out which ranks a job must have made.

    Args:
        job: From `plan_reverse`.
        asked: What is said of the output, by the user or its record.
        original: How they were saved before, if they come back; it is dropped where something else
            is said.

    Returns:
        What must be there.
    """
    source = job.weights.source
    config = replace(source.config, vocab_size=asked.vocab_rows or job.weights.config.vocab_size)
    dtype = job.weights.plan.dtype if asked.dtype is None else dtype_named(asked.dtype)
    if original is not None and not (
        asked.ranks in (None, len(original.roots))
        and asked.torch_layout in (None, original.torch_layout)
        and (asked.rope_freqs is not False or not original.others)
        and (config, dtype) == (job.weights.config, job.weights.plan.dtype)
    ):
        original = None
    is_third = config.generation == LLAMA_3  # its ranks have none, and its loader refuses them
    has_usual = original is None and asked.rope_freqs is not False and not is_third
    layout = job.torch_layout if original is None else original.torch_layout
    return ExpectedRanks(
        source=source,
        config=config,
        n_ranks=asked.ranks or (len(job.weight_files) if original is None else len(original.roots)),
        dtype=dtype,
        layout=asked.torch_layout or layout,
        frequencies=_frequencies(source, config, dtype) if has_usual else None,
        tokenizer=None if asked.skip_tokenizer else job.tokenizer,
        checklist=bool(asked.checklist),
        original=original,
    )


def _frequencies(source: Source, config: ModelConfig, dtype: Dtype) -> bytes:
    """Compute the rotary frequencies in float32 as Meta's code does, or take those of the source.

    Source:
        meta-llama/codellama llama/model.py, `precompute_freqs_cis`.
    """
    if source.frequencies is not None and _has_frequencies(source, dtype):
        return source.frequencies[0]
    steps = np.arange(0, config.head_dim, 2).astype("<f4") / np.float32(config.head_dim)
    powers = np.power(config.rope_theta, steps.astype("<f8")).astype("<f4")
    exact = np.float32(1) / powers
    if dtype.code == "BF16":
        bits = exact.view("<u4").astype("<u8")
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16  # a tie goes to the even one
        return bytes(rounded.astype("<u2"))
    return bytes(exact.astype("<f2" if dtype.code == "F16" else "<f4"))


def _has_frequencies(source: Source, dtype: Dtype) -> bool:
    """Return whether a source of ranks has frequencies of a dtype, whose bytes are then kept."""
    return source.frequencies is not None and source.frequencies[1] == dtype
