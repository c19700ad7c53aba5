"""Shells that complete, terminals that show a bar, and streams that are closed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.running import run
from tests.outputs import on_a_terminal

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("words", "number", "offered"),
    [
        ("codellama-convert ", 1, {"", "batch", "convert", "plan", "reverse", "verify"}),
        ("codellama-convert Code", 1, {"Code"}),  # the shell completes folders itself
        ("codellama-convert --mod", 1, {"--model_size", "--model_card"}),
        ("codellama-convert --input_dir x --dt", 3, {"--dtype"}),
        ("codellama-convert plan --max_r", 2, {"--max_ram"}),
        ("codellama-convert --dtype fl", 2, {"float16", "float32", "float"}),
        ("codellama-convert plan --model_size 7", 3, {"7B", "70B", "7Bf", "70Bf"}),
    ],
)
def test_a_shell_can_complete_commands_options_and_values(words, number, offered):
    done = subprocess.run(
        [sys.executable, "-m", "codellama_convert"], check=False, capture_output=True, text=True,
        cwd=REPOSITORY, timeout=60,
        env={**os.environ, "_CODELLAMA_CONVERT_COMPLETE": "bash_complete", "COMP_WORDS": words,
             "COMP_CWORD": str(number)},
    )  # fmt: skip
    assert {line.split(",")[1] for line in done.stdout.split()} == offered, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_of_the_readme_gets_its_script(shell):
    done = subprocess.run(
        [sys.executable, "-m", "codellama_convert"], check=False, capture_output=True, text=True,
        cwd=REPOSITORY, timeout=60,
        env={**os.environ, "_CODELLAMA_CONVERT_COMPLETE": f"{shell}_source"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"_CODELLAMA_CONVERT_COMPLETE={shell}_complete" in done.stdout


def program(*arguments: object, **streams: int) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own, its streams as given; stderr is read otherwise."""
    return subprocess.run(
        [sys.executable, "-m", "codellama_convert", *map(str, arguments)], check=False, text=True,
        cwd=REPOSITORY, timeout=120, **{"stderr": subprocess.PIPE, **streams},
    )  # fmt: skip


needs_terminal = pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals as POSIX has them")
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


@needs_terminal
def test_a_terminal_shows_a_bar_that_is_gone_in_the_end(checkpoint):
    output = checkpoint.with_name("out")
    status, printed = on_a_terminal("--input_dir", checkpoint, "--output_dir", output, "--verify")
    assert status == 0, printed
    for what in ("converting", "verifying"):
        assert re.search(rf"\r{what}: +\d+%\|", printed)
    before, _, last = printed.rpartition("\r\nAutoModelForCausalLM.")[0].rpartition("\r")
    assert last.startswith(f"wrote {output}: ")
    assert not before.rpartition("\r")[2].strip(), "the bar is wiped off"
    assert "\x1b[3" not in printed, "no colours"
    piped = program("--input_dir", checkpoint, "--output_dir", checkpoint.with_name("piped"),
                    "--verify", stdout=subprocess.PIPE)  # fmt: skip
    assert piped.returncode == 0
    for said in (piped.stdout, piped.stderr):
        assert "%" not in said
        assert "\r" not in said


@needs_terminal
def test_help_and_plan_fit_a_terminal_of_80_columns(checkpoint):
    for arguments in (["--help"], ["verify", "--help"], ["plan", "--input_dir", checkpoint]):
        status, printed = on_a_terminal(*arguments)
        assert status == 0, printed
        notes = ("note: ", "checkpoint ", "output ")
        lines = [line for line in printed.splitlines() if not line.startswith(notes)]
        assert len(lines) > 10
        assert not [line for line in lines if len(line) > 80]
    assert "\x1b[" not in printed


@needs_full
@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["plan", "{i}"], ["plan", "{i}", "--json"], ["convert", "{i}"]],
)
def test_what_cannot_be_printed_is_one_line(checkpoint, words):
    arguments = [word.format(i=f"--input_dir={checkpoint}") for word in words]
    with Path("/dev/full").open("wb") as full:
        told = program(*arguments, stdout=full.fileno())
    assert told.returncode == 1
    errors = [line for line in told.stderr.splitlines() if not line.startswith("note: ")]
    assert errors == ["Error: cannot print: No space left on device"]
    if "convert" in words:
        arguments.append("--overwrite")  # it was written; only the summary was lost
    assert program(*arguments, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.skipif(shutil.which("bash") is None or os.name == "nt", reason="needs bash")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_conversion_does_without_its_streams(checkpoint, closed):
    output = checkpoint.with_name("out")
    command = (
        f'"$0" -m codellama_convert --input_dir "$1" --output_dir "$2" --dtype float32 {closed}'
    )
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, str(checkpoint), str(output)],
        check=False, cwd=REPOSITORY, timeout=120, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert run("verify", "--input_dir", checkpoint, "--output_dir", output).exit_code == 0


@pytest.mark.parametrize(("call", "number"), [("occupy()", 3), ("0", 0)])
def test_closed_streams_do_not_get_into_the_files(call, number):
    """What is opened first gets the number of a closed stream, and then all that is printed."""
    code = (
        "import os\nfrom codellama_convert.__main__ import _occupy_standard_streams as occupy\n"
        "for number in (0, 1, 2):\n    os.close(number)\n"
        f"{call}\nos._exit(10 + os.open(os.devnull, os.O_RDONLY))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=REPOSITORY, timeout=60)
    assert done.returncode == 10 + number
