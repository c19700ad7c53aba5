"""Own what is printed, and where: one line at a time, without control characters of quoted names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import click

from codellama_convert.cli.words import summary_line, value_notes
from codellama_convert.errors import one_line


def print_notes(notes: Iterable[str]) -> None:
    """Print notes on stderr, whatever the result is printed as."""
    for note in notes:
        print_note(note)


def print_note(note: str) -> None:
    """Print one note on stderr."""
    say(f"note: {note}", err=True)


def print_report(described: Mapping[str, Any], *, as_json: bool, quiet: bool) -> None:
    """Print what a conversion did.

    Args:
        described: From `describe_report`.
        as_json: Whether a machine reads it.
        quiet: Whether only notes are printed; JSON is printed all the same.
    """
    print_notes(value_notes(described))
    if as_json:
        say_json(described)
    elif not quiet:
        say(summary_line(described))
        say(described["load"])


def print_plan(described: Mapping[str, Any], lines: Iterable[str], *, as_json: bool) -> None:
    """Print a plan; end with status 1 if the output folder would be refused, or its disk is too small.

    Args:
        described: From `describe_job` or `describe_ranks`.
        lines: The same for people.
        as_json: Whether a machine reads it.

    Raises:
        SystemExit: With status 1.
    """
    if as_json:
        say_json(described)
    else:
        for line in lines:
            say(line)
    if described["output_refusal"] is not None or described["disk_missing_bytes"]:
        raise SystemExit(1)


def say(line: str, *, err: bool = False) -> None:
    """Print one line, on stdout or stderr."""
    click.echo(one_line(line), err=err)


def say_json(described: Mapping[str, Any]) -> None:
    """Print JSON in ASCII. `json.dumps` escapes every control character but DEL."""
    import json

    click.echo(json.dumps(described, indent=2).replace("\x7f", "\\u007f"))
