"""Convert Meta's Code Llama and Llama checkpoints to Hugging Face folders."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codellama_convert.code_llama_tokenizer import CodeLlamaTokenizer
    from codellama_convert.convert import convert_checkpoint
    from codellama_convert.job import plan_conversion
    from codellama_convert.options import Options
    from codellama_convert.run_options import RunOptions
    from codellama_convert.tensors import dtype_named
    from codellama_convert.verify import verify_output

__all__ = [
    "CodeLlamaTokenizer",
    "Options",
    "RunOptions",
    "__version__",
    "convert_checkpoint",
    "dtype_named",
    "plan_conversion",
    "verify_output",
]

__version__ = "0.1.0"

# Loaded when first asked for: importing the package must not import sentencepiece, numpy or torch.
_EXPORTS = (
    ("CodeLlamaTokenizer", "codellama_convert.code_llama_tokenizer"),
    ("Options", "codellama_convert.options"),
    ("RunOptions", "codellama_convert.run_options"),
    ("convert_checkpoint", "codellama_convert.convert"),
    ("dtype_named", "codellama_convert.tensors"),
    ("plan_conversion", "codellama_convert.job"),
    ("verify_output", "codellama_convert.verify"),
)


def __getattr__(name: str) -> Any:
    for exported, module in _EXPORTS:
        if name == exported:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
