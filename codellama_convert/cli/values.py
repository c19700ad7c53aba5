"""Own the types of what an option takes: sizes, choices, paths."""

from __future__ import annotations

import math
import os
import re
from typing import TYPE_CHECKING, Any

import click

from codellama_convert.storage.sizes import parse_size

# What click's newer versions call generic, older ones cannot subscript.
if TYPE_CHECKING:
    SizeType = click.ParamType[int]
    FactorType = click.ParamType[float]
    ChoiceType = click.Choice[str]
    PairType = click.ParamType[tuple[int, int]]
else:
    SizeType, FactorType, PairType = click.ParamType, click.ParamType, click.ParamType
    ChoiceType = click.Choice


class Size(SizeType):
    """A size such as 5GB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it; what click asks of a parameter type."""
        try:
            return value if isinstance(value, int) else parse_size(str(value))
        except ValueError as problem:
            self.fail(str(problem), param, ctx)


class PartOf(PairType):
    """One part of several, such as 3/8; counted from 1."""

    name = "K/N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Read it; what click asks of a parameter type."""
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", str(value))
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            self.fail(
                f"{value!r} is not a part such as 3/8, counted from 1, of at most 999999",
                param,
                ctx,
            )
        return int(found[1]), int(found[2])


class Factor(FactorType):
    """A number of a range; click's own range lets nan pass."""

    name = "number"

    def __init__(self, low: float, high: float) -> None:
        """Allow the numbers from one to the other."""
        self._range = low, high

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read it; what click asks of a parameter type."""
        low, high = self._range
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            self.fail(f"{value!r} is not a number from {low:g} to {high:g}", param, ctx)
        return number


class OneOf(ChoiceType):
    """A choice that may be spelled in either case; a shell completes it as it is written here."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read it; what click asks of a parameter type."""
        spelled = {str(choice).lower(): choice for choice in self.choices}
        return super().convert(spelled.get(str(value).lower(), value), param, ctx)


class NamedPath(click.Path):
    """A path with a name: an empty one would be the current folder, and is a forgotten variable."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it; what click asks of a parameter type."""
        if not os.fspath(value):
            self.fail("the name is empty", param, ctx)
        return super().convert(value, param, ctx)
