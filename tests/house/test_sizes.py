"""Folders, modules and functions stay small enough to be read whole; what does not is named here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("codellama_convert", "tests", "examples")
MAX_MODULES, MAX_LINES, MAX_BODY_LINES = 15, 300, 40

# What is longer, and why. The package's own say why in their docstrings too.
LONGER_MODULES = {
    # Rows and sums are of one reading.
    "codellama_convert/formats/tensor_reader.py",
    # A script that is copied alone, and so imports nothing of the project.
    "examples/make_tiny_checkpoint.py",
    # A second spelling of Meta's whole folder, in one place.
    "tests/witness/checkpoints.py",
}
LONGER_FUNCTIONS = {
    # One JSON object, spelled as the file has it.
    "codellama_convert/verify/tokenizer/llama3.py: _frame",
    "tests/tokenizer/test_tokenizer_json.py: test_the_frame_of_tokenizer_json_is_the_measured_one",
    # One table of all cases.
    "examples/benchmark/benchmark_cases.py: build_cases",
    # A zip file from its first byte to its last, any of them forged.
    "tests/faults/hostile/zip_bytes.py: write_zip",
    # Options, and one line for each fuzzer.
    "tests/fuzzers/fuzz.py: main",
}


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines below the signature and the docstring: neither makes a function complicated."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def too_large(root: Path) -> Iterator[str]:
    """Name the folders, modules and functions that are larger than they should be."""
    modules = [path for folder in FOLDERS for path in (root / folder).rglob("*.py")]
    for folder in {path.parent for path in modules}:
        n_modules = len([*folder.glob("*.py")]) - (folder / "__init__.py").exists()
        if n_modules > MAX_MODULES:
            yield f"{folder.relative_to(root).as_posix()}/"
    for path in modules:
        name, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
        if len(text.splitlines()) > MAX_LINES:
            yield name
        for node in ast.walk(ast.parse(text)):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if is_function and body_lines(node) > MAX_BODY_LINES:
                yield f"{name}: {node.name}"


def test_what_is_large_is_named_with_a_reason():
    assert set(too_large(ROOT)) - LONGER_MODULES - LONGER_FUNCTIONS == set()


def test_no_exception_outlives_its_file():
    named = LONGER_MODULES | {name.split(":")[0] for name in LONGER_FUNCTIONS}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    for name in sorted(LONGER_MODULES):
        if name.startswith("codellama_convert/"):
            assert "More than 300 lines, as" in (ROOT / name).read_text(encoding="utf-8")


def test_what_is_one_too_large_is_found(tmp_path):
    for folder, n_modules in (("tests", MAX_MODULES), ("examples", MAX_MODULES + 1)):
        (tmp_path / folder).mkdir()
        for number in range(n_modules):
            (tmp_path / folder / f"m{number}.py").touch()
    (tmp_path / "tests" / "__init__.py").touch()
    (tmp_path / "tests" / "m0.py").write_text("\n" * MAX_LINES, encoding="utf-8")
    (tmp_path / "tests" / "m1.py").write_text("\n" * (MAX_LINES + 1), encoding="utf-8")
    lines = "    pass\n" * MAX_BODY_LINES
    function = f'def {{}}(\n    a, b\n):\n    """One.\n\n    More.\n    """\n{lines}{{}}'
    (tmp_path / "tests" / "m2.py").write_text(
        function.format("fits", "") + function.format("long", "    pass\n"), encoding="utf-8"
    )
    assert sorted(too_large(tmp_path)) == ["examples/", "tests/m1.py", "tests/m2.py: long"]
