"""examples/infill.py from the command line: what it shows, and what it says when it cannot."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from examples.infill import PROMPT
from examples.infill import main as infill
from tests.tiny import DOCUMENTED_MIDDLE, TINY
from tests.vocabularies import model_bytes, write_folder

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


@pytest.mark.parametrize(
    ("place", "text", "fact"),
    [
        ("hf", "return 1", "no <FILL_ME>"),
        ("hf", "<FILL_ME> + <FILL_ME>", "2 times"),
        ("empty", "x = <FILL_ME>", "tokenizer.model"),
        ("source", "x = <FILL_ME>", "convert a checkpoint"),
        ("plain", "x = <FILL_ME>", "infilling"),
    ],
)
def test_the_infilling_script_explains_what_is_wrong(tiny_folder, tmp_path, place, text, fact):
    (tmp_path / "empty").mkdir()
    plain = write_folder(tmp_path / "plain", {"tokenizer.model": model_bytes("plain")})
    places = {"hf": tiny_folder, "empty": tmp_path / "empty", "source": TINY, "plain": plain}
    result = CliRunner().invoke(infill, [str(places[place]), text])
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    assert fact in result.stderr.splitlines()[-1]
    assert result.stdout == ""
