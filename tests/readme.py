"""README.md's code blocks, and the writer of those that show `--help`.

`python -m tests.readme` writes the help anew; tests/test_readme.py says when that is due.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from codellama_convert.cli import main

README = Path(__file__).resolve().parents[1] / "README.md"
_HELP = re.compile(r"(<!-- help -->\n).*?(<!-- end of help -->)", re.DOTALL)
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the heading above it."""

    language: str
    text: str
    heading: str


def blocks(readme: str) -> Iterator[Block]:
    """Find every fenced block, in order."""
    for match in _BLOCK.finditer(readme):
        headings = re.findall(r"^#+ (.*)$", _BLOCK.sub("", readme[: match.start()]), re.MULTILINE)
        yield Block(match[1], match[2], headings[-1])


def help_text() -> str:
    """Print the help of every command, as a terminal of 80 columns shows it."""
    shown = []
    for command in ([], ["plan"], ["verify"]):
        result = CliRunner().invoke(
            main, [*command, "--help"], prog_name="codellama-convert", terminal_width=80
        )
        assert result.exit_code == 0, result.output
        line = " ".join(["codellama-convert", *command, "--help"])
        shown.append(f"```text\n$ {line}\n{result.stdout}```\n")
    return "\n".join(shown)


def with_help(readme: str) -> str:
    """Put the help between its two marks."""
    written, n_places = _HELP.subn(lambda match: f"{match[1]}\n{help_text()}\n{match[2]}", readme)
    assert n_places == 1
    return written


if __name__ == "__main__":
    README.write_text(with_help(README.read_text(encoding="utf-8")), encoding="utf-8")
