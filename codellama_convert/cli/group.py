"""Own what every command shares: the bare form that converts, and problems that end in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from codellama_convert.cli.machine import lack_in_words
from codellama_convert.cli.problems import end_for_lack, one_line_problems

_JSON = "--json"


class ConvertGroup(click.Group):
    """A group whose bare form converts, and whose problems end in one line."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **kwargs: Any) -> Any:
        """Run; what the machine lacks (memory, room behind `>`) is one line and no traceback."""
        try:
            return super().main(args, *more, **kwargs)
        except (ImportError, MemoryError, OSError, RuntimeError) as problem:
            lack = lack_in_words(problem)
            if lack is None:
                raise
            as_json = _JSON in (sys.argv if args is None else args)
            end_for_lack(problem, lack, as_json=as_json)

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Read the arguments; what is wrong with them is quoted in one line."""
        as_json = _JSON in args  # whatever else is wrong with them
        with one_line_problems(as_json=as_json):
            context = super().make_context(info_name, args, parent, **extra)
        context.meta[_JSON] = as_json
        return context

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read `codellama-convert IN` as `codellama-convert convert IN`."""
        own = ("--help", "-h", "--version")
        if args and args[0] not in self.commands and args[0] not in own:
            word = args[0]  # an empty one is a forgotten variable, which `convert` says
            is_known = not word or word.startswith("-") or os.path.lexists(word)
            if not (is_known or ctx.resilient_parsing):
                ctx.fail(f"no such command or folder: {word!r}")
            args = ["convert", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer folders and the options of `convert` too: they are those of the bare form."""
        found = super().shell_complete(ctx, incomplete)
        if not incomplete.startswith("-"):
            return [CompletionItem(incomplete, type="dir"), *found]
        convert = self.commands["convert"]
        bare = click.Context(convert, parent=ctx, info_name="convert")
        listed = {item.value for item in found}
        of_convert = convert.shell_complete(bare, incomplete)
        return found + [item for item in of_convert if item.value not in listed]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the options of `convert` too: they are those of the bare form."""
        super().format_options(ctx, formatter)
        convert_command = self.commands["convert"]
        sub_context = click.Context(convert_command, info_name="convert", parent=ctx)
        options = [p for p in convert_command.params if isinstance(p, click.Option)]
        records = [option.get_help_record(sub_context) for option in options]
        with formatter.section("Options of convert, which is the default command"):
            formatter.write_dl([record for record in records if record is not None])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; turn what a user can act on into one line and an exit status."""
        with one_line_problems(as_json=ctx.meta[_JSON]):
            return super().invoke(ctx)
