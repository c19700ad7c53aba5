"""Own how a problem ends the program: one line on stderr, JSON where it is asked for, a status."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import click

from codellama_convert.cli.printing import say, say_json
from codellama_convert.errors import ConfigError, ConvertError, Interrupted, one_line

_PROBLEM = 1
_WRONG_USE = 2


@contextmanager
def usage_errors() -> Iterator[None]:
    """Refuse options as a wrong use of the command: they are wrong whatever the input is."""
    try:
        yield
    except ConfigError as problem:
        raise click.UsageError(str(problem)) from problem


@contextmanager
def one_line_problems(*, as_json: bool) -> Iterator[None]:
    """End the program where a user can act on what was raised.

    What click quotes of the arguments is escaped: they may be names that a script has found.

    Args:
        as_json: Whether to print the problem on stdout too.

    Raises:
        SystemExit: With the status that the problem has.
    """
    try:
        yield
    except click.UsageError as problem:
        if problem.ctx is not None and problem.message == problem.ctx.get_help():
            raise  # without arguments the help is shown, which has many lines
        line = one_line(problem.format_message())
        click.UsageError(line, problem.ctx).show()
        _end(ConvertError(line), "UsageError", _WRONG_USE, as_json=as_json)
    except ConvertError as problem:
        say_problem(problem)
        _end(problem, type(problem).__name__, status_of(problem), as_json=as_json)


def say_problem(problem: ConvertError) -> None:
    """Print a problem on stderr; to be interrupted is no error."""
    say(str(problem) if isinstance(problem, Interrupted) else f"Error: {problem}", err=True)


def status_of(problem: ConvertError) -> int:
    """Return the exit status that a problem has."""
    return 128 + problem.signal_number if isinstance(problem, Interrupted) else _PROBLEM


def describe_problem(problem: ConvertError, kind: str, status: int) -> dict[str, Any]:
    """Describe a problem, for machines.

    Args:
        problem: What was raised.
        kind: Its kind's name.
        status: The exit status that it has.

    Returns:
        Plain values.
    """
    return {
        "error": str(problem),
        "kind": kind,
        "message": problem.message,
        "path": None if problem.path is None else os.fspath(problem.path),
        "hint": problem.hint,
        "exit_status": status,
    }


def end_for_lack(problem: BaseException, lack: str, *, as_json: bool) -> NoReturn:
    """End the program because the machine lacks something.

    Args:
        problem: What was raised.
        lack: What is lacking, in words.
        as_json: Whether to print it on stdout too.

    Raises:
        SystemExit: With status 1.
    """
    with suppress(OSError):  # stderr may be what is full
        say(f"Error: {lack}", err=True)
    _end(ConvertError(lack), type(problem).__name__, _PROBLEM, as_json=as_json)


def _end(problem: ConvertError, kind: str, status: int, *, as_json: bool) -> NoReturn:
    if as_json:
        with suppress(OSError):  # stdout may be what is full
            say_json(describe_problem(problem, kind, status))
    raise SystemExit(status) from problem
