"""The last line of a summary: what to write next, and it works."""

from __future__ import annotations

import json
import os

import pytest
import torch

from codellama_convert.cli.describe import load_line, ranks_load_line
from tests.cli.running import run
from tests.witness.llama3_ranks import HEADS_OF_128, save_llama_3


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


def test_the_last_line_of_ranks_is_a_command_of_the_program_that_they_are_for(tmp_path):
    """For Llama 3 it was Code Llama's, which cannot read such ranks."""
    assert ranks_load_line("a b", 2, has_tokenizer=True, is_llama_3=False) == (
        "torchrun --nproc_per_node 2 example_completion.py --ckpt_dir 'a b' --tokenizer_path "
        "'a b/tokenizer.model'"
    )
    source, output = save_llama_3(tmp_path / "in", HEADS_OF_128, n_ranks=1), tmp_path / "out"
    result = run("reverse", source, output, "--ranks", "2", "--skip_tokenizer")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == (
        f"torchrun --nproc_per_node 2 -m models.llama3.scripts.completion {output} --world_size 2"
    )
