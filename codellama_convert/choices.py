"""Own the words and numbers that options may be, with no table or plan: `--help` lists them all."""

from __future__ import annotations

from typing import Literal, get_args

# "guard" judges texts: it is asked with a policy, not in a dialogue.
Flavor = Literal["base", "python", "instruct", "chat", "guard"]
FLAVORS: tuple[Flavor, ...] = get_args(Flavor)
# `--model_size` as the reference converter spells it: "f" is Llama 2's chat tuning. The sizes are
# those of `RELEASES`.
MODEL_SIZES: tuple[str, ...] = (
    "1B", "3B", "7B", "8B", "13B", "30B", "34B", "65B", "70B", "405B", "7Bf", "13Bf", "70Bf",
)  # fmt: skip
TOKENIZER_ONLY = "tokenizer_only"
# How a dtype of `DTYPES` may be spelled on a command line; `dtype_named` reads codes too.
DTYPE_NAMES: tuple[str, ...] = (
    "bfloat16", "float16", "float32", "bf16", "fp16", "fp32", "half", "float",
)  # fmt: skip
TokenizerClass = Literal[
    "CodeLlamaTokenizer", "CodeLlamaTokenizerFast", "LlamaTokenizer", "PreTrainedTokenizerFast"
]
TOKENIZER_CLASSES: tuple[TokenizerClass, ...] = get_args(TokenizerClass)
# The versions of PyTorch whose records and order are known. Meta's own files have the layout of 1.13.
TorchLayout = Literal["1.13", "2.13"]
TORCH_LAYOUTS: tuple[TorchLayout, ...] = get_args(TorchLayout)
ChecksumMode = Literal["off", "warn", "strict"]
CHECKSUM_MODES: tuple[ChecksumMode, ...] = get_args(ChecksumMode)
DEFAULT_CHECKSUMS: ChecksumMode = "off"

DEFAULT_MAX_SHARD_BYTES = 5_000_000_000  # transformers' "5GB", decimal
DEFAULT_MAX_RAM_BYTES = 32_000_000
MAX_WORKERS = 256
MAX_RANKS = 64  # the key and value heads of Llama 1 65B; no model has more
LARGEST_SCALING = 1024.0  # 8 and 32 in releases; below 1, transformers 4 warns
