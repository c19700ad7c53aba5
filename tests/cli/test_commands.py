"""The command line as users meet it: words, folders, exit statuses, one line for each problem."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from codellama_convert.cli.commands import main
from codellama_convert.cli.words import summary_line
from tests.faults.dying import module_that_dies
from tests.outputs import on_a_terminal
from tests.witness.checkpoints import GQA, MHA, random_model, save_checkpoint, tokenizer_model

REPOSITORY = Path(__file__).parents[2]


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
    line = one_line(run("--input_dir", downloads))
    assert "several checkpoints" in line
    assert "--model_size" in line


def test_a_dot_gets_an_output_folder_beside_it(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint)
    assert run("--input_dir", ".").exit_code == 0
    assert checkpoint.with_name("CodeLlama-7b-hf").is_dir()


def test_the_number_of_files_contradicts_a_model_size(checkpoint):
    line = one_line(run("--input_dir", checkpoint, "--model_size", "13B"))
    assert "13B has 2" in line
    assert not checkpoint.with_name("CodeLlama-7b-hf").exists()


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
    line = one_line(run("--input_dir", checkpoint, "--model_size", "tokenizer_only"))
    assert line.endswith(
        "no tokenizer.model in the folder or beside it; give its path with --tokenizer_model"
    )


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
        (
            lambda d: (d / "params.json").unlink(),
            ["params.json", "No such file", "it comes with the ranks"],
        ),
        (
            lambda d: corrupt(
                d / "params.json",
                (d / "params.json").read_bytes().replace(b'"n_layers": 2', b'"n_layers": 3'),
            ),
            ["consolidated.00.pth", "layers.2."],
        ),
        (lambda d: (d / "consolidated.01.pth").unlink(), ["consolidated.01.pth is missing"]),
        (
            lambda d: (d / "consolidated.01.pth").rename(d / "consolidated.1.pth"),
            ["consolidated.01.pth is missing", "consolidated.1.pth"],
        ),
        (
            lambda d: [p.rename(f"{p}.part") for p in d.glob("*.pth")],
            ["holds no consolidated.NN.pth", "consolidated.00.pth.part"],
        ),
        (
            lambda d: (d / "consolidated.03.pth").unlink(),
            ["consolidated.00.pth", "4 ranks", "3 were found", "download consolidated.03.pth"],
        ),
        (
            lambda d: shutil.copy(d / "tokenizer.model", d / "consolidated.04.pth"),
            ["consolidated.04.pth", "not a PyTorch zip archive"],
        ),
        (
            lambda d: corrupt(
                d / "params.json",
                (d / "params.json").read_bytes().replace(b'{"', b'{"vocab_size": 128256, "', 1),
            ),
            ["params.json", "128256", "Llama 3"],
        ),
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
    line = one_line(run("--input_dir", checkpoint, "--output_dir", tmp_path / "file"))
    assert f"{tmp_path / 'file'}: is a file, not a folder; " in line
    line = one_line(run("--input_dir", checkpoint, "--output_dir", tmp_path / "file" / "out"))
    assert str(tmp_path / "file" / "out") in line
    if sys.platform == "linux":
        line = one_line(run("--input_dir", checkpoint, "--output_dir", "/proc/nowhere/out"))
        assert "/proc/nowhere/out" in line


def test_a_folder_that_is_no_checkpoint_of_metas_is_told_what_it_is(checkpoint, tmp_path):
    assert run("--input_dir", checkpoint).exit_code == 0
    line = one_line(run("plan", "--input_dir", checkpoint.with_name("CodeLlama-7b-hf")))
    for fact in ("CodeLlama-7b-hf", "model.safetensors", "Meta's layout"):
        assert fact in line
    (tmp_path / "empty").mkdir()
    line = one_line(run("plan", "--input_dir", tmp_path / "empty"))
    assert "holds no consolidated.NN.pth and no params.json;" in line
    line = one_line(run("plan", "--input_dir", checkpoint.parent, "--model_size", "34B"))
    assert "34B" in line
    assert "but CodeLlama-7b;" in line
    assert run("plan", "--input_dir", checkpoint.parent, "--model_size", "7B").exit_code == 0


def test_a_folder_given_without_its_option_is_told_the_option(checkpoint):
    for words in ([checkpoint], ["CodeLlama-7b"], [checkpoint, "--model_size", "7B"]):
        result = run(*words)
        assert result.exit_code == 2
        assert f"--input_dir {words[0]}" in result.stderr
    unknown = run("plot")
    assert unknown.exit_code == 2
    assert "--input_dir" not in unknown.stderr
    assert "plot" in unknown.stderr


def test_values_may_be_spelled_in_either_case(checkpoint):
    result = run("plan", "--input_dir", checkpoint, "--model_size", "7b", "--dtype", "BF16")
    assert result.exit_code == 0, result.output
    assert run("plan", "--input_dir", checkpoint, "--model_size", "8b").exit_code == 2


def test_a_wrong_option_is_a_usage_error(checkpoint):
    for arguments in (
        ("--input_dir", checkpoint, "--dtype", "int8"),
        ("--input_dir", checkpoint, "--max_shard_size", "5XB"),
        ("--input_dir", checkpoint / "nowhere"),
        ("--input_dir", checkpoint / "params.json"),
        ("--output_dir", "x"),
    ):
        assert run(*arguments).exit_code == 2, arguments


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("--skip_tokenizer",), ("--tokenizer_model", "x")),
        (("--skip_tokenizer",), ("--tokenizer_class", "LlamaTokenizer")),
        (("--skip_tokenizer",), ("--model_size", "tokenizer_only")),
        (("--model_size", "tokenizer_only"), ("--dtype", "float16")),
    ],
)
def test_options_that_contradict_each_other_are_refused(checkpoint, one, other):
    """One of them was passed over in silence."""
    both = run("--input_dir", checkpoint, *one, *other)
    assert both.exit_code == 2
    assert "contradict each other" in both.stderr
    assert all(option.lstrip("-") in both.stderr for option in (one[0], other[0]))
    assert "contradict" not in run("plan", "--input_dir", checkpoint, *one).stderr


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
        # What the checkpoint does not tell of the context, the record does.
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


@pytest.mark.parametrize(
    "arguments", [["--help"], ["convert", "-h"], ["plan", "--help"], ["--version"]]
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom codellama_convert.cli.commands import main\n"
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
    anew = json.loads(run(*arguments, "--overwrite").stdout)
    assert anew["kept_bytes"] == 0
    assert "kept" not in summary_line(anew)


# --- the model card -------------------------------------------------------------------------------


def test_a_model_card_says_what_the_folder_holds(tmp_path):
    save_checkpoint(tmp_path / "in", GQA, random_model(GQA, torch.bfloat16, 5), n_ranks=2)
    result = run("--input_dir", tmp_path / "in", "--model_card", "--variant", "instruct")
    assert result.exit_code == 0, result.output
    card = (tmp_path / "in-hf" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\n")
    # 2 x 320 x 64, twice (2 x 64 x 64 + 2 x 32 x 64 + 3 x 176 x 64 + 2 x 64), and 64 of the norm.
    assert "| parameters | 133,440 |" in card
    assert "| base model | not a released model |" in card
    assert "| weights | bfloat16, bit for bit the checkpoint's |" in card
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


def test_a_card_of_an_earlier_conversion_is_told(checkpoint, tmp_path):
    """It said bfloat16 beside float16 weights; it is kept, since it may have been edited."""
    both = ("--input_dir", checkpoint, "--output_dir", tmp_path / "out", "--overwrite")
    assert "earlier" not in run(*both, "--model_card").stderr
    card = (tmp_path / "out" / "README.md").read_bytes()
    again = run(*both, "--dtype", "float16")
    told = "note: README.md is of an earlier conversion; --model_card replaces it"
    assert told in again.stderr.splitlines()
    assert (tmp_path / "out" / "README.md").read_bytes() == card
    assert "earlier" not in run(*both, "--dtype", "float16", "--model_card").stderr
    (tmp_path / "out" / "README.md").write_text("my own words about codellama-convert\n")
    assert "earlier" not in run(*both).stderr


def test_a_tokenizer_alone_gets_no_model_card(checkpoint):
    result = run("--input_dir", checkpoint, "--model_size", "tokenizer_only", "--model_card")
    assert result.exit_code == 2
    assert "model_size tokenizer_only and model_card contradict each other" in result.stderr


# --- shells and terminals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "number", "offered"),
    [
        ("codellama-convert ", 1, {"convert", "plan", "verify"}),
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
    before, _, last = printed.rpartition("\r\n")[0].rpartition("\r")
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
