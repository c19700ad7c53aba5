"""The places where tests stop the program: reachable from code only, and never by a user's shell."""

from __future__ import annotations

import ast
import os
import signal
from pathlib import Path

import pytest
import torch

from codellama_convert.staging import crash_points as faults
from tests.faults.dying import module_that_dies
from tests.outputs import command, finish, loads
from tests.witness.checkpoints import MHA, random_model, save_checkpoint

PACKAGE = Path(faults.__file__).parents[1]


def readers_of_the_environment(source: str) -> set[str]:
    names = {"environ", "environb", "getenv", "getenvb"}
    nodes = list(ast.walk(ast.parse(source)))
    found = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    found |= {a.name for node in nodes if isinstance(node, ast.ImportFrom) for a in node.names}
    return found & names


def test_no_module_of_the_program_reads_the_environment():
    """A variable of a test hook ended a user's run with a traceback, or killed it."""
    assert readers_of_the_environment("import os\nos.environ.get('X')") == {"environ"}
    assert readers_of_the_environment("from os import getenv") == {"getenv"}
    modules = list(PACKAGE.rglob("*.py"))
    assert PACKAGE / "staging" / "crash_points.py" in modules
    for module in modules:
        assert readers_of_the_environment(module.read_text(encoding="utf-8")) == set(), module


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL as POSIX has it")
@pytest.mark.parametrize("value", ["x", "3"])
def test_only_the_launcher_of_the_tests_kills_a_run(tmp_path, value):
    """CODELLAMA_CONVERT_KILL_AT=x was a traceback, and =3 left half a model."""
    source, target = tmp_path / "in", tmp_path / "out"
    save_checkpoint(source, MHA, random_model(MHA, torch.bfloat16, 1))
    arguments = command(source, target)
    killed = finish([*module_that_dies(3), *arguments[3:]])
    assert killed.returncode == -signal.SIGKILL
    assert not loads(target)
    done = finish(arguments, CODELLAMA_CONVERT_KILL_AT=value)
    assert done.returncode == 0, done.stderr
    assert loads(target)
