"""Own what a checkpoint does not say of positions, and its release does.

By how much rotary frequencies are scaled (params.json says only that they are), and for how long a
context the model was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from codellama_convert.errors import ConfigError
from codellama_convert.model.config import ModelConfig
from codellama_convert.model.generations import LLAMA_3
from codellama_convert.model.releases import RELEASES, Family, Release, either

# Meta's own code takes 8 for every model, which is wrong for Llama 3.2 1B and 3B: Meta's answer in
# meta-llama/llama-models issue 241.
_USUAL, _OF_3_2 = 8.0, 32.0
# Copies of the hub's config.json have 8, and its base model, Llama 3.2 1B, has 32.
_DOUBTFUL = "Llama Guard 3 1B"

_UNKNOWN_CONTEXT = 2048  # the shortest that any of the families was trained for
_CODE_LLAMA_CONTEXT = 16384
_CODE_LLAMA_ROPE_THETA = 1e6
_LLAMA_3_CONTEXT, _SCALED_CONTEXT = 8192, 131072


@dataclass(frozen=True, slots=True)
class Scaling:
    """By how much rotary frequencies are scaled.

    Attributes:
        factor: By which the lowest are divided; None where they are not scaled.
        is_known: Whether that is sure, or was given.
        note: What the user should know, if anything.
    """

    factor: float | None
    is_known: bool = True
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """How many tokens a model was trained for.

    Attributes:
        length: The number that is written.
        is_known: Whether that is sure, or was given.
        note: What the user should know, if anything.
    """

    length: int
    is_known: bool = True
    note: str | None = None


def scaling_of(
    candidates: Sequence[Release], named: Family | None, config: ModelConfig, asked: float | None
) -> Scaling:
    """Find the factor: the one that was asked for, or that of the release.

    Args:
        candidates: The released models that it may be.
        named: What the folder's name says that it is of.
        config: The model.
        asked: What the user says.

    Returns:
        It; a note says what was assumed where it is not sure.

    Raises:
        ConfigError: If a factor is asked for, and the code of such models scales nothing.
    """
    if asked is not None:
        return _as_asked(candidates, config, float(asked))  # 32 and 32.0 are one in every file
    if not config.scaled_rope:
        return _left_out(candidates, named)
    alike = [one for one in candidates if one.tied == config.tie_word_embeddings]
    factors = {release.rope_scaling_factor for release in candidates}
    if len(factors) == 1 and alike and alike[0].name != _DOUBTFUL:
        return Scaling(factors.pop())
    guess = _OF_3_2 if named == "Llama 3.2" else _USUAL
    of_whom = alike or candidates
    if of_whom:
        guess = of_whom[0].rope_scaling_factor or guess
    why, as_in = _doubt(candidates, config)
    note = (
        f"the factor of the rotary scaling is not in the checkpoint{why}: assumed to be "
        f"{guess:g}{as_in}; set it with --rope_scaling_factor"
    )
    return Scaling(guess, is_known=False, note=note)


def _doubt(candidates: Sequence[Release], config: ModelConfig) -> tuple[str, str]:
    """Say why a factor is not known, and where the one that is assumed comes from."""
    if [release.name for release in candidates] == [_DOUBTFUL]:
        return "", (
            f", as in copies of the hub's config.json of {_DOUBTFUL}; Llama 3.2 1B, which it was "
            f"made of, has {_OF_3_2:g}"
        )
    if candidates and all(one.tied and not config.tie_word_embeddings for one in candidates):
        return f" ({either(candidates)} has no head of its own, and this model has one)", ""
    if candidates:
        return f" (the weights fit {either(candidates)})", ""
    return " (not a released model)", ""


def _left_out(candidates: Sequence[Release], named: Family | None) -> Scaling:
    """Follow a params.json that does not say that frequencies are scaled, as the release's are."""
    alike = candidates or [one for one in RELEASES if one.family == named]
    factor = next((one.rope_scaling_factor for one in alike), None)
    if factor is None:
        return Scaling(None)
    note = (
        f"params.json does not say that the rotary frequencies are scaled, as those of "
        f"{either(candidates) or named} are, by {factor:g}: they are written without; "
        f"--rope_scaling_factor {factor:g} scales them"
    )
    if candidates:
        note += f", for a context of {candidates[0].max_position_embeddings}"
    return Scaling(None, is_known=False, note=note)


def _as_asked(candidates: Sequence[Release], config: ModelConfig, asked: float) -> Scaling:
    if not config.scaled_rope and config.generation != LLAMA_3:
        raise ConfigError(
            f"--rope_scaling_factor {asked:g}, but the code of {config.generation.name} scales no "
            "rotary frequencies",
            hint="leave it out",
        )
    factors = {one.rope_scaling_factor for one in candidates}
    if candidates and asked not in factors:
        has = " or ".join(sorted("none" if one is None else f"{one:g}" for one in factors))
        note = (
            f"--rope_scaling_factor {asked:g} is written as asked for, but {either(candidates)} "
            f"has {has}"
        )
        return Scaling(asked, note=note)
    if config.scaled_rope and asked == 1:
        note = (
            "--rope_scaling_factor 1 leaves the rotary frequencies as they are, but params.json "
            "says that they are scaled"
        )
        return Scaling(asked, note=note)
    if config.scaled_rope:
        return Scaling(asked)
    note = (
        f"params.json does not say that the rotary frequencies are scaled; they are written as "
        f"scaled by {asked:g}, as asked for"
    )
    return Scaling(asked, note=note)


def context_of(
    candidates: Sequence[Release],
    named: Family | None,
    config: ModelConfig,
    scaling: Scaling,
    asked: int | None,
) -> Context:
    """Find the length: the one that was asked for, or that of the release.

    Args:
        candidates: The released models that it may be.
        named: What the folder's name says that it is of.
        config: The model.
        scaling: Of its rotary frequencies, on which the length depends.
        asked: What the user says.

    Returns:
        It; a note says what was assumed where it is not sure, and what a release has more.
    """
    found = _trained_for(candidates, named, config, scaling)
    if asked is None:
        return found
    if not (candidates and found.is_known and asked < found.length):
        return Context(asked)
    note = (
        f"max_position_embeddings {asked} is written as asked for, but {either(candidates)} has "
        f"{found.length}: programs cut or refuse texts that it could read"
    )
    return Context(asked, note=note)


def _trained_for(
    candidates: Sequence[Release], named: Family | None, config: ModelConfig, scaling: Scaling
) -> Context:
    lengths = sorted({release.max_position_embeddings for release in candidates})
    is_whole = scaling.factor is not None or not any(one.rope_scaling_factor for one in candidates)
    if len(lengths) == 1 and is_whole:
        return Context(lengths[0])
    if not is_whole:  # with the factor, the context is known too
        return Context(_LLAMA_3_CONTEXT, is_known=False, note=scaling.note)
    if lengths:
        guess = lengths[0]
        why = f"the weights fit {either(candidates)}"
    elif config.scaled_rope:
        guess, why = (
            _SCALED_CONTEXT,
            "not a released model, but its rope scaling is that of Llama 3.1",
        )
    elif config.generation == LLAMA_3:
        guess, why = _LLAMA_3_CONTEXT, "not a released model, but in Llama 3's layout"
    elif config.rope_theta == _CODE_LLAMA_ROPE_THETA:
        guess = _CODE_LLAMA_CONTEXT
        why = "not a released model, but its rope_theta is Code Llama's"
    else:
        guess = 4096 if named == "Llama 2" else _UNKNOWN_CONTEXT
        why = "not a released model"
    note = (
        f"max_position_embeddings is not in the checkpoint ({why}): assumed to be {guess}; "
        "set it with --max_position_embeddings"
    )
    return Context(guess, is_known=False, note=note)
