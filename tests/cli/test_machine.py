"""Machines that lack something: one line with the true cause and what to do, and nothing half-done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from codellama_convert.cli.machine import lack_in_words
from tests.outputs import ROOT, STAGING, command, content, convert_whole, error_line, finish, loads
from tests.witness.checkpoints import GQA, random_model, save_checkpoint

pytestmark = pytest.mark.skipif(os.name == "nt", reason="limits as POSIX has them")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, what an unlimited run makes of it, and one of float32."""
    folder = convert_whole(tmp_path_factory.mktemp("machine"))
    save_checkpoint(folder / "float32", GQA, random_model(GQA, torch.float32, 3))
    return folder


# --- libraries that do not load -------------------------------------------------------------------

NUMPY_ADVICE = """\
try:
    raise ImportError("libopenblas.so.0: cannot open shared object file", name="numpy._core._umath")
except ImportError as problem:
    raise ImportError("\\n\\nIMPORTANT: PLEASE READ THIS\\nIt is a long story.\\n") from problem
"""
NO_SUCH_LIBRARY = "import ctypes\nctypes.CDLL('libcudart-not-there.so.12')\n"
NOT_THERE = "raise ModuleNotFoundError(f'No module named {__name__!r}', name=__name__)\n"
CAST = ("--dtype", "float16")  # from float32: other casts do without torch


@cache
def all_load(source: Path, more: tuple[str, ...]) -> bool:
    """The control: the same command, where every library loads."""
    target = source.with_name("again")
    return finish(command(source, target, "--overwrite", *more)).returncode == 0


@pytest.mark.parametrize(
    ("library", "source", "more", "facts"),
    [
        ("numpy", NUMPY_ADVICE, (), ("cannot import numpy: libopenblas.so.0: cannot open shared",)),
        ("torch", NO_SUCH_LIBRARY, CAST, ("cannot import torch: libcudart-not-there.so.12: ",)),
        ("torch", NUMPY_ADVICE, CAST, ("cannot import torch: libopenblas.so.0: ",)),
        ("torch", NOT_THERE, CAST, ("cannot import torch: No module named 'torch'",)),
        ("click", NOT_THERE, (), ("cannot import click: No module named 'click'",)),
        ("click", NO_SUCH_LIBRARY, (), ("cannot import click: libcudart-not-there.so.12: ",)),
        ("torch", "raise MemoryError\n", CAST, ("not enough memory", "--max_ram")),
    ],
)
def test_a_library_that_does_not_load_is_named_with_the_first_cause(
    converted, tmp_path, library, source, more, facts
):
    """They were tracebacks, and a missing shared library was "cannot print"."""
    (tmp_path / "broken" / library).mkdir(parents=True)
    (tmp_path / "broken" / library / "__init__.py").write_text(source, encoding="utf-8")
    path = os.pathsep.join((str(tmp_path / "broken"), str(ROOT)))
    source = converted / ("float32" if more == CAST else "in")
    line = error_line(finish(command(source, tmp_path / "out", *more), PYTHONPATH=path))
    assert all(fact in line for fact in facts)
    assert line.endswith(("; install it again", "--workers 1"))
    assert not loads(tmp_path / "out")
    assert not (tmp_path / "out" / STAGING).exists()
    assert all_load(source, more)


def test_a_missing_library_of_verify_is_named_too(converted, tmp_path):
    (tmp_path / "safetensors").mkdir()
    (tmp_path / "safetensors" / "__init__.py").write_text(NOT_THERE, encoding="utf-8")
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    arguments = [sys.executable, "-m", "codellama_convert", "verify"]
    arguments += ["--output_dir", str(converted / "out")]
    assert "cannot import safetensors: No module" in error_line(finish(arguments, PYTHONPATH=path))
    assert finish(arguments).returncode == 0


# --- limits ---------------------------------------------------------------------------------------

# Starts the command line under a limit: of open files, of address space or private memory (in MiB),
# of new threads.
LIMITED = """
import resource, sys, threading
kind, number = sys.argv.pop(1), int(sys.argv.pop(1))
if kind == "files":
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))
elif kind == "memory":
    resource.setrlimit(resource.RLIMIT_AS, (number << 20, number << 20))
elif kind == "private memory":
    resource.setrlimit(resource.RLIMIT_DATA, (number << 20, number << 20))
else:
    start = threading._start_new_thread
    def start_or_fail(*arguments, **named):
        global number
        number -= 1
        if number < 0:
            raise RuntimeError("can't start new thread")
        return start(*arguments, **named)
    threading._start_new_thread = start_or_fail
from codellama_convert.__main__ import main
main()
"""


def under(kind: str, number: int, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command under a limit."""
    return finish([sys.executable, "-c", LIMITED, kind, str(number), *arguments[3:]])


@pytest.mark.parametrize("number", [4, 5, 6, 7, 8, 9, 10, 11])
def test_few_open_files_are_one_line_that_says_so(converted, tmp_path, number):
    """It asked for another place for the output."""
    arguments = command(converted / "in", tmp_path / "out", "--workers", "1")
    done = under("files", number, arguments)
    if done.returncode == 0:
        assert number > 6
        assert content(tmp_path / "out") == content(converted / "out")
        return
    line = error_line(done)
    assert done.returncode == 1
    assert "Too many open files" in line
    assert "ulimit -n" in line
    assert "free some space" not in line
    assert "--output_dir" not in line, "no other place would help"
    assert not loads(tmp_path / "out")
    assert finish(arguments).returncode == 0
    assert content(tmp_path / "out") == content(converted / "out")


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS as Linux has it")
@pytest.mark.parametrize(
    ("kind", "megabytes"),
    [("memory", 60), ("memory", 80), ("memory", 120), ("private memory", 80)],
)
def test_too_little_memory_is_one_line_and_no_endless_loop(converted, tmp_path, kind, megabytes):
    """OpenBLAS asked for its memory for ever, deaf to SIGTERM; of `ulimit -d` nothing was known."""
    arguments = command(converted / "in", tmp_path / "out")
    line = error_line(under(kind, megabytes, arguments))
    assert "not enough memory" in line
    assert not (tmp_path / "out").exists()
    assert under(kind, 2_000, arguments).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS as Linux has it")
@pytest.mark.parametrize("megabytes", [300])
def test_too_little_memory_for_torch_is_one_line(converted, tmp_path, megabytes):
    arguments = command(converted / "float32", tmp_path / "out", *CAST)
    line = error_line(under("memory", megabytes, arguments))
    assert "memory" in line
    assert "install" not in line
    assert not loads(tmp_path / "out")


@pytest.mark.parametrize("number", [0, 1])
def test_a_thread_that_cannot_start_is_one_line(converted, tmp_path, number):
    arguments = command(converted / "in", tmp_path / "out", "--workers", "3")
    line = error_line(under("threads", number, arguments))
    assert "cannot start a thread" in line
    assert "ulimit -u" in line
    assert "--workers 1" in line
    assert not loads(tmp_path / "out")
    alone = [*arguments[:-1], "1"]
    assert under("threads", 0, alone).returncode == 0
    assert content(tmp_path / "out") == content(converted / "out")


def test_a_signal_is_heard_where_no_thread_can_start(converted, tmp_path):
    signalled = LIMITED.replace(
        "from codellama_convert.__main__",
        "import os, signal\n"
        "from codellama_convert.convert.transfer import TileSource\n"
        "fill = TileSource.fill\n"
        "def signalled(*arguments, **named):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    TileSource.fill = fill\n"
        "    return fill(*arguments, **named)\n"
        "TileSource.fill = signalled\n"
        "from codellama_convert.__main__",
    )
    arguments = command(converted / "in", tmp_path / "out", "--workers", "1")
    done = finish([sys.executable, "-c", signalled, "threads", "0", *arguments[3:]])
    assert done.returncode == 128 + signal.SIGTERM
    assert "run the same command again to resume" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (MemoryError(), "not enough memory; allow more"),
        (OSError(12, "Cannot allocate memory"), "not enough memory; allow more"),
        (OSError(24, "Too many open files", "a.py"), "a.py: Too many open files; allow more open"),
        (OSError(28, "No space left on device"), "cannot print: No space left on device"),
        (RuntimeError("can't start new thread"), "cannot start a thread"),
        (ImportError("no", name="a.b.c"), "cannot import a: no; install it again"),
        (ImportError("libx.so: failed to map segment from shared object"), "; allow more memory"),
    ],
)
def test_what_is_lacking_is_said_with_what_to_do(problem, words):
    assert words in str(lack_in_words(problem))


@pytest.mark.parametrize("problem", [RuntimeError("of ours"), RecursionError(), ValueError("x")])
def test_a_mistake_of_ours_is_not_called_the_machines(problem):
    assert lack_in_words(problem) is None
