"""Run the command line in this process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from codellama_convert.cli.commands import main


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def one_line(result: Result) -> str:
    """The one line on stderr of a run that failed; notes may stand before it."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    *notes, line = result.stderr.splitlines()
    assert all(note.startswith("note: ") for note in notes)
    assert line.startswith("Error: ")
    return line
