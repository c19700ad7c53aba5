"""The READMEs' code blocks, and what the program itself says in them: its help, its tables.

`python -m tests.house.readme` writes the latter again; tests/house/test_readme.py says when that is due.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import click
from click.testing import CliRunner

from codellama_convert.cli.commands import main
from codellama_convert.model.releases import RELEASES, Release
from codellama_convert.model.tensor_table import RULES, RULES_OF_LLAMA_3, Rule

ROOT = Path(__file__).resolve().parents[2]
# Every README of the project, and what is generated in it.
PAGES: dict[str, tuple[str, ...]] = {
    "README.md": ("options", "models"),
    "codellama_convert/README.md": ("rules",),
    "codellama_convert/cli/README.md": ("help",),
    "codellama_convert/hugging_face/README.md": (),
    "codellama_convert/meta/README.md": (),
    "codellama_convert/tokenizer/README.md": (),
    "examples/README.md": (),
    "examples/benchmark/README.md": (),
    "examples/clusters/README.md": (),
    "examples/tiny-codellama/README.md": (),
    "tests/README.md": (),
    "tests/data/stories260K/README.md": (),
}
# A fenced block; or a row of a table, in which whole commands may stand.
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_BLOCK_OR_ROW = re.compile(f"{_BLOCK.pattern}|^(\\|[^\n]*)$", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"`((?:codellama-convert|bash examples/|python examples/)[^`]*)`")
_SPLIT = {0: "rows", 1: "columns", None: "copies, compared"}
# What most people use, in the order of the README.
_USED_MOST = (
    "output_dir", "model_size", "variant", "dtype", "max_shard_size", "max_position_embeddings",
    "tokenizer_model", "max_ram", "overwrite", "verify_too",
)  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A fenced block, or a command in a table: its page, language, text, and the heading above."""

    page: str
    language: str
    text: str
    heading: str


def read(page: str) -> str:
    """Read a README."""
    return (ROOT / page).read_text(encoding="utf-8")


def without_blocks(text: str) -> str:
    """Leave out fenced blocks, in which `#` begins a comment."""
    return _BLOCK.sub("", text)


def headings(text: str) -> list[str]:
    """List the headings of a page."""
    return re.findall(r"^#+ (.*)$", without_blocks(text), re.MULTILINE)


def blocks(page: str) -> Iterator[Block]:
    """Find every fenced block and every command in a table of a README, in order."""
    text = read(page)
    for match in _BLOCK_OR_ROW.finditer(text):
        heading = headings(text[: match.start()])[-1]
        if match[3] is None:
            yield Block(page, match[1], match[2], heading)
        else:
            for command in _COMMAND.findall(match[3]):
                yield Block(page, "bash", f"{command}\n", heading)


def help_text() -> str:
    """Print the help of every command, as a terminal of 80 columns shows it, or a pipe.

    click leaves two columns of a terminal free, but its runner for tests writes 80.
    """
    shown = []
    for command in ([], *([name] for name in sorted(main.commands))):
        result = CliRunner().invoke(
            main, [*command, "--help"], prog_name="codellama-convert", terminal_width=78
        )
        assert result.exit_code == 0, result.output
        line = " ".join(["codellama-convert", *command, "--help"])
        shown.append(f"```text\n$ {line}\n{result.stdout}```\n")
    return "\n".join(shown)


def options_table() -> str:
    """One row an option that most people use, as the program's own help has it."""
    options = {option.name: option for option in main.commands["convert"].params}
    rows = [("option", "meaning")]
    for name in _USED_MOST:
        option = options[name]
        assert isinstance(option, click.Option)
        default = f" Default: `{option.default}`." if option.show_default else ""
        rows.append((f"`{option.opts[0]}`", f"{option.help}{default}"))
    return _table(*rows)


def _table(*rows: tuple[str, ...]) -> str:
    head, *others = rows
    lines = [head, tuple("---" for _ in head), *others]
    return "".join("|" + "".join(f" {c} |" if c else " |" for c in row) + "\n" for row in lines)


def models_table() -> str:
    """One row for the models that differ only in their tuning, from the table of releases."""
    rows = []
    for _, group in groupby(sorted(RELEASES, key=_facts), key=_facts):
        first, *others = list(group)
        tunings = "".join(f", {v.flavor.capitalize()}" for v in others)
        factor = first.rope_scaling_factor
        scaling = "" if factor is None else f", scaled by {factor:g}"
        rows.append(
            (
                f"{first.name}{tunings}",
                " or ".join(map(str, (first.shape.n_ranks, *first.shape.other_n_ranks))),
                f"{2 * _n_parameters(first) / 1e9:.1f} GB",
                f"{first.vocab_size:,}",
                f"{first.max_position_embeddings:,}",
                f"{first.rope_theta:,.0f}{scaling}",
            )
        )
    return _table(("model", "ranks", "weights", "vocabulary", "context", "rope_theta"), *rows)


def _facts(release: Release) -> tuple[str | float, ...]:
    """Everything that is shown, as a key to sort by: Code Llama first, then by size."""
    return (
        release.family, _n_parameters(release) // 10**9, -release.max_position_embeddings,
        -release.vocab_size, release.rope_theta,
    )  # fmt: skip


def _n_parameters(release: Release) -> int:
    shape = release.shape
    dim, head_dim = shape.hidden_size, shape.hidden_size // shape.num_attention_heads
    attention = 2 * dim * dim + 2 * dim * shape.num_key_value_heads * head_dim
    layer = attention + 3 * dim * shape.intermediate_size + 2 * dim
    n_matrices = 1 if release.tied else 2
    return n_matrices * release.vocab_size * dim + shape.num_hidden_layers * layer + dim


def rules_table() -> str:
    """One row a tensor, from the table of rules."""
    return _table(
        ("Meta", "Hugging Face", "shape", "split over ranks", "rotary"),
        *map(_rule_row, RULES, RULES_OF_LLAMA_3),
        ("`rope.freqs`", "dropped: they follow from `rope_theta`", "", "", ""),
    )


def _rule_row(rule: Rule, of_llama_3: Rule) -> tuple[str, ...]:
    split = _SPLIT[rule.tp_dim]
    if of_llama_3 != rule:
        split += f"; {_SPLIT[of_llama_3.tp_dim]} in Llama 3"

    def shown(name: str) -> str:
        return f"`{name.replace('{layer}', 'N').removesuffix('.weight')}`"

    return (
        shown(rule.meta_name),
        shown(rule.hf_name),
        " x ".join(rule.shape),
        split,
        "yes" if rule.rotary else "",
    )


WRITERS: dict[str, Callable[[], str]] = {
    "help": help_text,
    "models": models_table,
    "options": options_table,
    "rules": rules_table,
}


def regenerated(text: str, names: tuple[str, ...]) -> str:
    """Put what the program says between its marks."""
    for name in names:
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        written = WRITERS[name]()
        text, n_places = mark.subn(lambda match, w=written: f"{match[1]}\n{w}\n{match[2]}", text)
        assert n_places == 1, name
    return text


if __name__ == "__main__":
    for page, names in PAGES.items():
        (ROOT / page).write_text(regenerated(read(page), names), encoding="utf-8")
