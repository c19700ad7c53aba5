"""Own the recognition of a released model, by its dimensions and its folder's name.

What the weights cannot tell (how long a context they were trained for, whether to chat with them)
comes from the table of releases. What cannot be known becomes a note, never a silent guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from codellama_convert.choices import Flavor
from codellama_convert.errors import ConfigError
from codellama_convert.model.config import ModelConfig
from codellama_convert.model.folder_name import read_folder_name
from codellama_convert.model.generations import LLAMA_3
from codellama_convert.model.releases import (
    RELEASES,
    SHAPES_BY_SIZE,
    Family,
    Release,
    SpecialNames,
    either,
    special_names_of,
)
from codellama_convert.model.rope_scaling import context_of, scaling_of


def wanted_flavor(model_size: str | None, flavor: Flavor | None) -> Flavor | None:
    """Return what the options say the model was tuned for: the "f" of "7Bf" says it too."""
    return flavor or ("chat" if model_size and model_size.endswith("f") else None)


@dataclass(frozen=True, slots=True)
class Recognised:
    """What a checkpoint was recognised as.

    Attributes:
        name: The released model, or a description where it is not one.
        family: Its generation; None where it is no released model, or one of several.
        flavor: What it was tuned for; None where nothing says so.
        max_position_embeddings: Context length to write.
        context_is_known: Whether it is, or was given; otherwise a note says what was written.
        rope_scaling_factor: By which the lowest rotary frequencies are divided; None where they
            are not scaled.
        scaling_is_known: As `context_is_known`, of the factor.
        special_names: Whose names the special tokens have, where the vocabulary is Llama 3's.
        notes: What could not be known, and which option sets it.
    """

    name: str
    family: Family | None
    flavor: Flavor | None
    max_position_embeddings: int
    context_is_known: bool
    rope_scaling_factor: float | None
    scaling_is_known: bool
    special_names: SpecialNames
    notes: tuple[str, ...]


def check_model_size(size: str, config: ModelConfig, n_ranks: int) -> str | None:
    """Compare `--model_size` with the checkpoint, which the tensors describe better.

    Args:
        size: As given.
        config: The model.
        n_ranks: Files found.

    Returns:
        A note where they differ, as in a tiny smoke checkpoint or in ranks that were merged; or
        None.
    """
    shape = SHAPES_BY_SIZE[size.removesuffix("f")]
    released = (shape.hidden_size, shape.num_hidden_layers)
    found = (config.hidden_size, config.num_hidden_layers)
    if released != found:
        return (
            f"--model_size {size} has hidden_size {released[0]} and {released[1]} layers, the "
            f"checkpoint {found[0]} and {found[1]}: the checkpoint is converted as it is"
        )
    if n_ranks not in (shape.n_ranks, *shape.other_n_ranks):
        return (
            f"--model_size {size} was released in {_files(shape.n_ranks)}, the checkpoint has "
            f"{_files(n_ranks)}: the tensors fit {n_ranks}"
        )
    return None


def _files(count: int) -> str:
    return f"{count} file" if count == 1 else f"{count} files"


def is_released(config: ModelConfig) -> bool:
    """Report whether a model has all the numbers of a released one."""
    return bool(fitting_releases(config))


def fitting_releases(config: ModelConfig) -> tuple[Release, ...]:
    """List the released models that have all numbers of a model, in the order of the table."""
    return tuple(release for release in RELEASES if _fits(release, config))


def recognise(
    config: ModelConfig,
    *,
    folder_name: str,
    flavor: Flavor | None = None,
    max_position_embeddings: int | None = None,
    rope_scaling_factor: float | None = None,
) -> Recognised:
    """Recognise a released model by its dimensions, and by its folder's name where they are shared.

    Args:
        config: The model.
        folder_name: The checkpoint folder's name.
        flavor: What the user says it was tuned for.
        max_position_embeddings: The context length that the user says it has.
        rope_scaling_factor: By which the user says that the rotary frequencies are scaled.

    Returns:
        What it is, with a note on everything that could not be known.

    Raises:
        ConfigError: If a Llama 3 does not have what is asked for.
    """
    family, named_flavor = read_folder_name(folder_name)
    candidates, notes = _candidates(config, family)
    if notes:
        named_flavor = None
    if config.generation == LLAMA_3:
        flavor, named_flavor = _of_llama_3(flavor), _of_llama_3(named_flavor)
        _refuse_other_flavor(candidates, flavor)
    candidates, wanted, flavor_notes = _of_flavor(candidates, flavor, named_flavor)
    notes += flavor_notes
    scaling = scaling_of(candidates, family, config, rope_scaling_factor)
    context = context_of(candidates, family, config, scaling, max_position_embeddings)
    notes += tuple(note for note in dict.fromkeys((context.note, scaling.note)) if note)
    families = {release.family for release in candidates}
    return Recognised(
        name=_describe(candidates, family),
        family=families.pop() if len(families) == 1 else None,
        flavor=wanted,
        max_position_embeddings=context.length,
        context_is_known=context.is_known,
        rope_scaling_factor=scaling.factor,
        scaling_is_known=scaling.is_known,
        special_names=_special_names(candidates, family, config),
        notes=notes + _epsilon_notes(candidates, config),
    )


def _candidates(
    config: ModelConfig, family: Family | None
) -> tuple[tuple[Release, ...], tuple[str, ...]]:
    """List the released models that it may be, by its numbers and the family that is named."""
    fitting = fitting_releases(config)
    of_family = tuple(release for release in fitting if family in (None, release.family))
    if not of_family and not config.scaled_rope:
        # A name says more than a params.json without a key: Guard 3 8B's may never have had it.
        of_family = tuple(
            release
            for release in RELEASES
            if release.family == family and _has_numbers(release, config)
        )
    if of_family or not fitting:
        return of_family, ()
    note = f"the folder's name says {family}, but the weights are those of {fitting[0].family}"
    return fitting, (note,)


def _special_names(
    candidates: tuple[Release, ...], family: Family | None, config: ModelConfig
) -> SpecialNames:
    """Take the names from the release or the folder's name; else params.json distinguishes 3 from later."""
    if candidates or family:
        return special_names_of(candidates[0].family if candidates else family)
    return "3.1" if config.scaled_rope else "3"


def _epsilon_notes(candidates: tuple[Release, ...], config: ModelConfig) -> tuple[str, ...]:
    if len(candidates) != 1 or config.rms_norm_eps == candidates[0].norm_epsilons[0]:
        return ()
    note = (
        f"params.json says norm_eps {config.rms_norm_eps}; Meta corrected it to "
        f"{candidates[0].norm_epsilons[0]} in later downloads of {candidates[0].name}"
    )
    return (note,)


def _fits(release: Release, config: ModelConfig) -> bool:
    is_scaled = release.rope_scaling_factor is not None
    return is_scaled == config.scaled_rope and _has_numbers(release, config)


def _has_numbers(release: Release, config: ModelConfig) -> bool:
    shape = release.shape
    return (
        shape.hidden_size == config.hidden_size
        and shape.num_hidden_layers == config.num_hidden_layers
        and shape.num_attention_heads == config.num_attention_heads
        and shape.num_key_value_heads == config.num_key_value_heads
        and shape.intermediate_size == config.intermediate_size
        and release.vocab_size == config.vocab_size
        and release.rope_theta == config.rope_theta
        and config.rms_norm_eps in release.norm_epsilons
    )


def _of_llama_3(flavor: Flavor | None) -> Flavor | None:
    """Translate the name that Llama 2 has for a model tuned for dialogue."""
    return "instruct" if flavor == "chat" else flavor


def _refuse_other_flavor(candidates: Sequence[Release], flavor: Flavor | None) -> None:
    """Refuse a variant that would take the template and the ends of turns from a known model."""
    flavors = dict.fromkeys(release.flavor for release in candidates)
    if candidates and flavor not in (None, "base", *flavors):
        raise ConfigError(
            f"--variant {flavor} is not a variant of {either(candidates)}",
            hint=f"it may be {' or '.join(flavors)}; without --variant, the folder's name decides",
        )


def _of_flavor(
    candidates: tuple[Release, ...], flavor: Flavor | None, named: Flavor | None
) -> tuple[tuple[Release, ...], Flavor | None, tuple[str, ...]]:
    """Keep the candidates of a flavour, asked for or named; give them, the flavour, and notes."""
    flavors = {release.flavor for release in candidates}
    wanted = flavor or named
    if wanted == "base" and flavor is None and len(flavors) == 1 and wanted not in flavors:
        (only,) = flavors
        note = (
            f"the folder's name does not say what it was tuned for, and the weights are those of "
            f"{either(candidates)}: taken for it; if it is not, say so with --variant base"
        )
        return candidates, only, (note,)
    if wanted is not None:
        fitting = tuple(release for release in candidates if release.flavor == wanted)
        if fitting or not candidates:
            return fitting, wanted, ()
        asked = f"{flavor} was asked for" if flavor else f"the folder's name says {named}"
        note = f"{asked}, but the weights are those of {either(candidates)}"
        return candidates, wanted, (note,)
    if len(flavors) < 2:
        return candidates, next(iter(flavors), None), ()
    note = (
        f"the weights fit {either(candidates)}: no chat template is written; if it was tuned "
        "for dialogue, say so with --variant"
    )
    return candidates, None, (note,)


def _describe(candidates: tuple[Release, ...], family: Family | None) -> str:
    if not candidates:
        named = f" ({family} by its folder's name)" if family else ""
        return f"not a released model{named}"
    return either(candidates)
