"""Convert Meta's Code Llama and Llama checkpoints to Hugging Face folders."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# The public names, by the module that owns them. Each is loaded when it is first asked for:
# importing the package must not import sentencepiece, numpy or torch.
_EXPORTS = {
    "convert.report": ("ConversionReport",),
    "convert.run": ("convert_checkpoint", "reverse_checkpoint"),
    "errors": (
        "CastError", "CheckpointError", "ConfigError", "ConvertError", "Interrupted", "LayoutError",
        "OutputError", "TokenizerError", "VerifyError", "WorkerError",
    ),
    "plan.job": ("Job", "plan_conversion"),
    "plan.options": ("Options",),
    "plan.ranks.job": ("ReverseJob", "plan_reverse"),
    "plan.ranks.options": ("ReverseOptions",),
    "plan.run_options": ("RunOptions",),
    "tensors": ("dtype_named",),
    "tokenizer.code_llama": ("CodeLlamaTokenizer",),
    "verify.report": ("VerifyReport",),
    "verify.run": ("verify_output",),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]  # noqa: PLE0604 - they are strings
__version__ = "0.1.0"

if TYPE_CHECKING:  # the same once more, as type checkers read it; a test compares the two
    from codellama_convert.convert.report import ConversionReport as ConversionReport
    from codellama_convert.convert.run import convert_checkpoint as convert_checkpoint
    from codellama_convert.convert.run import reverse_checkpoint as reverse_checkpoint
    from codellama_convert.errors import CastError as CastError
    from codellama_convert.errors import CheckpointError as CheckpointError
    from codellama_convert.errors import ConfigError as ConfigError
    from codellama_convert.errors import ConvertError as ConvertError
    from codellama_convert.errors import Interrupted as Interrupted
    from codellama_convert.errors import LayoutError as LayoutError
    from codellama_convert.errors import OutputError as OutputError
    from codellama_convert.errors import TokenizerError as TokenizerError
    from codellama_convert.errors import VerifyError as VerifyError
    from codellama_convert.errors import WorkerError as WorkerError
    from codellama_convert.plan.job import Job as Job
    from codellama_convert.plan.job import plan_conversion as plan_conversion
    from codellama_convert.plan.options import Options as Options
    from codellama_convert.plan.ranks.job import ReverseJob as ReverseJob
    from codellama_convert.plan.ranks.job import plan_reverse as plan_reverse
    from codellama_convert.plan.ranks.options import ReverseOptions as ReverseOptions
    from codellama_convert.plan.run_options import RunOptions as RunOptions
    from codellama_convert.tensors import dtype_named as dtype_named
    from codellama_convert.tokenizer.code_llama import CodeLlamaTokenizer as CodeLlamaTokenizer
    from codellama_convert.verify.report import VerifyReport as VerifyReport
    from codellama_convert.verify.run import verify_output as verify_output


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
