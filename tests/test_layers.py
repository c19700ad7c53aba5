"""The rooms of the house: a module imports only from lower layers, and the core stays pure."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "codellama_convert"

# What a module may know: only modules with a smaller number.
ROOMS: dict[str, int] = {
    "errors": 0,
    "tensors": 0,
    "rope": 0,
    "crc32": 0,
    "sizes": 0,
    "usage": 0,
    "faults": 0,
    "foreign_params": 0,
    "interrupt": 0,
    "machine": 0,
    "protobuf": 0,
    "chat": 0,
    "strict_json": 0,
    "workers": 0,
    "contents": 0,
    "arguments": 1,
    "loader_names": 1,
    "files": 1,
    "config": 1,
    "pickle_names": 1,
    "stored_tensor": 1,
    "safetensors_io": 1,
    "tokenizer_source": 1,
    "token_batch": 1,
    "cast": 1,
    "checkpoint_files": 2,
    "input_file": 2,
    "weights_pickle": 2,
    "output_file": 2,
    "journal_values": 1,
    "held_folder": 2,
    "journal": 3,
    "folders": 2,
    "folder_lock": 2,
    "publish": 3,
    "staged": 4,
    "variants": 2,
    "sentencepiece_model": 2,
    "zip_directory": 3,
    "archive": 3,
    "digests": 3,
    "asked": 3,
    "output_files": 3,
    "output_reader": 4,
    "tokenizer_json": 3,
    "pth": 4,
    "views": 4,
    "tokenizer": 4,
    "checklist": 4,
    "conversion_record": 5,
    "meta_codec": 4,
    "occupied": 5,
    "model_card": 5,
    "source_sums": 5,
    "rank_reader": 6,
    "layout": 5,
    "options": 5,
    "code_llama_tokenizer": 5,
    "plan": 6,
    "checkpoint": 6,
    "job": 7,
    "output": 7,
    "tiles": 7,
    "provenance": 8,
    "output_state": 8,
    "run_options": 8,
    "convert": 11,
    "verify_report": 4,
    "verify_json": 5,
    "verify_long_json": 5,
    "verify_config": 6,
    "verify_tokenizer": 7,
    "verify_tensor": 7,
    "verify_job": 8,
    "verify_sums": 8,
    "verify_record": 9,
    "verify_weights": 10,
    "verify": 11,
    "__init__": 12,  # the public names of the library
    "reports": 12,
    "progress_bar": 12,
    "cli_options": 12,
    "cli": 13,
    "__main__": 14,
}

# Neighbours in one layer that may talk, importer first.
DOORS = {
    ("archive", "zip_directory"),  # the two halves of one format
    ("pth", "views"),  # what it refuses of its tensors
}

# They decide and calculate; whoever wants to move bytes or print imports another room.
PURE = {
    "arguments", "errors", "tensors", "config", "variants", "layout", "model_card", "plan", "options",
    "job",
}  # fmt: skip
HEAVY = {"torch", "numpy", "click", "tqdm", "safetensors", "sentencepiece"}


def modules(package: Path) -> dict[str, ast.Module]:
    """Find and parse every module of a flat package."""
    return {
        ".".join(path.relative_to(package).with_suffix("").parts): ast.parse(path.read_bytes())
        for path in sorted(package.rglob("*.py"))
    }


def imports(tree: ast.Module, package: str) -> Iterator[tuple[str, str]]:
    """Tell every import anywhere in a module: ("", top-level name) or (package, its module).

    Imports inside functions and under TYPE_CHECKING count: a room depends on what it names.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, (package if node.level else "", node.module)))
            from_root = base == package
            names = [f"{base}.{alias.name}" if from_root else base for alias in node.names]
        else:
            continue
        for name in names:
            top, _, inner = name.partition(".")
            if top == package:
                yield package, inner.split(".")[0] or "__init__"
            else:
                yield "", top


def complaints(package: Path) -> list[str]:
    """List what breaks the rules, one sentence each."""
    found = []
    trees = modules(package)
    for importer, tree in trees.items():
        if importer not in ROOMS:
            found.append(f"{importer} stands in no room: add it to ROOMS")
            continue
        for owner, name in imports(tree, package.name):
            if not owner:
                if importer in PURE and name in HEAVY:
                    found.append(f"{importer} is pure and imports {name}")
                continue
            if name == "__version__":
                continue
            room = name if name in trees else "__init__"  # no module: a name that __init__ defines
            if room not in ROOMS or room == importer or (importer, room) in DOORS:
                continue
            if ROOMS[room] >= ROOMS[importer]:
                found.append(
                    f"{importer} (layer {ROOMS[importer]}) imports {room} (layer {ROOMS[room]})"
                )
    return found


def test_modules_import_only_from_lower_layers_and_the_core_is_pure():
    assert "errors" in modules(PACKAGE)
    assert complaints(PACKAGE) == []


def test_the_guide_shows_the_rooms_as_they_are():
    guide = (PACKAGE.parent / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    shown = {
        name: int(layer)
        for layer, names in re.findall(r"^\| (\d+) \| (`.*?`) \|", guide, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", names)
    }
    assert shown == ROOMS
    (pure,) = (line for line in guide.splitlines() if "import neither torch" in line)
    assert set(re.findall(r"`(\w+)`", pure)) == PURE


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("errors", "import codellama_convert.cli", "errors (layer 0) imports cli (layer 13)"),
        ("config", "from .plan import Plan", "config (layer 1) imports plan (layer 6)"),
        ("config", "from . import files", "config (layer 1) imports files (layer 1)"),
        ("archive", "from .pth import x", "archive (layer 3) imports pth (layer 4)"),
        ("archive", "from codellama_convert import pth", "archive (layer 3) imports pth (layer 4)"),
        (
            "verify",
            "def f():\n    from .convert import x",
            "verify (layer 11) imports convert (layer 11)",
        ),
        ("plan", "import numpy as np", "plan is pure and imports numpy"),
        ("layout", "def f():\n    from torch.nn import Module", "layout is pure and imports torch"),
        ("tensors", "from tqdm import tqdm", "tensors is pure and imports tqdm"),
        ("errors", "import click.exceptions", "errors is pure and imports click"),
        (
            "convert",
            "from codellama_convert import convert_checkpoint",
            "convert (layer 11) imports __init__ (layer 12)",
        ),
        ("utils", "", "utils stands in no room: add it to ROOMS"),
        ("deep.plan", "", "deep.plan stands in no room: add it to ROOMS"),
    ],
)
def test_a_planted_import_is_found(tmp_path, module, source, complaint):
    assert complaints(plant(tmp_path, module, source)) == [complaint]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pth", "from .archive import Archive\nfrom codellama_convert.errors import ConvertError"),
        ("plan", "from . import layout\nimport codellama_convert.tensors\nimport json"),
        ("convert", "import torch\nfrom .output import Staging"),
        ("cli", "from codellama_convert import __version__, plan, plan_conversion\nimport click"),
        ("__init__", "from .convert import convert_checkpoint\nfrom . import __version__"),
    ],
)
def test_a_lower_import_is_allowed(tmp_path, module, source):
    assert complaints(plant(tmp_path, module, source)) == []


def plant(folder: Path, module: str, source: str) -> Path:
    """Copy the rooms, empty, and put one import into one of them."""
    package = folder / "codellama_convert"
    package.mkdir()
    for name in ROOMS:
        (package / f"{name}.py").touch()
    path = package.joinpath(*module.split(".")).with_suffix(".py")
    path.parent.mkdir(exist_ok=True)
    path.write_text(source, encoding="utf-8")
    return package


# What writes an output; whoever proves it spells what it expects a second time.
WRITERS = {
    "cast", "convert", "journal", "model_card", "output", "output_file", "provenance", "tiles",
    "tokenizer", "tokenizer_json",
}  # fmt: skip
WRITING_NAMES = {"config_json", "encode_header", "encode_index", "generation_config_json", "json_bytes", "to_half_split"}  # fmt: skip


def shared_with_writers(package: Path) -> list[str]:
    """List what the rooms of the proof take from those of the writer."""
    found = []
    for name, tree in modules(package).items():
        if name not in {"output_reader", "conversion_record"} and not name.startswith("verify"):
            continue
        rooms = {room for owner, room in imports(tree, package.name) if owner}
        found += [f"{name} imports {room}" for room in sorted(rooms & WRITERS)]
        taken = {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
        found += [f"{name} takes {one}" for one in sorted(taken & WRITING_NAMES)]
    return found


def test_the_proof_shares_nothing_with_the_writer(tmp_path):
    assert {"verify", "verify_tensor", "verify_tokenizer"} <= set(modules(PACKAGE))
    assert shared_with_writers(PACKAGE) == []
    assert set(modules(PACKAGE)) >= WRITERS
    source = "from .cast import Cast\nfrom .config import config_json"
    planted = plant(tmp_path, "verify_tensor", source)
    assert shared_with_writers(planted) == [
        "verify_tensor imports cast",
        "verify_tensor takes config_json",
    ]
