"""Own the table of released models and the recognition of one; know nothing of files or tensors.

What the weights cannot tell (how long a context they were trained for, whether to chat with them)
comes from here. What cannot be known becomes a note, never a silent guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from codellama_convert.errors import ConfigError
from codellama_convert.model.config import ModelConfig

Family = Literal["Llama 1", "Llama 2", "Code Llama"]
Flavor = Literal["base", "python", "instruct", "chat"]
FLAVORS: tuple[Flavor, ...] = ("base", "python", "instruct", "chat")


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers that all models of one size and generation share.

    Attributes:
        n_ranks: Files it was released in (Meta: "MP").
        hidden_size: Width of the residual stream.
        num_hidden_layers: Transformer blocks.
        num_attention_heads: Query heads.
        num_key_value_heads: Key and value heads.
        intermediate_size: Width of the feed-forward network.
    """

    n_ranks: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int


@dataclass(frozen=True, slots=True)
class Variant:
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


_7B = Shape(1, 4096, 32, 32, 32, 11008)
_13B = Shape(2, 5120, 40, 40, 40, 13824)
_30B = Shape(4, 6656, 60, 52, 52, 17920)
_34B = Shape(4, 8192, 48, 64, 8, 22016)
_65B = Shape(8, 8192, 80, 64, 64, 22016)
_70B = Shape(8, 8192, 80, 64, 8, 28672)

_LLAMA_1_PARAMS = "params.json of the release, rebuilt byte for byte from its published MD5"
_LLAMA_2_PARAMS = "params.json of the release; context: transformers issue 24986"
_LLAMA_2_7B_CHAT = "meta-llama/llama issue 771: first released with 1e-06, corrected to 1e-05"
_CODE_LLAMA = "meta-llama/codellama README and MODEL_CARD; codellama hub configs"
_CODE_LLAMA_70B = "meta-llama/codellama issue 188: the answer of Meta's jgehring"

# One row a released model, one source a row. Adding a model means adding a row.
VARIANTS: tuple[Variant, ...] = (
    Variant("Llama 7B", "Llama 1", "base", "7B", _7B, (1e-6,), 1e4, 32000, 2048, _LLAMA_1_PARAMS),
    Variant("Llama 13B", "Llama 1", "base", "13B", _13B, (1e-6,), 1e4, 32000, 2048, _LLAMA_1_PARAMS),
    Variant("Llama 30B", "Llama 1", "base", "30B", _30B, (1e-6,), 1e4, 32000, 2048, _LLAMA_1_PARAMS),
    Variant("Llama 65B", "Llama 1", "base", "65B", _65B, (1e-5,), 1e4, 32000, 2048, _LLAMA_1_PARAMS),
    Variant("Llama 2 7B", "Llama 2", "base", "7B", _7B, (1e-5,), 1e4, 32000, 4096, _LLAMA_2_PARAMS),
    Variant("Llama 2 13B", "Llama 2", "base", "13B", _13B, (1e-5,), 1e4, 32000, 4096, _LLAMA_2_PARAMS),
    Variant("Llama 2 70B", "Llama 2", "base", "70B", _70B, (1e-5,), 1e4, 32000, 4096, _LLAMA_2_PARAMS),
    Variant("Llama 2 7B Chat", "Llama 2", "chat", "7B", _7B, (1e-5, 1e-6), 1e4, 32000, 4096, _LLAMA_2_7B_CHAT),
    Variant("Llama 2 13B Chat", "Llama 2", "chat", "13B", _13B, (1e-5,), 1e4, 32000, 4096, _LLAMA_2_PARAMS),
    Variant("Llama 2 70B Chat", "Llama 2", "chat", "70B", _70B, (1e-5,), 1e4, 32000, 4096, _LLAMA_2_PARAMS),
    Variant("Code Llama 7B", "Code Llama", "base", "7B", _7B, (1e-5,), 1e6, 32016, 16384, _CODE_LLAMA),
    Variant("Code Llama 7B Python", "Code Llama", "python", "7B", _7B, (1e-5,), 1e6, 32000, 16384, _CODE_LLAMA),
    Variant("Code Llama 7B Instruct", "Code Llama", "instruct", "7B", _7B, (1e-5,), 1e6, 32016, 16384, _CODE_LLAMA),
    Variant("Code Llama 13B", "Code Llama", "base", "13B", _13B, (1e-5,), 1e6, 32016, 16384, _CODE_LLAMA),
    Variant("Code Llama 13B Python", "Code Llama", "python", "13B", _13B, (1e-5,), 1e6, 32000, 16384, _CODE_LLAMA),
    Variant("Code Llama 13B Instruct", "Code Llama", "instruct", "13B", _13B, (1e-5,), 1e6, 32016, 16384, _CODE_LLAMA),
    Variant("Code Llama 34B", "Code Llama", "base", "34B", _34B, (1e-5,), 1e6, 32000, 16384, _CODE_LLAMA),
    Variant("Code Llama 34B Python", "Code Llama", "python", "34B", _34B, (1e-5,), 1e6, 32000, 16384, _CODE_LLAMA),
    Variant("Code Llama 34B Instruct", "Code Llama", "instruct", "34B", _34B, (1e-5,), 1e6, 32000, 16384, _CODE_LLAMA),
    Variant("Code Llama 70B", "Code Llama", "base", "70B", _70B, (1e-5,), 1e6, 32016, 16384, _CODE_LLAMA_70B),
    Variant("Code Llama 70B Python", "Code Llama", "python", "70B", _70B, (1e-5,), 1e4, 32016, 4096, _CODE_LLAMA_70B),
    Variant("Code Llama 70B Instruct", "Code Llama", "instruct", "70B", _70B, (1e-5,), 1e4, 32016, 4096, _CODE_LLAMA_70B),
)  # fmt: skip

_SIZES = {variant.size: variant.shape for variant in VARIANTS}
# `--model_size` as the reference converter spells it: "f" is Llama 2's chat tuning.
MODEL_SIZES: tuple[str, ...] = (
    *sorted(_SIZES, key=lambda size: int(size.removesuffix("B"))),
    "7Bf",
    "13Bf",
    "70Bf",
)

_UNKNOWN_CONTEXT = 2048  # the shortest that any of the families was trained for
_CODE_LLAMA_CONTEXT = 16384
_CODE_LLAMA_ROPE_THETA = 1e6


@dataclass(frozen=True, slots=True)
class Identity:
    """What a checkpoint was recognised as.

    Attributes:
        name: The released model, or a description where it is none.
        family: Its generation; None where it is no released model, or one of several.
        flavor: What it was tuned for; None where nothing tells.
        max_position_embeddings: Context length to write.
        context_is_known: Whether it is, or was given; otherwise a note says what was written.
        notes: What could not be known, and which option sets it.
    """

    name: str
    family: Family | None
    flavor: Flavor | None
    max_position_embeddings: int
    context_is_known: bool
    notes: tuple[str, ...]


def read_folder_name(name: str) -> tuple[Family | None, Flavor | None]:
    """Read the family and the flavour off a folder's name.

    Args:
        name: Such as "CodeLlama-7b-Instruct", "llama-2-13b-chat" or "30B".

    Returns:
        What the name tells; None where it tells nothing.
    """
    words = re.sub(r"[^a-z0-9]+", "-", name.lower())
    family: Family | None = None
    if re.search(r"code-?llama", words):
        family = "Code Llama"
    elif re.search(r"llama-?2(-|$)", words):
        family = "Llama 2"
    elif re.search(r"llama-?1(-|$)", words) or re.fullmatch(r"(7|13|30|33|65)b", words):
        family = "Llama 1"  # its download script names a folder by the size alone
    found = re.search(r"(?:^|-)(python|instruct|chat)(?:-|$)", words)
    if found:
        return family, next(flavor for flavor in FLAVORS if flavor == found[1])
    return family, None if family is None else "base"


def check_model_size(size: str, config: ModelConfig, n_ranks: int) -> str | None:
    """Hold `--model_size` against the checkpoint.

    Args:
        size: As given.
        config: The model.
        n_ranks: Files found.

    Returns:
        A note where only the dimensions differ (as in a tiny smoke checkpoint), or None.

    Raises:
        ConfigError: If that size was released in another number of files.
    """
    shape = _SIZES[size.removesuffix("f")]
    if shape.n_ranks != n_ranks:
        raise ConfigError(
            f"--model_size {size} has {shape.n_ranks} consolidated.NN.pth, "
            f"but the checkpoint has {n_ranks}",
            hint="leave --model_size out: what the checkpoint is, is read from it",
        )
    if (
        shape.hidden_size == config.hidden_size
        and shape.num_hidden_layers == config.num_hidden_layers
    ):
        return None
    return (
        f"--model_size {size} has hidden_size {shape.hidden_size} and {shape.num_hidden_layers} "
        f"layers, the checkpoint {config.hidden_size} and {config.num_hidden_layers}: "
        "converting what is there"
    )


def identify(
    config: ModelConfig,
    *,
    folder_name: str,
    flavor: Flavor | None = None,
    max_position_embeddings: int | None = None,
) -> Identity:
    """Recognise a released model by its dimensions, and by its folder's name where they are shared.

    Args:
        config: The model.
        folder_name: The checkpoint folder's name.
        flavor: What the user says it was tuned for.
        max_position_embeddings: The context length that the user says it has.

    Returns:
        What it is, with a note on everything that could not be known.
    """
    family, named_flavor = read_folder_name(folder_name)
    notes: list[str] = []
    candidates = tuple(variant for variant in VARIANTS if _fits(variant, config))
    of_family = tuple(v for v in candidates if family in (None, v.family))
    if candidates and not of_family:
        notes.append(
            f"the folder's name says {family}, but the weights are those of {candidates[0].family}"
        )
        named_flavor = None
    candidates = of_family or candidates
    candidates, wanted, flavor_notes = _of_flavor(candidates, flavor, named_flavor)
    notes += flavor_notes
    context, context_note = max_position_embeddings, None
    if context is None:
        context, context_note = _context(candidates, family, config)
    if context_note is not None:
        notes.append(context_note)
    if len(candidates) == 1 and config.rms_norm_eps != candidates[0].norm_epsilons[0]:
        notes.append(
            f"params.json says norm_eps {config.rms_norm_eps}; Meta corrected it to "
            f"{candidates[0].norm_epsilons[0]} in later downloads of {candidates[0].name}"
        )
    families = {variant.family for variant in candidates}
    return Identity(
        name=_describe(candidates, family),
        family=families.pop() if len(families) == 1 else None,
        flavor=wanted,
        max_position_embeddings=context,
        context_is_known=context_note is None,
        notes=tuple(notes),
    )


def _fits(variant: Variant, config: ModelConfig) -> bool:
    shape = variant.shape
    return (
        shape.hidden_size == config.hidden_size
        and shape.num_hidden_layers == config.num_hidden_layers
        and shape.num_attention_heads == config.num_attention_heads
        and shape.num_key_value_heads == config.num_key_value_heads
        and shape.intermediate_size == config.intermediate_size
        and variant.vocab_size == config.vocab_size
        and variant.rope_theta == config.rope_theta
        and config.rms_norm_eps in variant.norm_epsilons
    )


def _of_flavor(
    candidates: tuple[Variant, ...], flavor: Flavor | None, named: Flavor | None
) -> tuple[tuple[Variant, ...], Flavor | None, tuple[str, ...]]:
    """Keep the candidates of a flavour, asked for or named; give them, the flavour, and notes."""
    wanted = flavor or named
    if wanted is not None:
        fitting = tuple(variant for variant in candidates if variant.flavor == wanted)
        if fitting or not candidates:
            return fitting, wanted, ()
        asked = f"{flavor} was asked for" if flavor else f"the folder's name says {named}"
        note = f"{asked}, but the weights are those of {_either(candidates)}"
        return candidates, wanted, (note,)
    flavors = {variant.flavor for variant in candidates}
    if len(flavors) < 2:
        return candidates, next(iter(flavors), None), ()
    note = (
        f"the weights fit {_either(candidates)}: no chat template is written; if it was tuned "
        "for dialogue, say so with --variant"
    )
    return candidates, None, (note,)


def _context(
    candidates: tuple[Variant, ...], family: Family | None, config: ModelConfig
) -> tuple[int, str | None]:
    """Give the context length, and a note unless every candidate has the same."""
    lengths = sorted({variant.max_position_embeddings for variant in candidates})
    if len(lengths) == 1:
        return lengths[0], None
    if lengths:
        guess = lengths[0]
        why = f"the weights fit {_either(candidates)}"
    elif config.rope_theta == _CODE_LLAMA_ROPE_THETA:
        guess = _CODE_LLAMA_CONTEXT
        why = "not a released model, but its rope_theta is Code Llama's"
    else:
        guess = 4096 if family == "Llama 2" else _UNKNOWN_CONTEXT
        why = "not a released model"
    note = (
        f"max_position_embeddings is not in the checkpoint ({why}): taken as {guess}; "
        "set it with --max_position_embeddings"
    )
    return guess, note


def _describe(candidates: tuple[Variant, ...], family: Family | None) -> str:
    if not candidates:
        return (
            f"no released model ({family} by its folder's name)" if family else "no released model"
        )
    return _either(candidates)


def _either(candidates: tuple[Variant, ...]) -> str:
    return " or ".join(variant.name for variant in candidates)
