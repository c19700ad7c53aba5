"""Own the step from a folder of either side to the ranks that will be written of it.

A Hugging Face folder goes back to Meta's layout; a folder of Meta's goes to another number of ranks.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from math import gcd
from pathlib import Path
from typing import Any

from codellama_convert import __version__
from codellama_convert.arguments import as_path, instance_of
from codellama_convert.choices import MAX_RANKS, TorchLayout
from codellama_convert.errors import ConfigError, TokenizerError, one_line
from codellama_convert.formats.tokenizer_model import TokenizerModel, read_tokenizer_model
from codellama_convert.meta.find import PARAMS_NAME, TOKENIZER_NAME
from codellama_convert.model.asked import RECORD_NAME
from codellama_convert.model.config import ModelConfig
from codellama_convert.model.params_json import params_json
from codellama_convert.model.recognise import fitting_releases
from codellama_convert.model.releases import SHAPES_BY_SIZE
from codellama_convert.plan.ranks.options import DEFAULT_TORCH_LAYOUT, ReverseOptions
from codellama_convert.plan.ranks.original import Original
from codellama_convert.plan.ranks.plan import RankPlan
from codellama_convert.plan.ranks.weights import (
    RanksJob,
    plan_restored,
    plan_standard,
    writes_frequencies,
)
from codellama_convert.plan.side import META, TargetSide
from codellama_convert.plan.source import Source, open_source
from codellama_convert.storage.contents import Content
from codellama_convert.tensors import as_dtype


@dataclass(frozen=True, slots=True)
class ReverseJob:
    """A conversion into ranks that was checked and may be run.

    Attributes:
        options: What was asked for.
        given_dir: The folder that was named, which is or holds the one that is read.
        weights: What is read, and what is written of it.
        tokenizer: The tokenizer.model that is copied; None where it is skipped.
        notes: What the user should know.
    """

    options: ReverseOptions
    given_dir: Path
    weights: RanksJob
    tokenizer: TokenizerModel | None
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        # What dataclasses write would be every tensor of the model.
        plan = self.weights.plan
        return (
            f"ReverseJob(input_dir={str(self.input_dir)!r}, n_ranks={len(plan.files)}, "
            f"dtype={plan.dtype.name!r}, tensor_bytes={self.tensor_bytes})"
        )

    def each_rank_alone(self) -> ReverseJob:
        """Divide the work so that each rank is a job of its own, for the workers of an executor."""
        return replace(self, weights=self.weights.each_alone())

    @property
    def input_dir(self) -> Path:
        """The folder that is read."""
        return self.weights.source.folder

    @property
    def input_files(self) -> tuple[Path, ...]:
        """Every file that is read."""
        tokenizer = () if self.tokenizer is None else (self.tokenizer.path,)
        return (*self.weights.source.paths, *tokenizer)

    @property
    def side(self) -> TargetSide:
        """Who loads from the output folder."""
        return META

    @property
    def model_name(self) -> str | None:
        """What the weights are: the first released model that they fit."""
        return next((one.name for one in fitting_releases(self.weights.config)), None)

    @property
    def lasting_notes(self) -> tuple[str, ...]:
        """The notes that do not depend on where the input was found."""
        return self.notes

    @property
    def source_notes(self) -> tuple[str, ...]:
        """The notes on what is read; the others are on what is written of it."""
        return tuple(map(one_line, self.weights.source.notes))

    @property
    def weight_files(self) -> tuple[RankPlan, ...]:
        """The ranks."""
        return self.weights.plan.files

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors that are written, copies once."""
        return self.weights.plan.tensor_bytes

    @property
    def dropped(self) -> tuple[str, ...]:
        """Names of the tensors that are left out."""
        return self.weights.source.dropped

    @property
    def cast(self) -> str | None:
        """Both dtypes where the elements are cast, such as "bfloat16 to float16"."""
        return self.weights.cast

    @property
    def original(self) -> Original | None:
        """How the ranks were saved that come back; None where others are written."""
        return None if self.weights.recorded is None else self.weights.recorded.original

    @property
    def torch_layout(self) -> TorchLayout:
        """The version of PyTorch whose files the ranks equal."""
        if self.original is not None:
            return self.original.torch_layout
        return self.options.torch_layout or DEFAULT_TORCH_LAYOUT

    def record_options(self) -> dict[str, Any]:
        """Return what was asked for, as the record has it."""
        original = self.original
        return {
            "checklist": self.options.checklist,
            "dtype": self.weights.plan.dtype.name,
            "ranks": len(self.weight_files),
            "rope_freqs": (
                writes_frequencies(self.options, self.weights.config)
                if original is None
                else bool(original.others)
            ),
            "skip_tokenizer": self.tokenizer is None,
            "torch_layout": self.torch_layout,
            "vocab_rows": self.weights.config.vocab_size,
        }

    def fingerprint(self) -> dict[str, Any]:
        """Return what the output's bytes depend on: inputs and options, as plain values."""
        inputs = dict(self.weights.source.inputs)
        if self.weights.recorded is not None:
            inputs[RECORD_NAME] = self.weights.recorded.sha256
        if self.tokenizer is not None:
            inputs[TOKENIZER_NAME] = hashlib.sha256(self.tokenizer.raw).hexdigest()
        return {"version": __version__, "options": self.record_options(), **inputs}

    def check_ranks(self, progress: object = None, executor: object = None) -> tuple[str, ...]:
        """Nothing is listed that could be compared beforehand."""
        del progress, executor
        return ()

    def small_files(self) -> dict[str, Content]:
        """Build every file beside the weights, by name."""
        original = self.original
        if original is not None:
            params = original.params.encode()
        else:
            params = params_json(self.weights.config, self.weights.source.params)
        content: dict[str, Content] = {PARAMS_NAME: params}
        if self.tokenizer is not None:
            content[TOKENIZER_NAME] = self.tokenizer.raw
        return content

    def model_card(self) -> None:
        """Ranks have none."""


def plan_reverse(
    input_dir: str | os.PathLike[str], options: ReverseOptions | None = None
) -> ReverseJob:
    """Read and check everything that the way to ranks needs.

    Args:
        input_dir: A Hugging Face folder, or one of Meta's that goes to another number of ranks.
        options: What is asked for.

    Returns:
        The job.

    Raises:
        ConvertError: If anything is wrong with the input, or it cannot be split so.
    """
    options = ReverseOptions() if options is None else options
    instance_of(ReverseOptions).check("options", options)
    dtype = None if options.dtype is None else as_dtype(options.dtype)
    folder, named = as_path("input_dir", input_dir), options.tokenizer_model
    source = open_source(folder, dtype=dtype, tokenizer_model=named)
    tokenizer = _tokenizer(source, options)
    n_rows = _vocabulary_rows(source, tokenizer, options)
    config = replace(source.config, vocab_size=n_rows)
    dtype = dtype or source.dtypes[0]
    weights, notes = plan_restored(source, config, options, dtype)
    if weights is None:
        n_ranks = options.n_ranks or _released_ranks(config)
        refuse_uneven_split(config, n_ranks)
        weights = plan_standard(source, config, n_ranks, options, dtype)
    notes = tuple(map(one_line, (*source.notes, *notes)))
    return ReverseJob(options, folder, weights, tokenizer, notes)


def _tokenizer(source: Source, options: ReverseOptions) -> TokenizerModel | None:
    if options.skip_tokenizer:
        return None
    if source.tokenizer is None:
        raise TokenizerError(
            "holds no tokenizer.model, without which Meta's code does not start",
            path=source.folder,
            hint="give its path with --tokenizer_model, or leave it out with --skip_tokenizer",
        )
    return read_tokenizer_model(source.tokenizer)


def _vocabulary_rows(
    source: Source, tokenizer: TokenizerModel | None, options: ReverseOptions
) -> int:
    """Choose how many rows are written: Meta's loader takes as many as there are pieces."""
    n_rows, wanted = source.config.vocab_size, options.vocab_rows
    is_split = any(placement.split == 0 for placement, _ in source.placements.values())
    if wanted not in (None, n_rows) and is_split:
        raise ConfigError(
            "--vocab_rows can leave out rows of a Hugging Face folder only",
            path=source.folder,
            hint="convert these ranks into one first",
        )
    if wanted is not None and wanted > n_rows:
        raise ConfigError(
            f"--vocab_rows {wanted} is more than the {n_rows} rows of the embedding",
            path=source.folder,
            hint=f"give {n_rows} or fewer",
        )
    if tokenizer is not None and (wanted or n_rows) != tokenizer.n_pieces:
        n_more = n_rows - tokenizer.n_pieces
        hint = "name the right tokenizer with --tokenizer_model"
        if n_more > 0:
            hint = f"--vocab_rows {tokenizer.n_pieces} leaves the other rows out"
        raise TokenizerError(
            f"has {tokenizer.n_pieces} pieces, but {wanted or n_rows} rows of the embedding would "
            "be written: Meta's loader needs the same number",
            path=tokenizer.path,
            hint=hint,
        )
    return wanted or n_rows


def _released_ranks(config: ModelConfig) -> int:
    """Take the number of files in which a model of this shape was released, or else one."""
    measured = (
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.intermediate_size,
    )
    for shape in SHAPES_BY_SIZE.values():
        released = (
            shape.hidden_size,
            shape.num_hidden_layers,
            shape.num_attention_heads,
            shape.num_key_value_heads,
            shape.intermediate_size,
        )
        if measured == released:
            return shape.n_ranks
    return 1


def refuse_uneven_split(config: ModelConfig, n_ranks: int) -> None:
    """Refuse a number of ranks that does not divide a model.

    Raises:
        ConfigError: With what cannot be split, and the numbers that do.
    """
    sizes = {
        f"{config.num_key_value_heads} key and value heads": config.num_key_value_heads,
        f"hidden_size {config.hidden_size}": config.hidden_size,
        f"intermediate_size {config.intermediate_size}": config.intermediate_size,
        f"vocab_size {config.vocab_size}": config.vocab_size,
    }
    uneven = [what for what, size in sizes.items() if size % n_ranks]
    if uneven:
        common = gcd(*sizes.values())
        *most, last = (str(n) for n in range(1, MAX_RANKS + 1) if common % n == 0)
        may_be = f"{', '.join(most)} or {last}" if most else last
        raise ConfigError(
            f"{uneven[0]} cannot be split over {n_ranks} ranks",
            hint=f"--ranks may be {may_be}",
        )
