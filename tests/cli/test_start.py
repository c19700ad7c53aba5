"""What the command line loads before it works: for its help, and for a plan."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

# Runs the command line after what is said first; then names what was loaded that click does not load.
LOADED = """
import sys, click
try:
    click.Command("alone", help="It has an end.")(["--help"])
except SystemExit:
    of_click = set(sys.modules)
{first}
from codellama_convert.cli.commands import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert end.code == 0
print(*(set(sys.modules) - of_click), sep="\\n", file=sys.stderr)
"""
HEAVY = {"torch", "numpy", "tqdm", "sentencepiece", "safetensors"}
NOT_FOR_HELP = {
    "concurrent.futures", "dataclasses", "hashlib", "json", "logging", "pickletools", "struct",
    "traceback",
}  # fmt: skip
LIGHT = {"choices", "errors", "storage", "storage.blocks", "storage.signals", "storage.sizes"}


def loaded(*arguments: object, first: str = "") -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(first=first), *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return set(done.stderr.splitlines())


def too_much_for_help(names: set[str]) -> set[str]:
    """Name what help can do without: the library but for a few words, and what that loads."""
    ours = {name.partition(".")[2] for name in names if name.startswith("codellama_convert.")}
    library = {name for name in ours if name.partition(".")[0] != "cli"}
    return names & (HEAVY | NOT_FOR_HELP) | library - LIGHT


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["convert", "-h"],
        ["plan", "--help"],
        ["verify", "-h"],
        ["reverse", "-h"],
        ["--version"],
    ],
)
def test_help_imports_nothing_heavy(arguments):
    """No table of models, no plan, no sums: `--help` took half as long again with them."""
    assert too_much_for_help(loaded(*arguments)) == set()


@pytest.mark.parametrize(
    ("first", "found"),
    [
        ("import numpy", "numpy"),
        ("import hashlib", "hashlib"),
        ("import codellama_convert.model.folder_name", "model.folder_name"),
        ("import codellama_convert.storage.executors", "storage.executors"),
    ],
)
def test_the_control_of_that_test_fails(first, found):
    assert found in too_much_for_help(loaded("--help", first=first))


def test_a_plan_loads_neither_the_other_way_nor_what_moves_weights(checkpoint):
    """A rank is read in 10 ms; each of these takes as long to load, or longer."""
    others = {
        f"codellama_convert.{name}"
        for name in ("convert.record", "convert.run", "hugging_face.folder", "plan.ranks.job")
    }
    assert loaded("plan", checkpoint) & (HEAVY | others) == set()
    assert loaded("reverse", "--plan", checkpoint) & others == {
        "codellama_convert.hugging_face.folder", "codellama_convert.plan.ranks.job",
    }  # fmt: skip
