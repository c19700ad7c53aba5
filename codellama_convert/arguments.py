"""Own the rules for what a caller may pass, and how a value that breaks one is refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from codellama_convert.errors import ConfigError, shown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True, slots=True)
class Rule:
    """What a value may be.

    Attributes:
        allowed: In words that follow "it must be".
        holds: Whether a value is one of them.
    """

    allowed: str
    holds: Callable[[object], bool]

    def check(self, name: str, value: object) -> None:
        """Refuse a value that is not allowed.

        Raises:
            ConfigError: With the name, the value, and what is allowed.
        """
        if not self.holds(value):
            raise ConfigError(f"{name} is {shown(value)}", hint=f"it must be {self.allowed}")


def whole(low: int, high: int) -> Rule:
    """Allow whole numbers of a range; True and 1.0 are not whole numbers."""
    return Rule(
        f"a whole number from {low} to {high}",
        lambda value: type(value) is int and low <= value <= high,
    )


def real(low: float, high: float) -> Rule:
    """Allow numbers of a range, whole ones too."""
    return Rule(
        f"a number from {low:g} to {high:g}",
        lambda value: type(value) in (int, float) and low <= value <= high,  # type: ignore[operator]
    )


def one_of(*texts: str) -> Rule:
    """Allow these texts."""
    return Rule(
        f"one of {', '.join(map(repr, texts))}",
        lambda value: isinstance(value, str) and value in texts,
    )


def instance_of(*kinds: type) -> Rule:
    """Allow objects of these classes."""
    names = " or ".join(kind.__name__ for kind in kinds)
    return Rule(f"an instance of {names}", lambda value: isinstance(value, kinds))


def or_none(rule: Rule) -> Rule:
    """Allow None too."""
    return Rule(f"{rule.allowed}, or None", lambda value: value is None or rule.holds(value))


def _is_path(value: object) -> bool:
    try:
        # A type checker lets no other value through; this is for those who use none.
        text = os.fspath(value)  # type: ignore[call-overload]
        return isinstance(text, str) and text != "" and b"\0" not in os.fsencode(text)
    except (TypeError, UnicodeError):  # no path; no name that the system could have
        return False


FLAG = Rule("True or False", lambda value: isinstance(value, bool))
FUNCTION = Rule("a function", callable)
PATH = Rule("a path: a str or os.PathLike that is not empty, and not bytes", _is_path)
# A header's offsets have 64 bits, and the largest file of every system fits into 63.
SIZE = Rule(
    "a whole number of bytes from 1 to 2**63 - 1; 5GB is 5 * 10**9", whole(1, (1 << 63) - 1).holds
)


def as_path(name: str, value: str | os.PathLike[str]) -> Path:
    """Read a path that a caller passes.

    Args:
        name: Of the argument, for messages.
        value: The path.

    Returns:
        The path.

    Raises:
        ConfigError: If it cannot be one.
    """
    PATH.check(name, value)
    return Path(value)


def check_fields(values: DataclassInstance, rules: Mapping[str, Rule]) -> None:
    """Refuse a dataclass one of whose fields holds what it may not.

    Args:
        values: The dataclass.
        rules: One for each field, by its name.

    Raises:
        ConfigError: With the field's name, its value, and what is allowed.
    """
    for field in fields(values):
        rules[field.name].check(field.name, getattr(values, field.name))
