"""Own the options that several commands share: their names, types, defaults and help."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from codellama_convert.choices import (
    CHECKSUM_MODES,
    DEFAULT_CHECKSUMS,
    DEFAULT_MAX_RAM_BYTES,
    DEFAULT_MAX_SHARD_BYTES,
    DTYPE_NAMES,
    FLAVORS,
    LARGEST_SCALING,
    MAX_RANKS,
    MAX_WORKERS,
    MODEL_SIZES,
    TOKENIZER_CLASSES,
    TOKENIZER_ONLY,
    TORCH_LAYOUTS,
)
from codellama_convert.cli.values import Factor, NamedPath, OneOf, PartOf, Size
from codellama_convert.storage.blocks import DEFAULT_IO_MODE, IO_MODES

Command = TypeVar("Command", bound=Callable[..., Any])


def _with_dashes_too(name: str) -> str:
    return name.replace("-", "_")


CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": _with_dashes_too,
    "max_content_width": 100,
}


def _options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


FOLDER = NamedPath(exists=True, file_okay=False, path_type=Path)
# Not looked at here: what is wrong with it is told in one place, when it is made or locked.
NEW_FOLDER = NamedPath(readable=False, path_type=Path)
INPUT = click.option(
    "--input_dir",
    type=FOLDER,
    help="Meta's folder (IN): consolidated.NN.pth and params.json, or a folder that holds such folders.",
)
_MODEL_SIZES = OneOf((*MODEL_SIZES, TOKENIZER_ONLY))
_CHECKSUMS = click.option(
    "--checksums",
    type=OneOf(CHECKSUM_MODES),
    default=DEFAULT_CHECKSUMS,
    show_default=True,
    help="First compare the ranks with Meta's checklist.chk (MD5); small files are always compared.",
)
_MAX_RAM = click.option(
    "--max_ram",
    type=Size(),
    help=f"Limit for all buffers together, by default {DEFAULT_MAX_RAM_BYTES // 10**6}MB; "
    "tiles and workers are chosen to fit.",
)
_CLASSES = f"{', '.join(TOKENIZER_CLASSES[:-1])} or {TOKENIZER_CLASSES[-1]}"
MODEL_OPTIONS = _options(
    click.option(
        "--model_size",
        type=_MODEL_SIZES,
        metavar="SIZE",
        help="Size of the model, such as 7B, checked against the checkpoint. tokenizer_only converts only the tokenizer.",
    ),
    click.option(
        "--variant",
        type=OneOf(FLAVORS),
        help="What the model was tuned for, where the folder's name does not say.",
    ),
    click.option(
        "--dtype",
        type=OneOf(("auto", *DTYPE_NAMES)),
        default="auto",
        show_default=True,
        help="Dtype of the written weights; auto keeps the checkpoint's.",
    ),
    click.option(
        "--max_shard_size",
        type=Size(),
        default=f"{DEFAULT_MAX_SHARD_BYTES // 10**9}GB",
        show_default=True,
        help="Most bytes of tensors in one file; a larger tensor gets a file of its own.",
    ),
    click.option(
        "--max_position_embeddings",
        type=click.IntRange(min=1),
        help="Context length, where the model does not say.",
    ),
    click.option(
        "--rope_scaling_factor",
        type=Factor(1, LARGEST_SCALING),
        help="By how much Llama 3.1 and later scale their rotary frequencies (8, or 32 in 3.2), where "
        "the model does not say.",
    ),
    click.option(
        "--tokenizer_model",
        type=NamedPath(path_type=Path),
        help="Path of tokenizer.model, if it is neither in the folder nor beside it.",
    ),
    _CHECKSUMS,
    click.option("--skip_tokenizer", is_flag=True, help="Convert only the weights."),
    click.option(
        "--tokenizer_class",
        type=OneOf(TOKENIZER_CLASSES),
        metavar="CLASS",
        help=f"Class that tokenizer_config.json names: {_CLASSES}; the last is the default, exact in "
        "transformers 4.57 and 5.",
    ),
)
# What was asked of the conversion need not be said again: the output's record has it. What is said
# goes first, and is a difference where the record says otherwise.
ASKED_OPTIONS = _options(
    click.option("--variant", type=OneOf(FLAVORS), help="What the model was tuned for."),
    click.option("--dtype", type=OneOf(DTYPE_NAMES), help="Dtype of the written weights."),
    click.option("--max_shard_size", type=Size(), help="Most bytes of tensors in one file."),
    click.option("--max_position_embeddings", type=click.IntRange(min=1), help="Context length."),
    click.option(
        "--rope_scaling_factor",
        type=Factor(1, LARGEST_SCALING),
        help="By how much rotary frequencies are scaled.",
    ),
    click.option("--skip_tokenizer", is_flag=True, help="The weights were converted alone."),
    click.option(
        "--tokenizer_class",
        type=OneOf(TOKENIZER_CLASSES),
        metavar="CLASS",
        help=f"Class that tokenizer_config.json names: {_CLASSES}.",
    ),
)
# How the checkpoint is found and read; nothing of it is of use without one.
SOURCE_OPTIONS = _options(
    click.option(
        "--model_size",
        type=_MODEL_SIZES,
        metavar="SIZE",
        help="Size of the model, checked against the checkpoint. tokenizer_only compares the tokenizer.",
    ),
    click.option(
        "--tokenizer_model",
        type=NamedPath(path_type=Path),
        help="tokenizer.model, if it is neither in the checkpoint nor beside it.",
    ),
    _CHECKSUMS,
    _MAX_RAM,
)
OF_THE_SOURCE = ("model_size", "tokenizer_model", "checksums", "max_ram")
# What says nothing of the weights' values.
NOT_OF_WEIGHTS = (
    "variant", "max_shard_size", "max_position_embeddings", "rope_scaling_factor", "skip_tokenizer",
    "tokenizer_class", "tokenizer_model",
)  # fmt: skip
_IO = click.option(
    "--io",
    "io_mode",
    type=OneOf(IO_MODES),
    default=DEFAULT_IO_MODE,
    show_default=True,
    help="Bypass the page cache (direct) or use it (buffered); auto bypasses it if the file system can.",
)
SPEED_OPTIONS = _options(
    _IO,
    click.option(
        "--workers",
        type=click.IntRange(min=1, max=MAX_WORKERS),
        help="Number of tensors in flight; by default chosen from the number of cores.",
    ),
    _MAX_RAM,
)
RUN_OPTIONS = _options(
    click.option(
        "--overwrite", is_flag=True, help="Replace the model that the output folder holds."
    ),
    click.option("--restart", is_flag=True, help="Discard the unfinished work of an earlier run."),
    click.option(
        "--verify",
        "verify_too",
        is_flag=True,
        help="Verify bit for bit before anything is published.",
    ),
    click.option("--sha256", is_flag=True, help="Add the files' SHA-256 to conversion.json."),
)
DASK = click.option(
    "--dask",
    metavar="ADDRESS",
    help="Have the files written by the workers of this dask scheduler, such as tls://node1:8786, or a "
    "scheduler file; needs the extra [dask].",
)
PART = click.option(
    "--part",
    type=PartOf(),
    help="Write only these of the files, for a job array: 3/8 is the third part of eight. Then the same "
    "command without it finishes the conversion; --verify, --sha256 and --model_card are left to that.",
)
CARD = click.option("--model_card", is_flag=True, help="Also write a README.md about the model.")
QUIET = click.option(
    "--quiet", is_flag=True, help="Show notes and errors only: no progress bar and no summary."
)
# Of the way to ranks.
RANK_OPTIONS = _options(
    click.option(
        "--ranks",
        "n_ranks",
        type=click.IntRange(min=1, max=MAX_RANKS),
        help="Number of ranks. By default that of the checkpoint which the folder was converted from, "
        "else that of the released model of this shape, else 1.",
    ),
    click.option(
        "--dtype",
        type=OneOf(("auto", *DTYPE_NAMES)),
        default="auto",
        show_default=True,
        help="Dtype of the written weights; auto keeps the input's.",
    ),
    click.option(
        "--torch_layout",
        type=OneOf(TORCH_LAYOUTS),
        help="Write the files that this version of PyTorch would, byte for byte. By default the one "
        "that saved the checkpoint which the folder was converted from, else 1.13, which saved Meta's.",
    ),
    click.option(
        "--no_rope_freqs",
        is_flag=True,
        help="Leave out rope.freqs: Meta's ranks have it (Llama 3's do not), and some strict loaders "
        "refuse it.",
    ),
    click.option(
        "--vocab_rows",
        type=click.IntRange(min=1),
        help="Write only the first rows of the embedding and the head: as many as tokenizer.model has "
        "pieces.",
    ),
    click.option(
        "--tokenizer_model",
        type=NamedPath(path_type=Path),
        help="Path of tokenizer.model, if the folder does not hold it.",
    ),
    click.option("--skip_tokenizer", is_flag=True, help="Write no tokenizer.model."),
    click.option(
        "--checklist",
        is_flag=True,
        help="Also write checklist.chk, a list of MD5 sums like Meta's.",
    ),
)
# What was asked of a conversion into ranks, as `ASKED_OPTIONS` are of the other.
ASKED_OF_RANKS = _options(
    click.option("--ranks", type=click.IntRange(min=1, max=MAX_RANKS), help="Number of ranks."),
    click.option(
        "--torch_layout", type=OneOf(TORCH_LAYOUTS), help="Version of PyTorch that the ranks equal."
    ),
    click.option("--no_rope_freqs", is_flag=True, help="The ranks hold no rope.freqs."),
    click.option("--vocab_rows", type=click.IntRange(min=1), help="Rows of the ranks' vocabulary."),
)
ONLY_OF_RANKS = ("ranks", "torch_layout", "no_rope_freqs", "vocab_rows")
NOT_OF_RANKS = (
    "variant", "max_shard_size", "max_position_embeddings", "rope_scaling_factor",
    "tokenizer_class", "model_size", "checksums", "weights_only",
)  # fmt: skip
READING_OPTIONS = _options(
    _IO,
    click.option(
        "--workers",
        type=click.IntRange(min=1, max=MAX_WORKERS),
        help="Tensors compared at once; by default chosen by the number of cores.",
    ),
)
JSON = click.option(
    "--json", "as_json", is_flag=True, help="Print the result, or the error, as JSON."
)
