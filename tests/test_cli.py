"""The command line as users meet it: words, folders, exit statuses, one line for each problem."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from codellama_convert.cli import main
from tests.checkpoints import GQA, MHA, random_model, save_checkpoint, tokenizer_model

REPOSITORY = Path(__file__).parents[1]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def one_line(result: Result) -> str:
    """The one line on stderr of a run that failed; notes may stand before it."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    *notes, line = result.stderr.splitlines()
    assert all(note.startswith("note: ") for note in notes)
    assert line.startswith("Error: ")
    return line


@pytest.fixture
def checkpoint(tmp_path):
    return save_checkpoint(tmp_path / "CodeLlama-7b", GQA, n_ranks=1)


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
    assert "several checkpoints" in one_line(run("--input_dir", downloads))


def test_a_dot_gets_an_output_folder_beside_it(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint)
    assert run("--input_dir", ".").exit_code == 0
    assert checkpoint.with_name("CodeLlama-7b-hf").is_dir()


def test_the_number_of_files_contradicts_a_model_size(checkpoint):
    line = one_line(run("--input_dir", checkpoint, "--model_size", "13B"))
    assert "13B has 2" in line
    assert not checkpoint.with_name("CodeLlama-7b-hf").exists()


def test_the_tokenizer_alone(checkpoint, tmp_path):
    result = run(
        "--input_dir", checkpoint, "--model_size", "tokenizer_only", "--output_dir", tmp_path / "t"
    )
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "t").iterdir()} == {
        "conversion.json", "special_tokens_map.json", "tokenizer.json", "tokenizer.model",
        "tokenizer_config.json",
    }  # fmt: skip


def test_a_missing_tokenizer_is_an_error_that_tells_both_ways_out(checkpoint, tmp_path):
    moved = tmp_path / "elsewhere.model"
    (checkpoint / "tokenizer.model").rename(moved)
    line = one_line(run("--input_dir", checkpoint))
    for fact in ("tokenizer.model", "--tokenizer_model", "--skip_tokenizer"):
        assert fact in line
    named = run(
        "--input_dir", checkpoint, "--tokenizer_model", moved, "--output_dir", tmp_path / "named"
    )
    assert named.exit_code == 0
    assert (tmp_path / "named" / "tokenizer.model").read_bytes() == moved.read_bytes()
    without = run("--input_dir", checkpoint, "--skip_tokenizer", "--output_dir", tmp_path / "no")
    assert without.exit_code == 0
    assert not list((tmp_path / "no").glob("tok*"))


def test_a_tokenizer_of_another_model_is_refused(checkpoint):
    (checkpoint / "tokenizer.model").write_bytes(tokenizer_model(GQA.vocab + 1))
    line = one_line(run("--input_dir", checkpoint))
    assert "321 pieces" in line
    assert "320 rows" in line


def corrupt(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("break_it", "facts"),
    [
        (
            lambda d: corrupt(d / "params.json", b"<!DOCTYPE html><p>Sign in"),
            ["params.json", "HTML"],
        ),
        (lambda d: corrupt(d / "params.json", b""), ["params.json", "empty"]),
        (lambda d: corrupt(d / "params.json", b"{'dim': 3}"), ["params.json", "JSON"]),
        (lambda d: (d / "params.json").unlink(), ["params.json", "No such file"]),
        (
            lambda d: corrupt(
                d / "params.json",
                (d / "params.json").read_bytes().replace(b'"n_layers": 2', b'"n_layers": 3'),
            ),
            ["consolidated.00.pth", "layers.2."],
        ),
        (lambda d: (d / "consolidated.01.pth").unlink(), ["consolidated.01.pth", "missing"]),
        (lambda d: (d / "consolidated.03.pth").unlink(), ["consolidated.00.pth", "4", "3"]),
        (
            lambda d: shutil.copy(d / "consolidated.00.pth", d / "consolidated.02.pth"),
            ["consolidated.02.pth", "consolidated.00.pth"],
        ),
        (
            lambda d: corrupt(
                d / "consolidated.02.pth", (d / "consolidated.02.pth").read_bytes()[:-100]
            ),
            ["consolidated.02.pth", "truncated"],
        ),
        (lambda d: corrupt(d / "consolidated.02.pth", b""), ["consolidated.02.pth", "empty"]),
        (lambda d: (d / "tokenizer.model").unlink(), ["tokenizer.model"]),
        (lambda d: corrupt(d / "tokenizer.model", b"\x00" * 99), ["tokenizer.model"]),
    ],
)
def test_bad_input_is_one_line_that_names_the_file_and_leaves_nothing(tmp_path, break_it, facts):
    checkpoint = save_checkpoint(tmp_path / "in", GQA, n_ranks=4)
    assert run("plan", "--input_dir", checkpoint).exit_code == 0
    break_it(checkpoint)
    line = one_line(run("--input_dir", checkpoint))
    for fact in facts:
        assert fact in line
    assert not (tmp_path / "in-hf").exists()


@pytest.mark.skipif(os.name == "nt", reason="FIFOs and links as POSIX has them")
def test_an_unreadable_file_is_named(tmp_path):
    checkpoint = save_checkpoint(tmp_path / "in", GQA)
    rank = checkpoint / "consolidated.00.pth"
    rank.unlink()
    rank.symlink_to("gone")
    assert "No such file" in one_line(run("--input_dir", checkpoint))
    rank.unlink()
    rank.symlink_to(rank)
    assert "symbolic links" in one_line(run("--input_dir", checkpoint))
    rank.unlink()
    os.mkfifo(rank)
    assert "not a regular file" in one_line(run("--input_dir", checkpoint))
    rank.unlink()
    rank.mkdir()
    assert "folder" in one_line(run("--input_dir", checkpoint))


def test_an_output_folder_that_cannot_be_made_is_one_line(checkpoint, tmp_path):
    (tmp_path / "file").write_text("in the way")
    line = one_line(run("--input_dir", checkpoint, "--output_dir", tmp_path / "file" / "out"))
    assert str(tmp_path / "file" / "out") in line
    line = one_line(run("--input_dir", checkpoint, "--output_dir", "/proc/nowhere/out"))
    assert "/proc/nowhere/out" in line


def test_a_wrong_option_is_a_usage_error(checkpoint):
    for arguments in (
        ("--input_dir", checkpoint, "--dtype", "int8"),
        ("--input_dir", checkpoint, "--max_shard_size", "5XB"),
        ("--input_dir", checkpoint / "nowhere"),
        ("--output_dir", "x"),
    ):
        assert run(*arguments).exit_code == 2, arguments


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


@pytest.mark.parametrize(
    "arguments", [["--help"], ["convert", "-h"], ["plan", "--help"], ["--version"]]
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom codellama_convert.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'tqdm', 'sentencepiece', 'safetensors', 'pickletools'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_control_of_that_test_fails():
    code = "import sys, numpy\nassert 'numpy' not in sys.modules\n"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode


def test_every_command_has_help_and_an_example():
    for name, command in main.commands.items():
        assert "Example:" in (command.help or ""), name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"


def test_the_bar_is_for_terminals_only(checkpoint):
    result = run("--input_dir", checkpoint)
    assert "%" not in result.stderr
    assert "converting" not in result.stderr


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


# --- the model card -------------------------------------------------------------------------------


def test_a_model_card_says_what_the_folder_holds(tmp_path):
    save_checkpoint(tmp_path / "in", GQA, random_model(GQA, torch.bfloat16, 5), n_ranks=2)
    result = run("--input_dir", tmp_path / "in", "--model_card", "--variant", "instruct")
    assert result.exit_code == 0, result.output
    card = (tmp_path / "in-hf" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\n")
    # 2 x 320 x 64, twice (2 x 64 x 64 + 2 x 32 x 64 + 3 x 176 x 64 + 2 x 64), and 64 of the norm.
    assert "| parameters | 133,440 |" in card
    assert "| base model | no released model |" in card
    assert "| weights | bfloat16, the bits of the checkpoint |" in card
    assert "| vocabulary | 320 |" in card
    assert "| converted from | 2 x `consolidated.NN.pth` |" in card
    assert "AutoTokenizer.from_pretrained" in card
    assert "apply_chat_template" in card
    recorded = json.loads((tmp_path / "in-hf" / "conversion.json").read_bytes())
    assert "README.md" not in recorded["files"], "people edit it"
    assert run("verify", "--output_dir", tmp_path / "in-hf").exit_code == 0


def test_a_model_card_of_cast_weights_without_a_tokenizer_says_so(tmp_path):
    save_checkpoint(tmp_path / "in", MHA, random_model(MHA, torch.float32, 5), tokenizer=False)
    result = run(
        "--input_dir", tmp_path / "in", "--model_card", "--skip_tokenizer", "--dtype", "bf16"
    )
    assert result.exit_code == 0, result.output
    card = (tmp_path / "in-hf" / "README.md").read_text(encoding="utf-8")
    assert "| weights | bfloat16, cast from float32 |" in card
    assert "AutoTokenizer" not in card
    assert "apply_chat_template" not in card


def test_no_model_card_is_written_unasked_and_an_own_readme_is_left_alone(checkpoint):
    output = checkpoint.with_name("CodeLlama-7b-hf")
    assert run("--input_dir", checkpoint).exit_code == 0
    assert not (output / "README.md").exists()
    (output / "README.md").write_text("mine")
    assert run("--input_dir", checkpoint, "--overwrite").exit_code == 0
    assert (output / "README.md").read_text() == "mine"
    assert run("--input_dir", checkpoint, "--overwrite", "--model_card").exit_code == 0
    assert (output / "README.md").read_text() != "mine"


def test_a_tokenizer_alone_gets_no_model_card(checkpoint):
    result = run("--input_dir", checkpoint, "--model_size", "tokenizer_only", "--model_card")
    assert result.exit_code == 2
    assert "--model_card" in result.stderr


# --- shells and terminals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "number", "offered"),
    [
        ("codellama-convert ", 1, {"convert", "plan", "verify"}),
        ("codellama-convert --mod", 1, {"--model_size", "--model_card"}),
        ("codellama-convert --input_dir x --dt", 3, {"--dtype"}),
        ("codellama-convert plan --max_r", 2, {"--max_ram"}),
        ("codellama-convert --dtype fl", 2, {"float16", "float32", "float"}),
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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("what", [("plan",), ("convert",), ("convert", "--json"), ("verify",)])
def test_a_result_that_cannot_be_written_is_one_line(checkpoint, tmp_path, what, unbuffered):
    """Of a finished conversion too: its summary on a full disk ended in a traceback."""
    target = tmp_path / "out"
    name, *more = what
    if name == "verify":
        assert run("--input_dir", checkpoint, "--output_dir", target).exit_code == 0
    arguments = ["--input_dir", str(checkpoint), "--output_dir", str(target), *more]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "codellama_convert", name, *arguments], check=False, stdout=full,
            stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    assert done.returncode == 1, done.stderr
    *notes, line = done.stderr.splitlines()
    assert all(note.startswith("note: ") for note in notes)
    assert line == "Error: standard output: cannot write the result: No space left on device"
    assert (target / "model.safetensors").exists() == (name != "plan")
