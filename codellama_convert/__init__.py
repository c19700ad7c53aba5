"""Convert Meta's Code Llama and Llama checkpoints to Hugging Face folders."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codellama_convert.convert.run import convert_checkpoint
    from codellama_convert.plan.job import plan_conversion
    from codellama_convert.plan.options import Options
    from codellama_convert.plan.run_options import RunOptions
    from codellama_convert.tensors import dtype_named
    from codellama_convert.tokenizer.code_llama import CodeLlamaTokenizer
    from codellama_convert.verify.run import verify_output

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
    ("CodeLlamaTokenizer", "codellama_convert.tokenizer.code_llama"),
    ("Options", "codellama_convert.plan.options"),
    ("RunOptions", "codellama_convert.plan.run_options"),
    ("convert_checkpoint", "codellama_convert.convert.run"),
    ("dtype_named", "codellama_convert.tensors"),
    ("plan_conversion", "codellama_convert.plan.job"),
    ("verify_output", "codellama_convert.verify.run"),
)


def __getattr__(name: str) -> Any:
    for exported, module in _EXPORTS:
        if name == exported:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
