"""Own what every command shares: the bare form that converts, and problems that end in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click
from click.shell_completion import CompletionItem

from codellama_convert.cli.machine import lack_in_words
from codellama_convert.cli.printing import say
from codellama_convert.errors import ConvertError, Interrupted, one_line


@contextmanager
def _one_line_problems() -> Iterator[None]:
    """Escape what click quotes of the arguments: they may be names that a script has found."""
    try:
        yield
    except click.UsageError as problem:
        if problem.ctx is not None and problem.message == problem.ctx.get_help():
            raise  # without arguments the help is shown, which has many lines
        raise click.UsageError(one_line(problem.format_message()), problem.ctx) from problem


class ConvertGroup(click.Group):
    """A group whose bare form converts, and whose problems end in one line."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run; what the machine lacks (memory, room behind `>`) is one line and no traceback."""
        try:
            return super().main(*args, **kwargs)
        except (ImportError, MemoryError, OSError, RuntimeError) as problem:
            lack = lack_in_words(problem)
            if lack is None:
                raise
            with suppress(OSError):  # stderr may be what is full
                say(f"Error: {lack}", err=True)
            raise SystemExit(1) from problem

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Read the arguments; what is wrong with them is quoted in one line."""
        with _one_line_problems():
            return super().make_context(info_name, args, parent, **extra)

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
        if incomplete.startswith("-"):
            convert = self.commands["convert"]
            bare = click.Context(convert, parent=ctx, info_name="convert")
            listed = {item.value for item in found}
            found += [
                item
                for item in convert.shell_complete(bare, incomplete)
                if item.value not in listed
            ]
        return found

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
        try:
            with _one_line_problems():
                return super().invoke(ctx)
        except Interrupted as problem:
            say(str(problem), err=True)
            raise SystemExit(128 + problem.signal_number) from problem
        except ConvertError as problem:
            raise click.ClickException(str(problem)) from problem
