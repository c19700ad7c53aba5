"""Convert Meta's Code Llama and Llama checkpoints to Hugging Face folders."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codellama_convert.code_llama_tokenizer import CodeLlamaTokenizer
    from codellama_convert.convert import convert_checkpoint
    from codellama_convert.job import Options, plan_conversion

__all__ = ["CodeLlamaTokenizer", "Options", "__version__", "convert_checkpoint", "plan_conversion"]

__version__ = "0.1.0"

# Loaded when first asked for: importing the package must not import sentencepiece, numpy or torch.
_EXPORTS = (
    ("CodeLlamaTokenizer", "codellama_convert.code_llama_tokenizer"),
    ("Options", "codellama_convert.job"),
    ("convert_checkpoint", "codellama_convert.convert"),
    ("plan_conversion", "codellama_convert.job"),
)


def __getattr__(name: str) -> Any:
    for exported, module in _EXPORTS:
        if name == exported:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
