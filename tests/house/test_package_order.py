"""The packages import only from those before them, and the proof shares nothing with the writer."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "codellama_convert"

ORDER = (
    "choices", "errors", "tensors", "arguments", "storage", "formats", "model", "tokenizer", "meta", "hugging_face", "plan",
    "staging", "convert", "verify", "cli", "__main__",
)  # fmt: skip
NEVER = {("hugging_face", "meta"), ("verify", "staging"), ("verify", "convert")}

PURE = (
    "choices",
    "errors",
    "tensors",
    "model",
    "plan",
)  # they decide; they move no bytes and print nothing
HEAVY = {"torch", "numpy", "click", "tqdm", "safetensors", "sentencepiece"}

# What writes an output. The proof spells what it expects a second time.
WRITERS = {
    "hugging_face.config_json", "hugging_face.model_card", "storage.output_file",
    "tokenizer.hf_files", "tokenizer.llama3", "tokenizer.llama3_json", "tokenizer.streamed_json",
    "tokenizer.tokenizer_json",
}  # fmt: skip
WRITING_NAMES = {
    "config_json", "encode_header", "encode_index", "generation_config_json", "json_bytes",
    "to_half_split",
}  # fmt: skip


def imports(path: Path) -> Iterator[str]:
    """Yield the full name of every module that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def owner(dotted: str) -> str | None:
    """Name the package that a module of ours belongs to; None for all others."""
    top, *inner = dotted.split(".")
    return inner[0] if top == PACKAGE.name and inner else None


def wrong_imports(package: Path) -> list[str]:
    """List the imports that break the order, such as "model imports plan"."""
    found = set()
    for path in package.rglob("*.py"):
        mine = path.relative_to(package).with_suffix("").parts[0]
        if mine == "__init__":  # the public names come from everywhere
            continue
        for name in imports(path):
            other = owner(name)
            upward = other in ORDER and ORDER.index(other) > ORDER.index(mine)
            heavy = mine in PURE and name.split(".")[0] in HEAVY
            if upward or heavy or (mine, other) in NEVER:
                found.add(f"{mine} imports {other or name.split('.')[0]}")
    return sorted(found)


def shared_with_writers(package: Path) -> list[str]:
    """List what the proof takes from the modules that write."""
    taken = {name for path in (package / "verify").rglob("*.py") for name in imports(path)}
    return sorted(
        name
        for name in taken
        if name.removeprefix(f"{PACKAGE.name}.") in WRITERS or name.split(".")[-1] in WRITING_NAMES
    )


def test_each_package_imports_only_from_those_before_it():
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
    assert names - {"__pycache__", "__init__", "py"} == set(ORDER)
    assert wrong_imports(PACKAGE) == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("model/rope", "from codellama_convert.plan.plan import Tile", "model imports plan"),
        ("errors", "import codellama_convert.tensors", "errors imports tensors"),
        ("tensors", "from codellama_convert import storage", "tensors imports storage"),
        ("convert/run", "def f():\n    import codellama_convert.cli", "convert imports cli"),
        ("hugging_face/x", "from codellama_convert.meta import find", "hugging_face imports meta"),
        ("meta/find", "import codellama_convert.hugging_face.x", "meta imports hugging_face"),
        ("verify/run", "from codellama_convert.staging.folder import x", "verify imports staging"),
        ("verify/run", "from codellama_convert import convert", "verify imports convert"),
        ("plan/job", "import numpy as np", "plan imports numpy"),
        ("model/config", "def f():\n    from torch.nn import Module", "model imports torch"),
    ],
)
def test_a_planted_import_is_found(tmp_path, module, source, complaint):
    plant(tmp_path, module, source)
    assert wrong_imports(tmp_path) == [complaint]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("plan/job", "from codellama_convert.model import rope\nimport codellama_convert.errors"),
        ("verify/run", "from codellama_convert.meta.rank_reader import RankReader\nimport numpy"),
        ("cli/commands", "from codellama_convert import __version__\nimport click"),
        ("__init__", "from codellama_convert.cli.commands import main"),
    ],
)
def test_an_import_from_below_is_allowed(tmp_path, module, source):
    plant(tmp_path, module, source)
    assert wrong_imports(tmp_path) == []


def plant(package: Path, module: str, source: str) -> None:
    path = (package / module).with_suffix(".py")
    path.parent.mkdir(exist_ok=True)
    path.write_text(source, encoding="utf-8")


def test_the_proof_shares_nothing_with_the_writer(tmp_path):
    for writer in WRITERS:
        assert PACKAGE.joinpath(*writer.split(".")).with_suffix(".py").exists(), writer
    assert shared_with_writers(PACKAGE) == []
    plant(tmp_path, "verify/tensor", "from codellama_convert.tokenizer.tokenizer_json import f")
    plant(tmp_path, "verify/config", "from codellama_convert.model.config import config_json")
    assert shared_with_writers(tmp_path) == [
        "codellama_convert.model.config.config_json",
        "codellama_convert.tokenizer.tokenizer_json",
    ]


def test_the_map_has_every_package_in_order_and_names_files_that_exist():
    """A map that nobody checks is wrong after the next move."""
    page = (PACKAGE / "README.md").read_text(encoding="utf-8")
    mapped = re.findall(r"^\| `(\w+)/` \|", page, re.MULTILINE)
    assert mapped == [name for name in ORDER if (PACKAGE / name).is_dir()]
    named = set(re.findall(r"`((?:\w+/)+\w+(?:\.py)?)`", page))
    assert {"model/rope.py", "tests/faults/hostile", "staging/publish.py"} <= named
    roots = (PACKAGE, PACKAGE.parent)
    assert [name for name in sorted(named) if not any((r / name).exists() for r in roots)] == []
