"""Own what a user may ask of the way to ranks."""

from __future__ import annotations

import os
from dataclasses import dataclass

from codellama_convert.arguments import FLAG, PATH, SIZE, check_fields, one_of, or_none
from codellama_convert.choices import TORCH_LAYOUTS, TorchLayout
from codellama_convert.model.asked import RULES_OF_RANKS
from codellama_convert.plan.options import DTYPE, IO_MODE, WORKERS, refuse_contradictions
from codellama_convert.storage.blocks import DEFAULT_IO_MODE, IoMode
from codellama_convert.tensors import DtypeLike

DEFAULT_TORCH_LAYOUT: TorchLayout = "1.13"


@dataclass(frozen=True, slots=True)
class ReverseOptions:
    """What a user may ask of the way to ranks; a value that makes no sense is a `ConfigError`.

    Attributes:
        n_ranks: How many files are written; None takes the number of those that the folder was
            converted from, of the released model of this shape, or else one.
        dtype: Of the written tensors; None keeps that of the source.
        torch_layout: The version of PyTorch whose files the ranks equal; None takes that of those
            that the folder was converted from, or else 1.13.
        rope_freqs: Whether the ranks hold the rotary frequencies, as Meta's do.
        vocab_rows: Rows of the vocabulary that are written; None writes all.
        tokenizer_model: Where tokenizer.model is, if elsewhere.
        skip_tokenizer: Whether to do without it.
        checklist: Whether to write checklist.chk, Meta's list of MD5 sums, at one more reading.
        io_mode: Whether the page cache is bypassed.
        workers: Tensors in flight; None chooses by the number of cores.
        max_ram_bytes: Largest sum of all buffers; None is 32 MB, as of `Options`.

    Raises:
        ConfigError: With the field's name, its value, and what is allowed.
    """

    n_ranks: int | None = None
    dtype: DtypeLike | None = None
    torch_layout: TorchLayout | None = None
    rope_freqs: bool = True
    vocab_rows: int | None = None
    tokenizer_model: str | os.PathLike[str] | None = None
    skip_tokenizer: bool = False
    checklist: bool = False
    io_mode: IoMode = DEFAULT_IO_MODE
    workers: int | None = None
    max_ram_bytes: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, _RULES)
        has_file = self.tokenizer_model is not None
        refuse_contradictions(
            (self.skip_tokenizer and has_file, "skip_tokenizer", "tokenizer_model")
        )


_RULES = {
    "n_ranks": RULES_OF_RANKS["ranks"],
    "dtype": DTYPE,
    "torch_layout": or_none(one_of(*TORCH_LAYOUTS)),
    "rope_freqs": FLAG,
    "vocab_rows": RULES_OF_RANKS["vocab_rows"],
    "tokenizer_model": or_none(PATH),
    "skip_tokenizer": FLAG,
    "checklist": FLAG,
    "io_mode": IO_MODE,
    "workers": WORKERS,
    "max_ram_bytes": or_none(SIZE),
}
