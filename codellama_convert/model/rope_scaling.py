"""Own by how much rotary frequencies are scaled: params.json says only that they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from codellama_convert.errors import ConfigError
from codellama_convert.model.config import ModelConfig
from codellama_convert.model.generations import LLAMA_3
from codellama_convert.model.releases import Family, Release

# Meta's own code takes 8 for every model, which is wrong for Llama 3.2 1B and 3B: Meta's answer in
# meta-llama/llama-models issue 241.
_USUAL, _OF_3_2 = 8.0, 32.0
# Copies of the hub's config.json have 8, and its base model, Llama 3.2 1B, has 32.
_DOUBTFUL = "Llama Guard 3 1B"


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
        return _as_asked(config, float(asked))  # 32 and 32.0 are one in every file
    if not config.scaled_rope:
        return Scaling(None)
    factors = {release.rope_scaling_factor for release in candidates}
    if len(factors) == 1 and [release.name for release in candidates] != [_DOUBTFUL]:
        return Scaling(factors.pop())
    names = " or ".join(release.name for release in candidates)
    why = f"the weights fit {names}" if candidates else "not a released model"
    alike = [one for one in candidates if one.tied == config.tie_word_embeddings] or candidates
    guess = _OF_3_2 if named == "Llama 3.2" else _USUAL
    if alike:
        guess = alike[0].rope_scaling_factor or guess
    note = (
        f"the factor of the rotary scaling is not in the checkpoint ({why}): assumed to be "
        f"{guess:g}; set it with --rope_scaling_factor"
    )
    return Scaling(guess, is_known=False, note=note)


def _as_asked(config: ModelConfig, asked: float) -> Scaling:
    if config.scaled_rope:
        return Scaling(asked)
    if config.generation != LLAMA_3:
        raise ConfigError(
            f"--rope_scaling_factor {asked:g}, but the code of {config.generation.name} scales no "
            "rotary frequencies",
            hint="leave it out",
        )
    note = (
        f"params.json does not say that the rotary frequencies are scaled; they are written as "
        f"scaled by {asked:g}, as asked for"
    )
    return Scaling(asked, note=note)
