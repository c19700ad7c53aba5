"""Own the numbers of a model's JSON file: read strictly, whoever wrote it and however it spells them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codellama_convert.errors import ConfigError, shown
from codellama_convert.formats.strict_json import parse_object

_MAX_DIMENSION = 1 << 24
_MAX_HEAD_SIZE = 1024  # 128 in every release; `verify` holds a head in memory
_MAX_REAL = 1e30  # times any dimension it is still finite


@dataclass(frozen=True, slots=True)
class Settings:
    """A JSON object of a model's settings.

    Attributes:
        found: The object.
        path: The file, for messages.
        hint: What to do where a value is missing or not plausible.
    """

    found: dict[str, Any]
    path: Path
    hint: str

    def whole(self, key: str) -> int:
        """Return a whole number above zero, of a plausible size.

        Raises:
            ConfigError: If it is missing, or is not one.
        """
        value = self._present(key)
        if type(value) is not int or not 0 < value <= _MAX_DIMENSION:
            raise self._wrong(key, "a positive number")
        return value

    def real(self, key: str) -> float:
        """Return a number above zero, of a plausible size.

        Raises:
            ConfigError: If it is missing, or is not one.
        """
        value = self._present(key)
        if type(value) is int and value.bit_length() < 64:
            value = float(value)
        if type(value) is not float or not 0 < value <= _MAX_REAL:
            raise self._wrong(key, "a plausible positive number")
        return value

    def optional_whole(self, key: str) -> int | None:
        """Return what `whole` does; None where the file says nothing."""
        return None if self.found.get(key) is None else self.whole(key)

    def optional_real(self, key: str) -> float | None:
        """Return what `real` does; None where the file says nothing."""
        return None if self.found.get(key) is None else self.real(key)

    def flag(self, key: str) -> bool:
        """Return whether the file says that something is so.

        Raises:
            ConfigError: If it says neither true nor false.
        """
        value = self.found.get(key)
        if value is not None and type(value) is not bool:
            raise self._wrong(key, "true or false")
        return bool(value)

    def _present(self, key: str) -> Any:
        value = self.found.get(key)
        if value is None:
            raise ConfigError(f"has no {key!r}", path=self.path, hint=self.hint)
        return value

    def _wrong(self, key: str, wanted: str) -> ConfigError:
        return ConfigError(
            f"{key!r} is {shown(self.found[key], 40)}, not {wanted}", path=self.path, hint=self.hint
        )


def require_heads(
    width: tuple[str, int],
    heads: tuple[str, int],
    kv_heads: tuple[str, int],
    *,
    path: Path,
    hint: str,
) -> None:
    """Refuse heads that do not divide the width, or each other.

    Args:
        width: What the file calls the width of the residual stream, and the width.
        heads: The same of the query heads.
        kv_heads: The same of the key and value heads.
        path: The file, for messages.
        hint: What to do.

    Raises:
        ConfigError: With the numbers.
    """
    size, rest = divmod(width[1], heads[1])
    what = None
    if rest or size % 2:
        what = f"{width[0]} {width[1]} is not {heads[0]} {heads[1]} times an even head size"
    elif size > _MAX_HEAD_SIZE:
        what = (
            f"{width[0]} {width[1]} over {heads[0]} {heads[1]} gives heads of {size}, more than "
            f"{_MAX_HEAD_SIZE}"
        )
    elif heads[1] % kv_heads[1]:
        what = f"{heads[0]} {heads[1]} is not a multiple of {kv_heads[0]} {kv_heads[1]}"
    if what is not None:
        raise ConfigError(what, path=path, hint=hint)


def parse_settings(content: bytes, path: Path, *, hint: str) -> Settings:
    """Read a JSON object.

    Args:
        content: The file's bytes.
        path: Where they come from, for messages.
        hint: What to do where a value of it is missing or not plausible.

    Returns:
        The object.

    Raises:
        ConfigError: If it is not a JSON object.
    """
    if not content.strip():
        raise ConfigError("the file is empty", path=path, hint="download it again")
    try:
        return Settings(parse_object(content), path, hint)
    except ValueError as problem:
        raise ConfigError(str(problem), path=path, hint="download it again") from problem
