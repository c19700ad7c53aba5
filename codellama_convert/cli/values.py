"""Own the types of what an option takes: sizes, choices, paths."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from codellama_convert.storage.sizes import parse_size

# What click's newer versions call generic, older ones cannot subscript.
if TYPE_CHECKING:
    SizeType = click.ParamType[int]
    ChoiceType = click.Choice[str]
else:
    SizeType, ChoiceType = click.ParamType, click.Choice


class Size(SizeType):
    """A size such as 5GB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it; what click asks of a parameter type."""
        try:
            return value if isinstance(value, int) else parse_size(str(value))
        except ValueError as problem:
            self.fail(str(problem), param, ctx)


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
