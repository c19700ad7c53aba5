"""Own what every command shares: the bare form that converts, and problems that end in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codellama_convert.cli.machine import lack_in_words
from codellama_convert.cli.printing import say
from codellama_convert.errors import ConvertError, Interrupted, one_line

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


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
        """Read `codellama-convert --input_dir X` as `codellama-convert convert --input_dir X`."""
        own = ("--help", "-h", "--version")
        if args and args[0] not in self.commands and args[0].startswith("-") and args[0] not in own:
            args = ["convert", *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; tell who gives the bare name of a folder how folders are named."""
        name = args[0]
        if name not in self.commands and (Path(name).exists() or any(c in name for c in "/\\-.")):
            ctx.fail(f"no such command: {name!r}; to name a folder, write --input_dir {name}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer the options of `convert` too: they are those of the bare form."""
        found = super().shell_complete(ctx, incomplete)
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
        records = [p.get_help_record(sub_context) for p in convert_command.params]
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
