"""README.md's code blocks, and the writer of what the program itself says: its help, its tables.

`python -m tests.readme` writes these anew; tests/test_readme.py says when that is due.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from click.testing import CliRunner

from codellama_convert.cli import main
from codellama_convert.layout import RULES, Rule
from codellama_convert.variants import VARIANTS, Variant

README = Path(__file__).resolve().parents[1] / "README.md"
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SPLIT = {0: "rows", 1: "columns", None: "copies, compared"}


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
    """Print the help of every command, as a terminal of 80 columns shows it, or a pipe.

    click leaves two columns of a terminal free, but its runner for tests writes 80.
    """
    shown = []
    for command in ([], ["plan"], ["verify"]):
        result = CliRunner().invoke(
            main, [*command, "--help"], prog_name="codellama-convert", terminal_width=78
        )
        assert result.exit_code == 0, result.output
        line = " ".join(["codellama-convert", *command, "--help"])
        shown.append(f"```text\n$ {line}\n{result.stdout}```\n")
    return "\n".join(shown)


def _table(*rows: tuple[str, ...]) -> str:
    head, *others = rows
    lines = [head, tuple("---" for _ in head), *others]
    return "".join("|" + "".join(f" {c} |" if c else " |" for c in row) + "\n" for row in lines)


def models_table() -> str:
    """One row for the models that differ in their tuning only, the table of releases behind it."""
    rows = []
    for _, group in groupby(sorted(VARIANTS, key=_facts), key=_facts):
        first, *others = list(group)
        tunings = "".join(f", {v.flavor.capitalize()}" for v in others)
        rows.append(
            (
                f"{first.name}{tunings}",
                str(first.shape.n_ranks),
                f"{2 * _n_parameters(first) / 1e9:.1f} GB",
                f"{first.vocab_size:,}",
                f"{first.max_position_embeddings:,}",
                f"{first.rope_theta:,.0f}",
            )
        )
    return _table(
        ("model", "ranks", "weights", "vocabulary", "context written", "rope_theta"), *rows
    )


def _facts(variant: Variant) -> tuple[str | float, ...]:
    """Everything that is shown, as a key to sort by: Code Llama first, then by size."""
    return (
        variant.family, _n_parameters(variant) // 10**9, -variant.max_position_embeddings,
        -variant.vocab_size, variant.rope_theta,
    )  # fmt: skip


def _n_parameters(variant: Variant) -> int:
    shape = variant.shape
    dim, head_dim = shape.hidden_size, shape.hidden_size // shape.num_attention_heads
    attention = 2 * dim * dim + 2 * dim * shape.num_key_value_heads * head_dim
    layer = attention + 3 * dim * shape.intermediate_size + 2 * dim
    return 2 * variant.vocab_size * dim + shape.num_hidden_layers * layer + dim


def rules_table() -> str:
    """One row a tensor, the table of rules behind it."""
    return _table(
        ("Meta", "Hugging Face", "shape", "split over ranks", "rotary"),
        *(_rule_row(rule) for rule in RULES),
        ("`rope.freqs`", "dropped: they follow from `rope_theta`", "", "", ""),
    )


def _rule_row(rule: Rule) -> tuple[str, ...]:
    def shown(name: str) -> str:
        return f"`{name.replace('{layer}', 'N').removesuffix('.weight')}`"

    return (
        shown(rule.meta_name),
        shown(rule.hf_name),
        " x ".join(rule.shape),
        _SPLIT[rule.tp_dim],
        "yes" if rule.rotary else "",
    )


WRITERS: dict[str, Callable[[], str]] = {
    "help": help_text,
    "models": models_table,
    "rules": rules_table,
}


def written_anew(readme: str) -> str:
    """Put what the program says between its marks."""
    for name, write in WRITERS.items():
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        text = write()
        readme, n_places = mark.subn(lambda match, t=text: f"{match[1]}\n{t}\n{match[2]}", readme)
        assert n_places == 1, name
    return readme


if __name__ == "__main__":
    README.write_text(written_anew(README.read_text(encoding="utf-8")), encoding="utf-8")
