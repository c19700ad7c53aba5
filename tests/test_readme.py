"""README.md is true: every code block in it runs, and prints what it shows."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import warnings
from pathlib import Path

import pytest
import torch

from codellama_convert.cli import main
from tests.checkpoints import (
    CODE_LLAMA_7B,
    CODE_LLAMA_70B,
    MHA,
    WIDE,
    random_model,
    save_checkpoint,
    tokenizer_model,
    write_sparse_checkpoint,
)
from tests.dying import program_that_dies
from tests.programs import BIN, needs_commands, path_with
from tests.readme import README, blocks, written_anew
from tests.tiny import DOCUMENTED_MIDDLE, merged

REPOSITORY = README.parent
TINY = REPOSITORY / "examples" / "tiny-codellama"
TEXT = README.read_text(encoding="utf-8")
BLOCKS = list(blocks(TEXT))

# Blocks that something else runs: this suite itself, its set-up, or test_scripts.py.
ELSEWHERE = {
    "bash tests/run.sh\n",
    "bash examples/quickstart.sh\n",
    "pip install .\n",
}

TRANSCRIPTS = [block.text for block in BLOCKS if block.language == "console"]
PLANS = [text for text in TRANSCRIPTS if "codellama-convert plan" in text]
(QUICKSTART,) = (t for t in TRANSCRIPTS if "infill.py" in t)  # of test_scripts.py
(CRASH,) = (text for text in TRANSCRIPTS if "Killed" in text)
(PROOF,) = (t for t in TRANSCRIPTS if "convert verify" in t and t != QUICKSTART)


def run(script: str, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], check=False, cwd=folder, text=True, timeout=250,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PATH": path_with(BIN), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, f"{script}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the README's reader has: tiny checkpoints under the names that Meta's have."""
    folder = tmp_path_factory.mktemp("reader")
    # The trained model, in one rank as 7B is.
    ranks = [torch.load(TINY / f"consolidated.0{n}.pth", weights_only=True) for n in (0, 1)]
    (folder / "CodeLlama-7b").mkdir()
    whole = {name: tensor.bfloat16() for name, tensor in merged(ranks).items()}
    whole["rope.freqs"] = ranks[0]["rope.freqs"]
    torch.save(whole, folder / "CodeLlama-7b" / "consolidated.00.pth")
    for name in ("params.json", "tokenizer.model"):
        shutil.copy(TINY / name, folder / "CodeLlama-7b" / name)
    save_checkpoint(folder / "CodeLlama-70b", WIDE, random_model(WIDE, torch.bfloat16), n_ranks=8)
    for name in ("llama-2-7b-chat", "LLaMA/7B", "downloads/llama-2-7b"):
        save_checkpoint(folder / name, MHA, random_model(MHA, torch.float16), tokenizer=False)
    for parent in (folder, folder / "LLaMA", folder / "downloads"):
        (parent / "tokenizer.model").write_bytes(tokenizer_model(MHA.vocab))
    (folder / "examples").symlink_to(REPOSITORY / "examples")
    return folder


@pytest.fixture(scope="module")
def true_size(tmp_path_factory):
    """The same names at true size, all holes."""
    folder = tmp_path_factory.mktemp("true_size")
    write_sparse_checkpoint(folder / "CodeLlama-7b", CODE_LLAMA_7B, 1)
    write_sparse_checkpoint(folder / "CodeLlama-70b", CODE_LLAMA_70B, 8)
    return folder


def test_every_block_is_of_a_kind_that_is_tested():
    assert len(BLOCKS) > 20
    assert {block.language for block in BLOCKS} == {"bash", "console", "python", "text"}
    bash = {block.text for block in BLOCKS if block.language == "bash"}
    assert bash >= ELSEWHERE
    assert len(PLANS) > 1
    assert sorted([*PLANS, QUICKSTART, CRASH, PROOF]) == sorted(TRANSCRIPTS)


@needs_commands
def test_the_commands_and_the_python_run_in_the_order_of_the_page(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names: dict[str, object] = {}
    printed = io.StringIO()
    for block in BLOCKS:
        if block.language == "bash" and block.text not in ELSEWHERE:
            run(block.text, folder)
        elif block.language == "python":
            with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
                warnings.simplefilter("ignore")
                exec(compile(block.text, f"README.md, {block.heading}", "exec"), names)
    expected = (
        f'def remove_non_ascii(s: str) -> str:\n    """ {DOCUMENTED_MIDDLE}\n    return result\n'
    )
    assert expected in printed.getvalue()
    # What the commands were to leave behind.
    for output in (
        "CodeLlama-7b-hf", "converted/CodeLlama-70b", "llama-2-7b-chat-hf", "llama-7b-hf",
        "downloads/llama-2-7b-hf",
    ):  # fmt: skip
        assert (folder / output / "config.json").exists(), output
        assert (folder / output / "model.safetensors").exists(), output
    assert (folder / "CodeLlama-7b-tokenizer" / "tokenizer.json").exists()
    assert not (folder / "CodeLlama-7b-tokenizer" / "config.json").exists()
    # The recipe, defined on the page, gives the prompt of the class.
    ours = names["CodeLlamaTokenizer"].from_pretrained("CodeLlama-7b-hf")
    assert type(names["tokenizer"]) is not type(ours)
    for prefix, suffix in (("x = ", " + 1"), ("", "\nx"), ("def f", "")):
        assert names["infilling_prompt"](prefix, suffix) == ours.infilling_prompt(prefix, suffix)
    text = "    return\n"
    told = ours.encode("☺" + text, add_special_tokens=False)[2:]
    assert names["decode_infilling"](told) == text


def transcript(text: str) -> list[tuple[str, str]]:
    """Each command of a transcript with what it printed."""
    parts = re.split(r"^\$ (.*)\n", text, flags=re.MULTILINE)
    assert parts[0] == ""
    return list(zip(parts[1::2], parts[2::2], strict=True))


def masked(printed: str) -> str:
    """Leave out what differs from machine to machine."""
    printed = re.sub(r"[0-9.]+ MB of buffers \(\d+ workers, tiles.*\)", "BUFFERS", printed)
    return re.sub(r"[0-9.]+ [kMGT]B free(: [0-9.]+ [kMGT]B too little)?", "SIZE free", printed)


def without_figures(text: str) -> str:
    """Leave out every number: the page shows models of true size."""
    return re.sub(r"[0-9.,]+( [kMG]B)?", "N", text)


@needs_commands
@pytest.mark.parametrize("block", PLANS)
def test_a_plan_prints_what_the_page_shows(true_size, block):
    for command, shown in transcript(block):
        assert masked(run(command, true_size)) == masked(shown)


@needs_commands
def test_true_size_commands_of_the_page_can_be_planned(true_size):
    """What ran on tiny models would run on those that it is written for."""
    found = re.findall(r"codellama-convert (--input_dir CodeLlama-70b.*)", TEXT)
    assert found
    for options in found:
        run(f"codellama-convert plan {options}", true_size)


@needs_commands
def test_verification_prints_what_the_page_shows(folder):
    run(
        "codellama-convert --input_dir CodeLlama-7b --output_dir CodeLlama-7b-hf --overwrite",
        folder,
    )
    ((command, shown),) = transcript(PROOF)
    printed = run(f"{command} 2>/dev/null", folder)
    assert without_figures(printed) == without_figures(shown)


@needs_commands
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL as POSIX has it")
def test_a_crash_is_taken_up_as_the_page_shows(folder, tmp_path):
    """As the page has it but for the size of the files, and with the context given: no note."""
    shutil.copytree(folder / "CodeLlama-7b", tmp_path / "CodeLlama-7b")
    (killed, last_words), (again, shown) = transcript(CRASH)
    assert killed == again
    command = killed.replace("2GB", "300KB") + " --max_position_embeddings 16384"
    assert command.count("300KB") == 1
    assert last_words == "Killed\n"
    assert command.startswith("codellama-convert ")
    dying = program_that_dies(tmp_path / "bin", 30) / "codellama-convert"
    done = subprocess.run([dying, *command.split()[1:]], check=False, cwd=tmp_path, timeout=250)
    assert done.returncode == -signal.SIGKILL
    assert not list((tmp_path / "CodeLlama-7b-hf").glob("*.safetensors*"))
    assert without_figures(run(command, tmp_path)) == without_figures(shown)
    assert "kept" in shown


def test_the_options_that_the_page_speaks_of_exist():
    theirs = set(re.findall(r"^\| `(--[a-z_]+).*\| none \|", TEXT, re.MULTILINE)) | {
        "--special_tokens", "--instruct", "--file",  # the reference's, and of examples/infill.py
        "--size", "--rounds", "--pictures", "--reference_python",  # of examples/benchmark.py
    }  # fmt: skip
    ours = {o for command in main.commands.values() for p in command.params for o in p.opts}
    spoken_of = set(re.findall(r"--[a-z][a-z0-9_-]*", TEXT)) - {"--help", "--version"}
    assert spoken_of - theirs <= ours
    assert not theirs & ours


def test_the_help_and_the_tables_are_what_the_program_says():
    assert written_anew(TEXT) == TEXT, "write it anew: python -m tests.readme"


@needs_commands
@pytest.mark.parametrize("command", ["", "plan ", "verify "])
def test_the_help_is_what_80_columns_show(command, tmp_path):
    line = f"codellama-convert {command}--help"
    (shown,) = (b.text for b in BLOCKS if b.text.startswith(f"$ {line}\n"))
    assert f"$ {line}\n{run(f'COLUMNS=80 {line}', tmp_path)}" == shown
    assert run(f"COLUMNS=100 {line}", tmp_path) not in shown


@pytest.mark.parametrize(
    ("true", "outdated"),
    [
        ("Usage: codellama-convert plan", "Usage: codellama-convert plot"),
        ("| Code Llama 70B | 8 | 138.0 GB | 32,016 | 16,384 |", "| Code Llama 70B | 8 | 138.0 GB | 32,000 | 4,096 |"),
        ("vocab_size x hidden_size | columns |", "vocab_size x hidden_size | rows |"),
    ],
)  # fmt: skip
def test_what_is_outdated_is_written_anew(true, outdated):
    anew = written_anew(TEXT)
    assert anew.count(true) == 1
    assert written_anew(anew.replace(true, outdated)) == anew


def test_links_within_the_page_lead_somewhere():
    anchors = {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    }
    links = re.findall(r"\]\(#([^)]*)\)", TEXT)
    assert links
    assert set(links) <= anchors
    for path in re.findall(r"\]\((?!#|https?:)([^)]*)\)", TEXT):
        assert (REPOSITORY / path).exists(), path
