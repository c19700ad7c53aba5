"""What .github/SECURITY.md promises: each line names a test, and the test exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
POLICY = (ROOT / ".github" / "SECURITY.md").read_text(encoding="utf-8")


def names_of_tests() -> set[str]:
    """Name every test of the suite."""
    texts = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    return {name for text in texts for name in re.findall(r"^def (test_\w+)\(", text, re.MULTILINE)}


def without_proof(policy: str) -> list[str]:
    """Name the promises of the page that name no test, or one that does not exist."""
    start = policy.index("## What is defended")
    promises = re.findall(
        r"^- .*$", policy[start : policy.index("## What is not defended")], re.MULTILINE
    )
    assert promises
    there = names_of_tests()
    named = {line: re.findall(r"`(test_\w+)`", line) for line in promises}
    return [line for line, names in named.items() if not names or not there.issuperset(names)]


def test_every_promise_of_the_page_names_a_test_that_exists():
    assert without_proof(POLICY) == []
    assert POLICY.count("\n") <= 120


@pytest.mark.parametrize("spoil", [("`test_", "`test_no_such_"), (r" `test_damaged_files\w+`", "")])
def test_a_promise_without_a_test_is_found(spoil):
    spoiled = re.sub(*spoil, POLICY, count=1)
    assert len(without_proof(spoiled)) == 1


_NETWORK_AND_PROGRAMS = frozenset(
    {
        "asyncio", "ftplib", "http", "huggingface_hub", "multiprocessing", "requests", "socket",
        "ssl", "subprocess", "tempfile", "urllib", "webbrowser", "xmlrpc",
    }
)  # fmt: skip


def reached(source: str) -> set[str]:
    """Name what a module imports or calls that reaches beyond the files it is given."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found |= {f"{node.value.id}.{node.attr}"}
        elif isinstance(node, ast.Name) and node.id in {"eval", "exec"}:
            found.add(node.id)  # a module of the others is imported first
    spawns = r"os\.(system|popen|fork\w*|exec\w*|spawn\w*|posix_spawn\w*|startfile)|eval|exec"
    return {one for one in found if one in _NETWORK_AND_PROGRAMS or re.fullmatch(spawns, one)}


def test_the_program_reaches_for_nothing_but_files_without_dask():
    package = ROOT / "codellama_convert"
    found = {
        path.relative_to(package).as_posix(): reached(path.read_text(encoding="utf-8"))
        for path in package.rglob("*.py")
    }
    assert {name: what for name, what in found.items() if what} == {"convert/dask.py": {"asyncio"}}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import socket", "socket"),
        ("def f():\n    from urllib.request import urlopen", "urllib"),
        ("import os\nos.system('x')", "os.system"),
        ("import os\nos.execvp('x', [])", "os.execvp"),
        ("eval('1')", "eval"),
    ],
)
def test_a_module_that_reaches_further_is_found(source, found):
    assert reached(source) == {found}
    assert reached("import os\nos.open('x', 0)\nnp.exec_time") == set()
