"""examples/infill.py from the command line: what it shows, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from examples.infill import PROMPT
from examples.infill import main as infill
from tests.witness.tiny import DOCUMENTED_MIDDLE, TINY
from tests.witness.vocabularies import model_bytes, write_folder

FILLED = f"""\
def remove_non_ascii(s: str) -> str:
    \"\"\" <FILL_ME>
    return result

filled in:

def remove_non_ascii(s: str) -> str:
    \"\"\" {DOCUMENTED_MIDDLE}
    return result
"""


@pytest.mark.parametrize("arguments", [(), ("--suffix_first",), ("--file", "-"), (PROMPT,)])
def test_the_infilling_script_shows_the_prompt_and_the_result(tiny_folder, arguments):
    result = CliRunner().invoke(infill, [str(tiny_folder), *arguments], input=PROMPT)
    assert result.exit_code == 0, result.output
    assert result.stdout == FILLED


def test_the_infilling_script_tells_when_a_filling_was_cut_off(tiny_folder):
    whole = CliRunner().invoke(infill, [str(tiny_folder)])
    assert (whole.exit_code, whole.stderr) == (0, "")
    cut = CliRunner().invoke(infill, [str(tiny_folder), "--max-new-tokens", "5"])
    assert cut.exit_code == 0
    assert cut.stdout.endswith('    """ Remove non\n    return result\n')
    assert "cut off after 5 tokens" in cut.stderr


@pytest.fixture(scope="module")
def places(tiny_folder, tmp_path_factory) -> dict[str, Path]:
    """A converted folder, and what people may take for one."""
    root = tmp_path_factory.mktemp("places")
    (root / "empty").mkdir()
    names = ("torn", "other shapes", "no weights", "no tokenizer")
    copies = {name: Path(shutil.copytree(tiny_folder, root / name)) for name in names}
    os.truncate(copies["torn"] / "model.safetensors", 500_000)
    config = json.loads((tiny_folder / "config.json").read_bytes())
    (copies["other shapes"] / "config.json").write_text(json.dumps(config | {"vocab_size": 512}))
    (copies["no weights"] / "model.safetensors").unlink()
    (copies["no tokenizer"] / "tokenizer.model").unlink()
    plain = {"tokenizer.model": model_bytes("plain"), "config.json": b"{}"}
    return copies | {
        "hf": tiny_folder,
        "empty": root / "empty",
        "missing": root / "missing",
        "source": TINY,
        "plain": write_folder(root / "plain", plain),
    }


@pytest.mark.parametrize(
    ("place", "text", "fact"),
    [
        ("hf", "return 1", "no <FILL_ME>"),
        ("hf", "<FILL_ME> + <FILL_ME>", "2 times"),
        ("missing", "x = <FILL_ME>", "does not exist"),
        ("empty", "x = <FILL_ME>", "not a converted folder"),
        ("source", "x = <FILL_ME>", "convert a checkpoint"),
        ("plain", "x = <FILL_ME>", "infilling"),
        ("no tokenizer", "x = <FILL_ME>", "tokenizer.model"),
        ("no weights", "x = <FILL_ME>", "model.safetensors"),
        ("torn", "x = <FILL_ME>", "codellama-convert verify"),
        ("other shapes", "x = <FILL_ME>", "codellama-convert verify"),
    ],
)
def test_the_infilling_script_explains_what_is_wrong(places, place, text, fact):
    result = CliRunner().invoke(infill, [str(places[place]), text])
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    assert fact in result.stderr.splitlines()[-1]
    assert result.stdout == ""


def test_the_infilling_script_explains_what_is_wrong_with_a_prompt(tiny_folder, tmp_path):
    prompt = tmp_path / "prompt.py"
    prompt.write_bytes("café = <FILL_ME>".encode("latin-1"))
    result = CliRunner().invoke(infill, [str(tiny_folder), "--file", str(prompt)])
    assert isinstance(result.exception, SystemExit)
    assert f"{prompt}: no UTF-8 text" in result.stderr
    both = CliRunner().invoke(infill, [str(tiny_folder), "x = <FILL_ME>", "--file", str(prompt)])
    assert both.exit_code == 2
    assert "not both" in both.stderr


def test_the_infilling_script_says_that_transformers_is_missing(tiny_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # what import takes for "not there"
    result = CliRunner().invoke(infill, [str(tiny_folder)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "pip install transformers" in result.stderr
