"""Own what a user may ask of a conversion, and which values and combinations are refused."""

from __future__ import annotations

import os
from dataclasses import dataclass

from codellama_convert.arguments import (
    FLAG,
    PATH,
    SIZE,
    Rule,
    check_fields,
    one_of,
    or_none,
    whole,
)
from codellama_convert.choices import (
    CHECKSUM_MODES,
    DEFAULT_CHECKSUMS,
    DEFAULT_MAX_SHARD_BYTES,
    MAX_WORKERS,
    MODEL_SIZES,
    TOKENIZER_ONLY,
    ChecksumMode,
    Flavor,
)
from codellama_convert.errors import ConfigError
from codellama_convert.model.asked import RULES as ASKED_RULES
from codellama_convert.storage.blocks import DEFAULT_IO_MODE, IO_MODES, IoMode
from codellama_convert.tensors import DTYPES, Dtype, DtypeLike, as_dtype

# `verify_output` takes both too.
WORKERS = or_none(whole(1, MAX_WORKERS))
IO_MODE = one_of(*IO_MODES)


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may ask for; values and combinations that make no sense are a `ConfigError`.

    Attributes:
        model_size: What the checkpoint is said to be, or "tokenizer_only".
        flavor: What it was tuned for, where the folder's name does not say.
        dtype: Of the written tensors: a name such as "float16", torch's own dtype, or what
            `dtype_named` returns; None keeps the checkpoint's.
        max_shard_bytes: Largest sum of one file's tensors.
        max_position_embeddings: Context length, where the checkpoint does not say.
        rope_scaling_factor: By which Llama 3's rotary frequencies are scaled, where neither the
            checkpoint's shape nor its folder's name says.
        tokenizer_model: Where tokenizer.model is, if elsewhere.
        skip_tokenizer: Whether to convert the weights alone.
        tokenizer_class: What tokenizer_config.json names; None is PreTrainedTokenizerFast, which
            is exact in every version of transformers.
        io_mode: Whether the page cache is bypassed.
        workers: Tensors in flight; None chooses by the number of cores.
        max_ram_bytes: Largest sum of all buffers; tile and workers are chosen to fit. None is
            32 MB, unless more workers than fit were asked for.
        checksums: What is compared with Meta's checklist.chk: "off" the small files only, "warn"
            the ranks too; "strict" the same, and a mismatch stops the run.
        tile_bytes: A tile of this size instead, whatever it costs; for tests and measurements.

    Raises:
        ConfigError: With the field's name, its value, and what is allowed.
    """

    model_size: str | None = None
    flavor: Flavor | None = None
    dtype: DtypeLike | None = None
    max_shard_bytes: int = DEFAULT_MAX_SHARD_BYTES
    max_position_embeddings: int | None = None
    rope_scaling_factor: float | None = None
    tokenizer_model: str | os.PathLike[str] | None = None
    skip_tokenizer: bool = False
    tokenizer_class: str | None = None
    io_mode: IoMode = DEFAULT_IO_MODE
    workers: int | None = None
    max_ram_bytes: int | None = None
    checksums: ChecksumMode = DEFAULT_CHECKSUMS
    tile_bytes: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, _RULES)
        alone = self.model_size == TOKENIZER_ONLY
        has_file, has_class = self.tokenizer_model is not None, self.tokenizer_class is not None
        is_scaled = self.rope_scaling_factor is not None
        has_tile, has_budget = self.tile_bytes is not None, self.max_ram_bytes is not None
        refuse_contradictions(
            (self.skip_tokenizer and has_file, "skip_tokenizer", "tokenizer_model"),
            (self.skip_tokenizer and has_class, "skip_tokenizer", "tokenizer_class"),
            (self.skip_tokenizer and alone, "skip_tokenizer", "model_size tokenizer_only"),
            (alone and self.dtype is not None, "model_size tokenizer_only", "dtype"),
            (alone and is_scaled, "model_size tokenizer_only", "rope_scaling_factor"),
            (has_tile and has_budget, "tile_bytes", "max_ram_bytes"),
        )


def refuse_contradictions(*pairs: tuple[bool, str, str]) -> None:
    """Refuse options of which one would be ignored.

    Args:
        pairs: Whether two options contradict each other, and both.

    Raises:
        ConfigError: With the names of the first two that do.
    """
    for contradict, one, other in pairs:
        if contradict:
            raise ConfigError(
                f"{one} and {other} contradict each other", hint="leave one of them out"
            )


def _is_dtype(value: object) -> bool:
    if isinstance(value, Dtype):
        return value in DTYPES
    # torch's dtypes are known by their name, so that torch need not be imported.
    text = str(value)
    if not isinstance(value, str) and not text.startswith("torch."):
        return False
    try:
        as_dtype(text)
    except ValueError:
        return False
    return True


DTYPE = or_none(Rule("'bfloat16', 'float16', 'float32' or torch's dtype of that name", _is_dtype))
_RULES = {
    "model_size": or_none(one_of(*MODEL_SIZES, TOKENIZER_ONLY)),
    "flavor": ASKED_RULES["variant"],
    "dtype": DTYPE,
    "max_shard_bytes": SIZE,
    "max_position_embeddings": ASKED_RULES["max_position_embeddings"],
    "rope_scaling_factor": ASKED_RULES["rope_scaling_factor"],
    "tokenizer_model": or_none(PATH),
    "skip_tokenizer": FLAG,
    "tokenizer_class": ASKED_RULES["tokenizer_class"],
    "io_mode": IO_MODE,
    "workers": WORKERS,
    "max_ram_bytes": or_none(SIZE),
    "checksums": one_of(*CHECKSUM_MODES),
    "tile_bytes": or_none(SIZE),
}
