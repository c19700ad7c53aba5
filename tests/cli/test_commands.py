"""The command line as users meet it: words, folders, exit statuses, one line for each problem."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import click
import pytest
import torch

from codellama_convert.cli.commands import main
from codellama_convert.cli.words import summary_line
from tests.cli.running import one_line, run
from tests.faults.dying import module_that_dies
from tests.witness.checkpoints import MHA, random_model, save_checkpoint, tokenizer_model

REPOSITORY = Path(__file__).parents[2]


def test_the_bare_form_converts_beside_the_input(checkpoint):
    result = run("--input_dir", checkpoint, "--model_size", "7B")
    assert result.exit_code == 0, result.output
    output = checkpoint.with_name("CodeLlama-7b-hf")
    assert {path.name for path in output.iterdir()} == {
        "config.json", "conversion.json", "generation_config.json", "model.safetensors", "special_tokens_map.json",
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    }  # fmt: skip
    assert str(output) in result.stdout
    notes = result.stderr.splitlines()
    assert all(note.startswith("note: ") for note in notes)
    assert sum("--model_size 7B" in note for note in notes) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("convert", "--input_dir", "{i}", "--output_dir", "{o}", "--max_shard_size", "30KB"),
        ("convert", "--input-dir", "{i}", "--output-dir", "{o}", "--max-shard-size", "30KB"),
        ("--output_dir={o}", "--input-dir={i}", "--max_shard-size=30KB"),
        ("--quiet", "--input_dir", "{i}", "--output_dir", "{o}", "--max_shard_size", "30000"),
    ],
)
def test_underscores_and_dashes_are_one(checkpoint, tmp_path, arguments):
    output = tmp_path / "out"
    result = run(*(text.format(i=checkpoint, o=output) for text in arguments))
    assert result.exit_code == 0, result.output
    assert (output / "model.safetensors.index.json").exists()


@pytest.mark.parametrize(
    ("model", "tokenizer"),
    [
        ("CodeLlama-7b", "CodeLlama-7b/tokenizer.model"),  # Code Llama: inside
        ("llama-2-7b", "tokenizer.model"),  # Llama 2: beside
        ("7B", "tokenizer.model"),  # Llama 1: beside
    ],
)
def test_the_folders_of_metas_download_scripts_are_understood(tmp_path, model, tokenizer):
    downloads = tmp_path / "downloads"
    save_checkpoint(downloads / model, MHA, tokenizer=False)
    save_checkpoint(downloads / "13B", MHA, n_ranks=2, tokenizer=False)
    (downloads / tokenizer).write_bytes(tokenizer_model(MHA.vocab))
    inside = run("--input_dir", downloads / model, "--output_dir", tmp_path / "one")
    assert inside.exit_code == 0, inside.output
    above = run("--input_dir", downloads, "--model_size", "7B", "--output_dir", tmp_path / "two")
    assert above.exit_code == 0, above.output
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()
    line = one_line(run("--input_dir", downloads))
    assert "several checkpoints" in line
    assert "--model_size" in line


def test_a_dot_gets_an_output_folder_beside_it(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint)
    assert run("--input_dir", ".").exit_code == 0
    assert checkpoint.with_name("CodeLlama-7b-hf").is_dir()


def test_the_tokenizer_alone(checkpoint, tmp_path):
    both = (
        "--input_dir",
        checkpoint,
        "--model_size",
        "tokenizer_only",
        "--output_dir",
        tmp_path / "t",
    )
    result = run(*both)
    assert result.exit_code == 0, result.output
    assert f"wrote {tmp_path / 't'}: the tokenizer, 5 files" in result.stdout
    assert "equals the checkpoint: no weights" in run("verify", *both).stdout
    assert run("plan", *both[:-1], tmp_path / "new").stdout.splitlines()[:3] == [
        f"checkpoint  {checkpoint}",
        f"output      {tmp_path / 'new'}",
        "model       none: only the tokenizer",
    ]
    assert {path.name for path in (tmp_path / "t").iterdir()} == {
        "conversion.json", "special_tokens_map.json", "tokenizer.json", "tokenizer.model",
        "tokenizer_config.json",
    }  # fmt: skip


def test_values_may_be_spelled_in_either_case(checkpoint):
    result = run("plan", "--input_dir", checkpoint, "--model_size", "7b", "--dtype", "BF16")
    assert result.exit_code == 0, result.output
    assert run("plan", "--input_dir", checkpoint, "--model_size", "9b").exit_code == 2


def test_the_plan_is_a_table_for_people_and_json_for_machines(checkpoint):
    table = run("plan", "--input_dir", checkpoint, "--max_shard_size", "60KB")
    assert table.exit_code == 0
    assert all(len(line) <= 80 for line in table.stdout.splitlines() if "CodeLlama" not in line)
    assert "model-00001-of-00006.safetensors" in table.stdout
    described = json.loads(
        run("plan", "--input_dir", checkpoint, "--max_shard_size", "60KB", "--json").stdout
    )
    assert [file["name"] for file in described["files"]] == [
        f"model-0000{n}-of-00006.safetensors" for n in (1, 2, 3, 4, 5, 6)
    ]
    assert not checkpoint.with_name("CodeLlama-7b-hf").exists()
    converted = run("--input_dir", checkpoint, "--max_shard_size", "60KB", "--json")
    assert json.loads(converted.stdout)["tensor_bytes"] == described["total_size"]
    for file in described["files"]:
        path = checkpoint.with_name("CodeLlama-7b-hf") / file["name"]
        assert path.stat().st_size == file["bytes"]


def test_json_is_all_that_stdout_holds_and_tells_time_rate_memory_and_notes(checkpoint):
    output = checkpoint.with_name("out")
    both = ["--input_dir", checkpoint, "--output_dir", output]
    converted = run(*both, "--dtype", "float16", "--json")
    verified = run("verify", *both, "--json")
    for result in (converted, verified):
        assert result.exit_code == 0, result.output
        told = json.loads(result.stdout)
        assert told["output_dir"] == str(output)
        assert told["seconds"] > 0
        assert told["bytes_per_second"] > 0
        if os.name != "nt":  # where nobody tells
            assert told["peak_rss_bytes"] > 10_000_000
        assert [f"note: {note}" for note in told["notes"]] == result.stderr.splitlines()
        # What the checkpoint does not say about the context, the record does.
        assert len(told["notes"]) == (1 if result is converted else 0)
    told = json.loads(converted.stdout)
    assert told["cast"] == "bfloat16 to float16"
    assert told["dropped"] == ["rope.freqs"]
    assert json.loads(verified.stdout)["ok"]
    (output / "tokenizer.model").write_bytes(b"other")
    differs = run("verify", *both, "--json")
    assert differs.exit_code == 1
    assert not json.loads(differs.stdout)["ok"]
    assert json.loads(differs.stdout)["problems"] == ["tokenizer.model differs from the source's"]
    alone = run("verify", "--output_dir", output, "--json")
    assert json.loads(alone.stdout)["against"] == "record"
    assert json.loads(alone.stdout)["notes"] == []


def test_every_command_has_help_and_an_example():
    for name, command in main.commands.items():
        assert "Example:" in (command.help or ""), name
        folders, *options = command.params
        place = "FOLDER" if name == "batch" else "IN"
        assert place in command.get_usage(click.Context(command, **command.context_settings)), (
            f"{name} {folders.name}"
        )
        for parameter in options:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"


def test_values_that_are_odd_are_a_note_with_their_number_and_the_first_name(tmp_path):
    state = {name: torch.ones_like(t) for name, t in random_model(MHA, torch.bfloat16, 5).items()}
    state["norm.weight"][:2] = torch.tensor([float("inf"), float("nan")])
    state["output.weight"][0, :20] = 2e-8
    save_checkpoint(tmp_path / "in", MHA, state)
    result = run("--input_dir", tmp_path / "in", "--dtype", "fp16", "--quiet")
    assert result.exit_code == 0, result.output
    odd = [line for line in result.stderr.splitlines() if "value" in line]
    assert odd == [
        (
            "note: 20 values in 1 tensor too small for the new dtype became zero "
            "(first in lm_head.weight)"
        ),
        "note: 2 values in 1 tensor infinite or NaN, kept as stored (first in model.norm.weight)",
    ]
    plain = run("--input_dir", tmp_path / "in", "--output_dir", tmp_path / "plain", "--quiet")
    assert [line for line in plain.stderr.splitlines() if "value" in line] == odd[1:]
    assert run("verify", "--output_dir", tmp_path / "in-hf").exit_code == 0


def test_verify_holds_the_dtype_against_the_one_asked_for(checkpoint):
    assert run("--input_dir", checkpoint, "--dtype", "float16").exit_code == 0
    both = ("--input_dir", checkpoint, "--output_dir", checkpoint.with_name("CodeLlama-7b-hf"))
    assert run("verify", *both).exit_code == 0
    assert run("verify", *both, "--dtype", "fp16").exit_code == 0
    other = run("verify", *both, "--dtype", "float32")
    assert other.exit_code == 1
    assert "the tensors are float16, not float32 as asked for" in other.stdout


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL as POSIX has it")
def test_a_resumed_run_says_what_it_kept_and_counts_the_rest_only(checkpoint):
    arguments = ["convert", "--input_dir", str(checkpoint), "--max_shard_size", "60KB", "--json"]
    killed = subprocess.run(
        [*module_that_dies(36), *arguments], check=False, cwd=REPOSITORY, timeout=120,
        capture_output=True,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    resumed = json.loads(run(*arguments).stdout)
    assert 0 < resumed["kept_bytes"] < resumed["tensor_bytes"]
    new = resumed["tensor_bytes"] - resumed["kept_bytes"]
    # Both are rounded: to a millisecond, and to a byte.
    assert new / (resumed["seconds"] + 1e-3) <= resumed["bytes_per_second"] + 1
    assert new / (resumed["seconds"] - 1e-3) >= resumed["bytes_per_second"] - 1
    assert f"{resumed['kept_bytes'] / 1000:.1f} kB of it kept" in summary_line(resumed)
    again = json.loads(run(*arguments, "--overwrite").stdout)
    assert again["kept_bytes"] == 0
    assert "kept" not in summary_line(again)
