"""Own the rotary settings of config.json: their base and scaling, where transformers 4 and 5 have them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from codellama_convert.errors import ConfigError, shown
from codellama_convert.model.foreign_params import SUPPORTED_HINT
from codellama_convert.model.settings import Settings

_ONE_VALUE = "keep the one that the model was trained with"
# meta-llama/llama-models models/llama3/model.py, `apply_scaling`: Meta's code has these numbers, and
# no way to say others.
SCALING = {
    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
FACTORS = (8.0, 32.0)  # of Llama 3.1 and 3.3, and of 3.2
_FACTOR_OF_METAS_CODE = (
    8.0  # for every model; of 3.2 it is wrong (meta-llama/llama-models issue 241)
)


@dataclass(frozen=True, slots=True)
class RopeSettings:
    """What a config.json says of the rotary frequencies.

    Attributes:
        theta: Their base; None where it says nothing.
        scaling_factor: By which the lowest are divided, as Llama 3.1 does it; None where they are
            not scaled.
    """

    theta: float | None
    scaling_factor: float | None


def read_rope(said: Settings) -> RopeSettings:
    """Read the rotary settings of a config.json.

    Args:
        said: The file.

    Returns:
        What it says.

    Raises:
        ConfigError: If it says two things, or one that Meta's code cannot compute.
    """
    _refuse_partial(said, "")
    thetas = [("rope_theta", said.optional_real("rope_theta"))]
    factors: list[tuple[str, float | None]] = []
    for key in ("rope_parameters", "rope_scaling"):
        for inner in _inner(said, key):
            factors.append((f"the factor of {key}", _scaling_factor(key, inner)))
            thetas.append((f"rope_theta in {key}", inner.optional_real("rope_theta")))
    theta = _the_one([(place, value) for place, value in thetas if value is not None], said)
    return RopeSettings(theta, _the_one(factors, said))


def scaling_notes(factor: float | None) -> tuple[str, ...]:
    """Say of a factor that ranks cannot hold it: params.json has no place for one."""
    if factor in (None, _FACTOR_OF_METAS_CODE):
        return ()
    note = (
        f"config.json scales the rotary frequencies by {factor:g}, but params.json says only that "
        f"they are scaled: Meta's own code uses {_FACTOR_OF_METAS_CODE:g}"
    )
    return (note,)


def _the_one(stated: list[tuple[str, Any]], said: Settings) -> Any:
    """Return what is stated at all of some places; None where there are none."""
    for (place, value), (other_place, other) in pairwise(stated):
        if value != other:
            raise ConfigError(
                f"has {place} {value!r} and {other_place} {other!r}",
                path=said.path,
                hint=_ONE_VALUE,
            )
    return stated[0][1] if stated else None


def _inner(said: Settings, key: str) -> Iterator[Settings]:
    """Yield the object that is the value of a key; nothing where there is none."""
    value = said.found.get(key)
    if isinstance(value, dict):
        yield Settings(value, said.path, said.hint)
    elif value is not None:
        raise ConfigError(
            f"{key!r} is {shown(value, 40)}, not an object", path=said.path, hint=said.hint
        )


def _refuse_partial(said: Settings, place: str) -> None:
    """Refuse heads of which a part is rotated; transformers 4 has the key at the top level."""
    factor = said.optional_real("partial_rotary_factor")
    if factor not in (None, 1.0):
        raise ConfigError(
            f"has 'partial_rotary_factor': {factor!r}{place}, but Meta's code rotates whole heads",
            path=said.path,
            hint=SUPPORTED_HINT,
        )


def _scaling_factor(key: str, inner: Settings) -> float | None:
    """Read by how much frequencies are scaled; refuse what Meta's code does not compute."""
    kinds = [inner.found[name] for name in ("rope_type", "type") if name in inner.found]
    # What transformers reads under another name than these is of a layer's kind.
    plain = kinds or set(inner.found) <= {"rope_theta"}
    _refuse_partial(inner, f" in {key!r}")
    if kinds and all(kind == "llama3" for kind in kinds):
        return _factor_of_llama_3(key, inner)
    if not plain or any(kind != "default" for kind in kinds):
        raise _refusal(key, inner, "scales rotary frequencies as Llama 3.1 does, or not at all")
    return None


def _factor_of_llama_3(key: str, inner: Settings) -> float:
    factor = inner.real("factor")
    stated = {name: inner.real(name) for name in SCALING}
    if factor not in FACTORS or stated != SCALING:
        raise _refusal(
            key, inner,
            "has the factors 8 (32 for Llama 3.2), low 1 and high 4, and 8192 positions",
        )  # fmt: skip
    return factor


def _refusal(key: str, inner: Settings, whats_there: str) -> ConfigError:
    return ConfigError(
        f"has {key!r}: {shown(inner.found, 240)}, and Meta's code {whats_there}",
        path=inner.path,
        hint=SUPPORTED_HINT,
    )
