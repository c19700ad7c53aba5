"""The last line of a summary: what to write next, and it works."""

from __future__ import annotations

import json
import os

import pytest
import torch

from codellama_convert.cli.words import load_line
from tests.cli.running import run


def loaded(line: str) -> object:
    """Run the line as a user does who has imported both names."""
    import transformers

    names = {
        name: getattr(transformers, name) for name in ("AutoModelForCausalLM", "AutoTokenizer")
    }
    return eval(line, names)


@pytest.mark.parametrize("name", ["out", "a b", 'qu"ote', "it's", 'both"\'', "módelo 模型", "back\\slash"])  # fmt: skip
def test_the_last_line_loads_the_model(checkpoint, tmp_path, monkeypatch, name):
    """How to load the result, in its own dtype, had to be looked up."""
    if os.name == "nt" and set('"\\') & set(name):
        pytest.skip("not a name on Windows")
    monkeypatch.chdir(tmp_path)
    result = run(checkpoint, name)
    assert result.exit_code == 0, result.output
    *_, summary, line = result.stdout.splitlines()
    assert summary.startswith(f"wrote {name}: ")
    model = loaded(line)
    assert model.dtype == torch.bfloat16
    assert model.config._name_or_path == name
    told = json.loads(run(checkpoint, name, "--overwrite", "--json").stdout)
    assert told["load"] == line


def test_the_last_line_loads_the_tokenizer_where_there_is_no_model(checkpoint, tmp_path):
    result = run(checkpoint, tmp_path / "t", "--model_size", "tokenizer_only")
    line = result.stdout.splitlines()[-1]
    assert line == f'AutoTokenizer.from_pretrained("{tmp_path / "t"}")'
    assert len(loaded(line)) == 320


def test_the_line_is_said_when_nothing_was_to_do_and_not_when_quiet(checkpoint, tmp_path):
    assert run(checkpoint, tmp_path / "out", "--quiet").stdout == ""
    again = run(checkpoint, tmp_path / "out").stdout.splitlines()
    assert again[-1] == f'AutoModelForCausalLM.from_pretrained("{tmp_path / "out"}", dtype="auto")'
    assert len(again) == 2


@pytest.mark.skipif(os.name == "nt", reason="names as POSIX has them")
@pytest.mark.parametrize("name", ["\x1b[2J\n", os.fsdecode(b"\xff"), "\U0001f600\u202e"])
def test_a_name_that_does_not_print_is_spelled_for_python(name):
    line = load_line(name, has_model=False)
    assert line.isprintable()
    assert eval(line.partition("(")[2][:-1]) == name
