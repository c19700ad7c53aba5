"""Problems for machines: with --json they are on stdout too, and the exit status is the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result

from codellama_convert.errors import Interrupted
from tests.cli.running import run
from tests.outputs import ROOT, environment

KEYS = ["error", "kind", "message", "path", "hint", "exit_status"]


def both(*words: object) -> tuple[dict[str, object], Result]:
    """Run without --json and with it; all but stdout is the same, which holds one object."""
    plain, result = run(*words), run(*words, "--json")
    assert plain.stdout == ""
    assert result.exit_code == plain.exit_code
    assert result.stderr == plain.stderr
    told = json.loads(result.stdout)
    assert list(told) == KEYS
    assert told["exit_status"] == result.exit_code
    return told, result


@pytest.mark.parametrize("command", ["plan", "convert"])
def test_a_problem_with_the_input_is_json_too(checkpoint, command):
    """A program that reads --json had to take the cause from the words on stderr."""
    (checkpoint / "params.json").write_bytes(b"{")
    told, result = both(command, checkpoint)
    assert told["exit_status"] == 1
    assert told["kind"] == "ConfigError"
    assert told["path"] == str(checkpoint / "params.json")
    assert told["message"].startswith("is not JSON")
    assert told["hint"]
    assert f"Error: {told['error']}" == result.stderr.splitlines()[-1]
    assert told["error"] == f"{told['path']}: {told['message']}; {told['hint']}"


def test_a_folder_in_use_is_json_too(checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_bytes(b"mine")
    told, _ = both(checkpoint, tmp_path / "out")
    assert (told["kind"], told["path"]) == ("OutputError", str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (["CodeLlama-8b"], "no such command or folder: 'CodeLlama-8b'"),
        (["convert", "--dtype", "int8"], "'int8' is not one of"),
        (["plan"], "IN is missing"),
        (["--bogus"], "--bogus"),
        (["verify", ".", "--max_ram", "5GB"], "--max_ram is of no use without the source"),
        (["--max_shard_size", "5"], "5 bytes? write 5GB"),
    ],
)
def test_a_wrong_use_is_json_too(words, fact):
    told, result = both(*words)
    assert told["exit_status"] == 2
    assert told["kind"] == "UsageError"
    assert told["path"] is told["hint"] is None
    assert fact in str(told["message"])
    assert result.stderr.splitlines()[-1] == f"Error: {told['error']}"


def test_a_stop_is_json_too(checkpoint, monkeypatch):
    def stopped(*_: object, **__: object) -> None:
        raise Interrupted("Interrupted", signal_number=15, hint="run the same command again")

    monkeypatch.setattr("codellama_convert.convert.run.run", stopped)
    told, result = both(checkpoint)
    assert (told["kind"], told["exit_status"]) == ("Interrupted", 143)
    assert result.stderr.splitlines()[-1] == told["error"]


@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
def test_what_the_machine_lacks_is_json_too(checkpoint):
    import resource

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (120 << 20, 120 << 20))

    done = subprocess.run(
        [sys.executable, "-m", "codellama_convert", str(checkpoint), "--json"], check=False,
        capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=120,
        preexec_fn=limited,
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert list(told) == KEYS
    assert told["exit_status"] == done.returncode == 1
    assert f"Error: {told['error']}" == done.stderr.splitlines()[-1]


def test_what_json_says_of_names_is_ascii(checkpoint):
    (checkpoint / "params.json").write_bytes(b"{")
    evil = checkpoint.rename(checkpoint.with_name("a\x1b[2J\n\x7f"))
    result = run(evil, "--json")
    assert result.stdout.isascii()
    assert "\x1b" not in result.stdout + result.stderr
    assert json.loads(result.stdout)["path"] == str(evil / "params.json")


def test_the_page_of_the_options_names_the_keys():
    page = (ROOT / "codellama_convert/cli/README.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in page for key in KEYS)


def test_a_full_disk_behind_stdout_keeps_the_status(checkpoint):
    (checkpoint / "params.json").write_bytes(b"{")
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "codellama_convert", "--json", "--max_ram", "5", str(checkpoint)],
            check=False, cwd=ROOT, env=environment(), timeout=120, stdout=full,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("5 bytes? write 5GB, 5MB or 5B")
