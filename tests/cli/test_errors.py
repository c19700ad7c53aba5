"""What users read when something is wrong: what, where, and what to do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from codellama_convert import errors

PACKAGE = Path(__file__).parents[2] / "codellama_convert"
KINDS = {name for name in vars(errors) if name.endswith("Error")} | {"error"}
# The modules that judge what a user gave; their problems say what to do about it.
JUDGES = (
    "formats/zip_reader", "meta/checklist", "meta/checkpoint", "meta/find", "meta/places", "meta/rank_names", "meta/search", "meta/unfinished", "model/config", "model/settings", "model/tensor_table", "formats/pth/reader",
    "formats/safetensors_reader", "formats/sentencepiece", "hugging_face/buffers", "hugging_face/config_reader", "hugging_face/files", "hugging_face/folder", "hugging_face/foreign_names", "hugging_face/two_heads", "tokenizer/hf_files", "formats/file_kinds", "formats/zip_directory",
)  # fmt: skip
# The system's own words say it: permission denied, a disk that fails.
SYSTEM = "cannot open: "


def without_a_hint(source: str) -> Iterator[str]:
    """Give the message of every problem that is made without a hint or without a path."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and ast.unparse(node.func) in KINDS and node.args):
            continue
        message = ast.unparse(node.args[0]).lstrip("f").strip("'\"")
        given = {keyword.arg for keyword in node.keywords}
        if "hint" not in given and not message.startswith(SYSTEM):
            yield message


@pytest.mark.parametrize("module", JUDGES)
def test_every_problem_with_the_input_says_what_to_do(module):
    source = (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
    assert list(without_a_hint(source)) == []
    assert "Error(" in source or "raise error(" in source


def test_a_problem_without_a_hint_is_found():
    source = (
        "raise LayoutError(f'tensor {name!r} is missing', path=rank.path)\n"
        "raise CheckpointError('is empty', path=path, hint='download it again')\n"
        "raise CheckpointError(f'cannot open: {first_line(problem)}', path=path)\n"
        "raise ValueError('ours')\n"
    )
    assert list(without_a_hint(source)) == ["tensor {name!r} is missing"]


def test_one_line_says_where_what_and_what_to_do():
    problem = errors.LayoutError("tensor 'x' is missing", path=Path("a.pth"), hint="get another")
    assert str(problem) == "a.pth: tensor 'x' is missing; get another"
    assert str(errors.ConfigError("no")) == "no"
    assert str(errors.ConfigError("a\nb\x1b[31m")) == r"a\nb\x1b[31m"
