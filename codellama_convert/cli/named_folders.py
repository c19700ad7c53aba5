"""Own how a command's two folders are named: by their place, IN and OUT, or by option."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

_PLACES = {"input_dir": "IN", "output_dir": "OUT"}


class FoldersCommand(click.Command):
    """A command that takes its folders by place too; it has both options, and neither is required.

    Attributes:
        needed: The option whose folder must be named. A sole word names it too.
    """

    def __init__(self, *args: Any, needed: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.needed = needed
        metavar = "IN [OUT]" if needed == "input_dir" else "[IN] OUT"
        path = click.Path(readable=False)
        self.params.insert(0, click.Argument(["words"], nargs=-1, type=path, metavar=metavar))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments, and the words among them as if they had stood behind their option."""
        rest = super().parse_args(ctx, args)
        words = ctx.params.pop("words")
        if ctx.resilient_parsing:
            return rest
        for name, word in zip(self._named(ctx, len(words)), words, strict=False):
            self._take(ctx, name, word)
        if len(words) > len(_PLACES):
            ctx.fail(f"{words[2]!r} is neither IN nor OUT, which are named already")
        if ctx.params[self.needed] is None:
            ctx.fail(self._missing(ctx))
        return rest

    def _named(self, ctx: click.Context, n_words: int) -> list[str]:
        """Name the options that the words stand for."""
        if n_words != 1:
            return list(_PLACES)
        # After `convert IN --output_dir OUT` one writes `verify IN --output_dir OUT`.
        return ["input_dir" if ctx.params["output_dir"] is not None else self.needed]

    def _take(self, ctx: click.Context, name: str, word: str) -> None:
        place, given = _PLACES[name], ctx.params[name]
        if given is not None:
            ctx.fail(f"{place} is given twice: {word!r} and --{name} {given}")
        option = next(option for option in self.params if option.name == name)
        try:
            ctx.params[name] = option.type.convert(word, None, ctx)
        except click.BadParameter as problem:
            raise click.BadParameter(problem.message, ctx, param_hint=f"'{place}'") from problem

    def _missing(self, ctx: click.Context) -> str:
        missing = f"{_PLACES[self.needed]} is missing: name the folder, or give --{self.needed}"
        name = ctx.info_name or ""
        if Path(name).is_dir():
            missing += f"; to convert the folder {name!r}, write ./{name}"
        return missing
