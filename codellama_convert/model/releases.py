"""Own the table of released models: one row a model, one source a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from codellama_convert.choices import Flavor

Family = Literal[
    "Llama 1", "Llama 2", "Code Llama", "Llama 3", "Llama 3.1", "Llama 3.2", "Llama 3.3",
    "Llama Guard 2", "Llama Guard 3",
]  # fmt: skip
# The names of special tokens changed with Llama 3.1; their ids did not.
SpecialNames = Literal["3", "3.1"]


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers that all models of one size and generation share.

    Attributes:
        n_ranks: Files it was released in (Meta: "MP"); of several numbers, the first.
        hidden_size: Width of the residual stream.
        num_hidden_layers: Transformer blocks.
        num_attention_heads: Query heads.
        num_key_value_heads: Key and value heads.
        intermediate_size: Width of the feed-forward network.
        other_n_ranks: Other numbers of files it was released in.
    """

    n_ranks: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    other_n_ranks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Release:
    """One released model.

    Attributes:
        name: As people call it.
        family: Its generation.
        flavor: What it was tuned for.
        size: As `--model_size` spells it.
        shape: Its dimensions.
        norm_epsilons: Every value its params.json was released with, the right one first.
        rope_theta: Base of the rotary frequencies.
        vocab_size: Rows of the embedding.
        max_position_embeddings: Context length it was trained for.
        source: Where the row comes from.
        rope_scaling_factor: By which its lowest rotary frequencies are divided; None where they
            are not scaled.
        tied: Whether its head is the embedding.
    """

    name: str
    family: Family
    flavor: Flavor
    size: str
    shape: Shape
    norm_epsilons: tuple[float, ...]
    rope_theta: float
    vocab_size: int
    max_position_embeddings: int
    source: str
    rope_scaling_factor: float | None = None
    tied: bool = False


_7B = Shape(1, 4096, 32, 32, 32, 11008)
_13B = Shape(2, 5120, 40, 40, 40, 13824)
_30B = Shape(4, 6656, 60, 52, 52, 17920)
_34B = Shape(4, 8192, 48, 64, 8, 22016)
_65B = Shape(8, 8192, 80, 64, 64, 22016)
_70B = Shape(8, 8192, 80, 64, 8, 28672)
_1B_OF_3 = Shape(1, 2048, 16, 32, 8, 8192)
_3B_OF_3 = Shape(1, 3072, 28, 24, 8, 8192)
_8B_OF_3 = Shape(1, 4096, 32, 32, 8, 14336)
_405B_OF_3 = Shape(8, 16384, 126, 128, 8, 53248, other_n_ranks=(16,))

_LLAMA_1_PARAMS = "params.json of the release, rebuilt byte for byte from its published MD5"
_LLAMA_2_PARAMS = "params.json of the release; context: transformers issue 24986"
_LLAMA_2_7B_CHAT = "meta-llama/llama issue 771: first released with 1e-06, corrected to 1e-05"
_CODE_LLAMA = "meta-llama/codellama README and MODEL_CARD; codellama hub configs"
_CODE_LLAMA_70B = "meta-llama/codellama issue 188: the answer of Meta's jgehring"
_LLAMA_3 = "meta-llama/llama-models sku_list.py; meta-llama/Meta-Llama-3-8B config.json"
_LLAMA_3_1 = "meta-llama/llama-models sku_list.py; meta-llama/Llama-3.1-8B-Instruct config.json"
_LLAMA_3_2 = (
    "meta-llama/llama-models sku_list.py, issues 166 and 241 for the factor, 172 for the head"
)
_LLAMA_GUARD = "meta-llama/llama-models sku_list.py; copies of the hub's config.json"

# One row a released model, one source a row. Adding a model means adding a row.
RELEASES: tuple[Release, ...] = (
    Release("Llama 7B", "Llama 1", "base", "7B", _7B, (1e-6,), 1e4, 32000, 2048, _LLAMA_1_PARAMS),
    Release("Llama 13B", "Llama 1", "base", "13B", _13B, (1e-6,), 1e4, 32000, 2048, _LLAMA_1_PARAMS),
    Release("Llama 30B", "Llama 1", "base", "30B", _30B, (1e-6,), 1e4, 32000, 2048, _LLAMA_1_PARAMS),
    Release("Llama 65B", "Llama 1", "base", "65B", _65B, (1e-5,), 1e4, 32000, 2048, _LLAMA_1_PARAMS),
    Release("Llama 2 7B", "Llama 2", "base", "7B", _7B, (1e-5,), 1e4, 32000, 4096, _LLAMA_2_PARAMS),
    Release("Llama 2 13B", "Llama 2", "base", "13B", _13B, (1e-5,), 1e4, 32000, 4096, _LLAMA_2_PARAMS),
    Release("Llama 2 70B", "Llama 2", "base", "70B", _70B, (1e-5,), 1e4, 32000, 4096, _LLAMA_2_PARAMS),
    Release("Llama 2 7B Chat", "Llama 2", "chat", "7B", _7B, (1e-5, 1e-6), 1e4, 32000, 4096, _LLAMA_2_7B_CHAT),
    Release("Llama 2 13B Chat", "Llama 2", "chat", "13B", _13B, (1e-5,), 1e4, 32000, 4096, _LLAMA_2_PARAMS),
    Release("Llama 2 70B Chat", "Llama 2", "chat", "70B", _70B, (1e-5,), 1e4, 32000, 4096, _LLAMA_2_PARAMS),
    Release("Code Llama 7B", "Code Llama", "base", "7B", _7B, (1e-5,), 1e6, 32016, 16384, _CODE_LLAMA),
    Release("Code Llama 7B Python", "Code Llama", "python", "7B", _7B, (1e-5,), 1e6, 32000, 16384, _CODE_LLAMA),
    Release("Code Llama 7B Instruct", "Code Llama", "instruct", "7B", _7B, (1e-5,), 1e6, 32016, 16384, _CODE_LLAMA),
    Release("Code Llama 13B", "Code Llama", "base", "13B", _13B, (1e-5,), 1e6, 32016, 16384, _CODE_LLAMA),
    Release("Code Llama 13B Python", "Code Llama", "python", "13B", _13B, (1e-5,), 1e6, 32000, 16384, _CODE_LLAMA),
    Release("Code Llama 13B Instruct", "Code Llama", "instruct", "13B", _13B, (1e-5,), 1e6, 32016, 16384, _CODE_LLAMA),
    Release("Code Llama 34B", "Code Llama", "base", "34B", _34B, (1e-5,), 1e6, 32000, 16384, _CODE_LLAMA),
    Release("Code Llama 34B Python", "Code Llama", "python", "34B", _34B, (1e-5,), 1e6, 32000, 16384, _CODE_LLAMA),
    Release("Code Llama 34B Instruct", "Code Llama", "instruct", "34B", _34B, (1e-5,), 1e6, 32000, 16384, _CODE_LLAMA),
    Release("Code Llama 70B", "Code Llama", "base", "70B", _70B, (1e-5,), 1e6, 32016, 16384, _CODE_LLAMA_70B),
    Release("Code Llama 70B Python", "Code Llama", "python", "70B", _70B, (1e-5,), 1e4, 32016, 4096, _CODE_LLAMA_70B),
    Release("Code Llama 70B Instruct", "Code Llama", "instruct", "70B", _70B, (1e-5,), 1e4, 32016, 4096, _CODE_LLAMA_70B),
    Release("Llama 3 8B", "Llama 3", "base", "8B", _8B_OF_3, (1e-5,), 5e5, 128256, 8192, _LLAMA_3),
    Release("Llama 3 8B Instruct", "Llama 3", "instruct", "8B", _8B_OF_3, (1e-5,), 5e5, 128256, 8192, _LLAMA_3),
    Release("Llama 3 70B", "Llama 3", "base", "70B", _70B, (1e-5,), 5e5, 128256, 8192, _LLAMA_3),
    Release("Llama 3 70B Instruct", "Llama 3", "instruct", "70B", _70B, (1e-5,), 5e5, 128256, 8192, _LLAMA_3),
    Release("Llama 3.1 8B", "Llama 3.1", "base", "8B", _8B_OF_3, (1e-5,), 5e5, 128256, 131072, _LLAMA_3_1, 8.0),
    Release("Llama 3.1 8B Instruct", "Llama 3.1", "instruct", "8B", _8B_OF_3, (1e-5,), 5e5, 128256, 131072, _LLAMA_3_1, 8.0),
    Release("Llama 3.1 70B", "Llama 3.1", "base", "70B", _70B, (1e-5,), 5e5, 128256, 131072, _LLAMA_3_1, 8.0),
    Release("Llama 3.1 70B Instruct", "Llama 3.1", "instruct", "70B", _70B, (1e-5,), 5e5, 128256, 131072, _LLAMA_3_1, 8.0),
    Release("Llama 3.1 405B", "Llama 3.1", "base", "405B", _405B_OF_3, (1e-5,), 5e5, 128256, 131072, _LLAMA_3_1, 8.0),
    Release("Llama 3.1 405B Instruct", "Llama 3.1", "instruct", "405B", _405B_OF_3, (1e-5,), 5e5, 128256, 131072, _LLAMA_3_1, 8.0),
    Release("Llama 3.2 1B", "Llama 3.2", "base", "1B", _1B_OF_3, (1e-5,), 5e5, 128256, 131072, _LLAMA_3_2, 32.0, tied=True),
    Release("Llama 3.2 1B Instruct", "Llama 3.2", "instruct", "1B", _1B_OF_3, (1e-5,), 5e5, 128256, 131072, _LLAMA_3_2, 32.0, tied=True),
    Release("Llama 3.2 3B", "Llama 3.2", "base", "3B", _3B_OF_3, (1e-5,), 5e5, 128256, 131072, _LLAMA_3_2, 32.0, tied=True),
    Release("Llama 3.2 3B Instruct", "Llama 3.2", "instruct", "3B", _3B_OF_3, (1e-5,), 5e5, 128256, 131072, _LLAMA_3_2, 32.0, tied=True),
    Release("Llama 3.3 70B Instruct", "Llama 3.3", "instruct", "70B", _70B, (1e-5,), 5e5, 128256, 131072, _LLAMA_3_1, 8.0),
    Release("Llama Guard 2 8B", "Llama Guard 2", "guard", "8B", _8B_OF_3, (1e-5,), 5e5, 128256, 8192, _LLAMA_GUARD),
    Release("Llama Guard 3 8B", "Llama Guard 3", "guard", "8B", _8B_OF_3, (1e-5,), 5e5, 128256, 131072, _LLAMA_GUARD, 8.0),
    Release("Llama Guard 3 1B", "Llama Guard 3", "guard", "1B", _1B_OF_3, (1e-5,), 5e5, 128256, 131072, _LLAMA_GUARD, 8.0),
)  # fmt: skip

# params.json by family and size, where the release's own bytes are known. Llama 1: rebuilt from the
# MD5s that meta-llama/llama published; Llama 2 7B: its MD5 is in its checklist.chk; 13B and 70B as
# quoted by pytorch/xla and llama.cpp. Llama 3: rebuilt from published MD5s and git's sums of copies;
# that of 8B is of Instruct, the base model's has the same keys in another order.
PARAMS_TEXTS: dict[tuple[Family, str], str] = {
    ("Llama 1", "7B"): '{"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-06, "vocab_size": -1}',
    ("Llama 1", "13B"): '{"dim": 5120, "multiple_of": 256, "n_heads": 40, "n_layers": 40, "norm_eps": 1e-06, "vocab_size": -1}',
    ("Llama 1", "30B"): '{"dim": 6656, "multiple_of": 256, "n_heads": 52, "n_layers": 60, "norm_eps": 1e-06, "vocab_size": -1}',
    ("Llama 1", "65B"): '{"dim": 8192, "multiple_of": 256, "n_heads": 64, "n_layers": 80, "norm_eps": 1e-05, "vocab_size": -1}',
    ("Llama 2", "7B"): '{"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-05, "vocab_size": -1}\n',
    ("Llama 2", "13B"): '{"dim": 5120, "multiple_of": 256, "n_heads": 40, "n_layers": 40, "norm_eps": 1e-05, "vocab_size": -1}\n',
    ("Llama 2", "70B"): '{"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64, "n_kv_heads": 8, "n_layers": 80, "norm_eps": 1e-05, "vocab_size": -1}',
    ("Llama 3.1", "8B"): '{"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256, "ffn_dim_multiplier": 1.3, "multiple_of": 1024, "norm_eps": 1e-05, "rope_theta": 500000.0, "use_scaled_rope": true}',
    ("Llama 3.1", "70B"): '{\n  "dim": 8192,\n  "n_layers": 80,\n  "n_heads": 64,\n  "n_kv_heads": 8,\n  "vocab_size": 128256,\n  "ffn_dim_multiplier": 1.3,\n  "multiple_of": 4096,\n  "norm_eps": 1e-05,\n  "rope_theta": 500000.0,\n  "use_scaled_rope": true\n}',
    ("Llama 3.2", "3B"): '{\n  "dim": 3072,\n  "n_layers": 28,\n  "n_heads": 24,\n  "n_kv_heads": 8,\n  "vocab_size": 128256,\n  "ffn_dim_multiplier": 1.0,\n  "multiple_of": 256,\n  "norm_eps": 1e-05,\n  "rope_theta": 500000.0,\n  "use_scaled_rope": true\n}',
}  # fmt: skip

SHAPES_BY_SIZE = {release.size: release.shape for release in RELEASES}


def either(releases: Sequence[Release]) -> str:
    """Name released models of which it is one, such as "Llama 2 7B or Llama 2 7B Chat"."""
    return " or ".join(", ".join(release.name for release in releases).rsplit(", ", 1))


def special_names_of(family: Family | None) -> SpecialNames:
    """Say whose names the special tokens of a family of Llama 3 have; those of 3.1 where unsure."""
    return "3" if family in ("Llama 3", "Llama Guard 2") else "3.1"
