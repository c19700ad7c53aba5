"""Own what a folder without Meta's ranks holds instead, and which names are almost the right ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from codellama_convert.errors import CheckpointError, listed
from codellama_convert.meta.unfinished import unfinished_downloads


@dataclass(frozen=True, slots=True)
class OtherLayout:
    """One way of keeping weights that is not Meta's.

    Attributes:
        names: Of the files that show it; upper and lower case are one.
        what: Follows their names in a message.
        hint: What to do.
    """

    names: re.Pattern[str]
    what: str
    hint: str


def _row(names: str, what: str, hint: str) -> OtherLayout:
    return OtherLayout(re.compile(names, re.IGNORECASE), what, hint)


_FP8_SCALES = re.compile(r"fp8_scales_[0-9]+\.pt")
_PTH = "get the model's consolidated.NN.pth files, as Meta releases them"
_AS_IT_IS = (
    "a Hugging Face folder needs no conversion: load it as it is, or write Meta's ranks from it with "
    "codellama-convert reverse"
)
# The first that fits is told, so what says more stands first.
_LAYOUTS = (
    _row(
        r"adapter_(model|config|\d+)\..*",
        "belongs to a LoRA adapter, not to a whole model",
        "merge the adapter into its model first, with the program that trained it",
    ),
    _row(
        r".*\.distcp",
        "belongs to a distributed PyTorch checkpoint, which must be joined first",
        "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER consolidated.00.pth",
    ),
    _row(
        r"consolidated.*\.safetensors",
        "holds the weights as safetensors, as Mistral releases them; Meta's ranks are .pth files",
        _PTH,
    ),
    _row(
        r"model.*\.safetensors(\.index\.json)?|pytorch_model.*\.bin(\.index\.json)?",
        "is a Hugging Face model, not a checkpoint in Meta's layout",
        _AS_IT_IS,
    ),
    _row(r".*\.safetensors", "is a safetensors file; Meta's ranks are .pth files", _PTH),
    _row(
        r".*\.gguf|ggml.*\.bin",
        "is a llama.cpp model, often quantised; it cannot be turned back into Meta's ranks",
        _PTH,
    ),
    _row(
        r".*\.pte",
        "is an ExecuTorch program, whose weights are quantised",
        _PTH,
    ),
    _row(r".*\.bin", "is a .bin file; Meta's ranks are .pth files", _PTH),
    _row(r"config\.json", "belongs to a Hugging Face folder, not to Meta's layout", _AS_IT_IS),
)


def other_layout(names: Sequence[str]) -> tuple[str, str] | None:
    """Report what a folder holds in place of Meta's ranks.

    Args:
        names: Its files.

    Returns:
        What it holds, to follow "but", and what to do; None where no name says so.
    """
    parts = [name for name in unfinished_downloads(names) if not name.lower().startswith("params")]
    if parts:
        are = "is an unfinished download" if len(parts) == 1 else "are unfinished downloads"
        return f"{listed(parts)}, which {are}", "let the download finish, or start it again"
    for layout in _LAYOUTS:
        shown = [name for name in names if layout.names.fullmatch(name)]
        if shown:
            return f"{shown[0]}, which {layout.what}", layout.hint
    return None


def refuse_fp8(folder: Path, names: Iterable[str]) -> None:
    """Refuse the FP8 form of Llama 3.1 405B, whose scales lie beside its ranks.

    Raises:
        CheckpointError: With one of the files of scales.

    Source:
        meta-llama/llama-models models/llama3/quantization/loader.py.
    """
    scales = next((name for name in names if _FP8_SCALES.fullmatch(name)), None)
    if scales is not None:
        raise CheckpointError(
            f"holds {scales}: these ranks are the FP8 form of Llama 3.1 405B, with one byte per weight",
            path=folder,
            hint="get the bfloat16 ranks: the download Llama3.1-405B-bf16-mp8 or -mp16, on the hub "
            "original/mp8 or original/mp16",
        )


def look_alike(names: Iterable[str], wanted: str) -> str | None:
    """Find the name that is almost the wanted one: other letters' case, or a download's addition.

    Args:
        names: The files of a folder.
        wanted: A name that is not among them, in lower case.

    Returns:
        Such as "Tokenizer.model" or "params (1).json"; None where there is none.
    """
    return next((name for name in names if _bare(name) == wanted), None)


def _bare(name: str) -> str:
    """Return a name in lower case, without what browsers and file managers add to a second copy."""
    bare = re.sub(r"\.(?:[0-9]+|txt)$", "", name.strip().lower())
    return re.sub(r"(?: ?\([0-9]+\)| - copy| copy)(?=\.[a-z]+$)", "", bare)
