"""Folders are named by their place, as every copying program takes them, or by option."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.running import run
from tests.outputs import content


@pytest.fixture
def here(checkpoint, monkeypatch) -> Path:
    """The folder that holds CodeLlama-7b, as the current one."""
    monkeypatch.chdir(checkpoint.parent)
    return checkpoint.parent


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["CodeLlama-7b"], "CodeLlama-7b-hf"),
        (["CodeLlama-7b/"], "CodeLlama-7b-hf"),
        (["CodeLlama-7b", "new"], "new"),
        (["convert", "CodeLlama-7b", "new"], "new"),
        (["--quiet", "CodeLlama-7b", "new"], "new"),
        (["CodeLlama-7b", "--dtype", "bfloat16", "new"], "new"),
        (["CodeLlama-7b", "--output-dir", "new"], "new"),
        (["--output_dir=new", "CodeLlama-7b"], "new"),
        (["--", "CodeLlama-7b", "new"], "new"),
        (["--input_dir", "CodeLlama-7b", "--output_dir", "new"], "new"),
    ],
)
def test_in_and_out_are_what_the_options_name(here, words, output):
    """A bare folder was refused, with the advice to write --input_dir before it."""
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert {path.name for path in here.iterdir()} == {"CodeLlama-7b", output}
    assert (here / output / "model.safetensors").exists()


def test_plan_takes_the_words_that_convert_takes(here):
    by_place = run("plan", "CodeLlama-7b", "new", "--json")
    by_option = run("plan", "--input_dir", "CodeLlama-7b", "--output_dir", "new", "--json")
    assert by_place.exit_code == by_option.exit_code == 0
    told, same = (json.loads(result.stdout) for result in (by_place, by_option))
    assert told["output_dir"] == same["output_dir"] == "new"
    assert told["files"] == same["files"]
    assert "output      CodeLlama-7b-hf\n" in run("plan", "CodeLlama-7b").stdout


@pytest.mark.parametrize(
    ("words", "against"),
    [
        (["CodeLlama-7b", "CodeLlama-7b-hf"], "the checkpoint"),
        (["CodeLlama-7b-hf"], "conversion.json"),
        (["CodeLlama-7b-hf", "--input_dir", "CodeLlama-7b"], "the checkpoint"),
        (["CodeLlama-7b", "--output_dir", "CodeLlama-7b-hf"], "the checkpoint"),
        (["--output_dir", "CodeLlama-7b-hf"], "conversion.json"),
    ],
)
def test_verify_compares_two_folders_or_one_with_itself(here, words, against):
    assert run("CodeLlama-7b").exit_code == 0
    result = run("verify", *words)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"CodeLlama-7b-hf equals {against}: ")


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["CodeLlama-7b", "--input_dir", "CodeLlama-7b"], ["IN is given twice", "--input_dir"]),
        (["--input_dir", "CodeLlama-7b", "new"], ["IN is given twice", "new"]),
        (["CodeLlama-7b", "new", "--output_dir", "x"], ["OUT is given twice", "--output_dir x"]),
        (["CodeLlama-7b", "new", "third"], ["third"]),
        (["plan", "CodeLlama-7b", "--input_dir", "CodeLlama-7b"], ["IN is given twice"]),
        (["verify", "CodeLlama-7b", "new", "--output_dir", "x"], ["OUT is given twice"]),
        (["verify", "CodeLlama-7b", "new", "--input_dir", "x"], ["IN is given twice"]),
        (["convert"], ["IN is missing"]),
        (["--quiet"], ["IN is missing"]),
        (["plan", "--output_dir", "new"], ["IN is missing"]),
        (["verify"], ["OUT is missing"]),
        (["verify", "--input_dir", "CodeLlama-7b"], ["OUT is missing"]),
    ],
)  # fmt: skip
def test_a_folder_given_twice_or_not_at_all_is_a_usage_error(here, words, facts):
    (here / "x").mkdir()
    (here / "new").mkdir()
    before = content(here)
    result = run(*words)
    assert result.exit_code == 2, result.output
    for fact in facts:
        assert fact in result.stderr.splitlines()[-1]
    assert content(here) == before


@pytest.mark.parametrize(
    "words",
    [
        [""], ["convert", ""], ["CodeLlama-7b", ""], ["CodeLlama-7b", "--output_dir", ""],
        ["CodeLlama-7b", "--output_dir="], ["--input_dir", ""], ["plan", ""],
        ["plan", "CodeLlama-7b", ""], ["verify", ""], ["verify", "", "CodeLlama-7b"],
    ],
)  # fmt: skip
def test_an_empty_name_is_a_forgotten_variable(here, words):
    """`--output_dir "$OUT"` would write into the current folder where OUT is not set."""
    before = content(here)
    result = run(*words)
    assert result.exit_code == 2
    assert "the name is empty" in result.stderr
    assert content(here) == before


def test_a_folder_with_the_name_of_a_command_stays_in_reach(here):
    (here / "CodeLlama-7b").rename(here / "plan")
    missing = run("plan")
    assert missing.exit_code == 2
    assert "./plan" in missing.stderr.splitlines()[-1]
    assert not (here / "plan-hf").exists()
    assert run("./plan").exit_code == 0
    assert (here / "plan-hf" / "model.safetensors").exists()
    assert run("--input_dir", "plan", "--output_dir", "again").exit_code == 0
    assert run("plan", "plan", "new").exit_code == 0
    (here / "plan").rename(here / "other")
    assert "./plan" not in run("plan").stderr


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (["plot"], "no such command or folder: 'plot'"),
        (["CodeLlama-8b", "new"], "no such command or folder: 'CodeLlama-8b'"),
        (["plan", "CodeLlama-8b"], "'IN': Directory 'CodeLlama-8b' does not exist"),
        (["verify", "CodeLlama-8b"], "'OUT': Directory 'CodeLlama-8b' does not exist"),
        (["verify", "CodeLlama-7b", "CodeLlama-8b"], "'OUT': Directory 'CodeLlama-8b' does not"),
        (["CodeLlama-7b/params.json"], "'IN': Directory 'CodeLlama-7b/params.json' is a file"),
    ],
)
def test_a_folder_that_does_not_exist_is_named(here, words, fact):
    result = run(*words)
    assert result.exit_code == 2
    assert fact in result.stderr.splitlines()[-1]
