"""The READMEs are true: every code block in them runs, and prints what it shows."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import warnings
from pathlib import Path

import pytest
import torch

from codellama_convert.cli.commands import main
from tests.faults.dying import program_that_dies
from tests.house.readme import PAGES, ROOT, blocks, read
from tests.programs import needs_commands, run_script
from tests.witness.checkpoints import (
    CODE_LLAMA_7B,
    CODE_LLAMA_70B,
    MHA,
    WIDE,
    random_model,
    save_checkpoint,
    tokenizer_model,
)
from tests.witness.llama3_ranks import save_whole_llama_3
from tests.witness.sparse import write_sparse_checkpoint
from tests.witness.tiny import DOCUMENTED_MIDDLE, merged

TINY = ROOT / "examples" / "tiny-codellama"
FRONT, TOKENIZER = "README.md", "codellama_convert/tokenizer/README.md"
BLOCKS = [block for page in PAGES for block in blocks(page)]

# Blocks that something else runs: this suite itself, its set-up, or test_scripts.py.
ELSEWHERE = {
    "bash tests/run.sh\n",
    "bash examples/quickstart.sh\n",
    "bash examples/ci_smoke.sh\n",
    "pip install .\n",
}

TRANSCRIPTS = [block.text for block in BLOCKS if block.language == "console"]
PLANS = [text for text in TRANSCRIPTS if "codellama-convert plan" in text]
(QUICKSTART,) = (t for t in TRANSCRIPTS if "infill.py" in t)  # of test_scripts.py
(CRASH,) = (text for text in TRANSCRIPTS if "Killed" in text)
(PROOF,) = (t for t in TRANSCRIPTS if "convert verify" in t and t != QUICKSTART)


def save_7b(folder: Path) -> None:
    """Save the trained model, in one rank as 7B is."""
    ranks = [torch.load(TINY / f"consolidated.0{n}.pth", weights_only=True) for n in (0, 1)]
    folder.mkdir()
    whole = {name: tensor.bfloat16() for name, tensor in merged(ranks).items()}
    whole["rope.freqs"] = ranks[0]["rope.freqs"]
    torch.save(whole, folder / "consolidated.00.pth")
    for name in ("params.json", "tokenizer.model"):
        shutil.copy(TINY / name, folder / name)


def save_hub_cache(folder: Path) -> None:
    """Save a model as a hub's client keeps it: links to blobs, below a revision's name."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "08751db2"
    save_checkpoint(blobs, MHA, random_model(MHA, torch.float16))
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)


@pytest.fixture
def folder(tmp_path):
    """What the READMEs' reader has: tiny checkpoints under the names that Meta's have."""
    save_7b(tmp_path / "CodeLlama-7b")
    save_hub_cache(tmp_path / "hub" / "models--meta-llama--Llama-2-7b-chat")
    save_whole_llama_3(tmp_path / "Llama3.1-8B-Instruct")
    save_checkpoint(tmp_path / "CodeLlama-13b", WIDE, random_model(WIDE, torch.bfloat16), n_ranks=2)
    save_checkpoint(tmp_path / "CodeLlama-70b", WIDE, random_model(WIDE, torch.bfloat16), n_ranks=8)
    for name in (
        "llama-2-7b-chat", "LLaMA/7B", "LLaMA/13B", "downloads/llama-2-7b", "Llama-2-7b/original",
        "my-fine-tune",
    ):  # fmt: skip
        save_checkpoint(tmp_path / name, MHA, random_model(MHA, torch.float16), tokenizer=False)
    for parent in ("", "LLaMA", "downloads", "Llama-2-7b"):
        (tmp_path / parent / "tokenizer.model").write_bytes(tokenizer_model(MHA.vocab))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


@pytest.fixture(scope="module")
def true_size(tmp_path_factory):
    """The same names at true size, all holes."""
    folder = tmp_path_factory.mktemp("true_size")
    write_sparse_checkpoint(folder / "CodeLlama-7b", CODE_LLAMA_7B, 1)
    write_sparse_checkpoint(folder / "CodeLlama-70b", CODE_LLAMA_70B, 8)
    return folder


def test_every_block_is_of_a_kind_that_is_tested():
    assert len(BLOCKS) > 30
    assert {block.language for block in BLOCKS} == {"bash", "console", "python", "text"}
    bash = {block.text for block in BLOCKS if block.language == "bash"}
    assert bash >= ELSEWHERE
    assert len(PLANS) > 1
    assert sorted([*PLANS, QUICKSTART, CRASH, PROOF]) == sorted(TRANSCRIPTS)
    # What neither runs nor is help belongs to other programs.
    of_others = {b.heading for b in BLOCKS if b.language == "text" and not b.text.startswith("$")}
    assert of_others == {
        "Infilling in other programs", "A job array, without an engine", "A dask cluster", "TLS",
        "dask-jobqueue: not tried", "Other engines",
    }  # fmt: skip


def run_page(page: str, folder: Path) -> tuple[dict[str, object], str]:
    """Run a page's commands and Python in order; give the names it defines, and what it prints."""
    names: dict[str, object] = {}
    printed = io.StringIO()
    n_run = 0
    for block in blocks(page):
        if block.language == "bash" and block.text not in ELSEWHERE:
            run_script(block.text, folder)
        elif block.language == "python":
            with (
                warnings.catch_warnings(),
                contextlib.redirect_stdout(printed),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                warnings.simplefilter("ignore")
                exec(compile(block.text, f"{page}, {block.heading}", "exec"), names)
        else:
            continue
        n_run += 1
    assert n_run > 0
    return names, printed.getvalue()


@needs_commands
def test_the_front_page_runs_in_order(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names, printed = run_page(FRONT, folder)
    assert not printed, "the example of the library prints problems only"
    assert names["model"].dtype == torch.bfloat16
    # What the commands were to leave behind.
    for output in (
        "CodeLlama-7b-hf", "in-float16", "converted/CodeLlama-70b", "llama-2-7b-chat-hf",
        "Llama-2-7b-chat-hf", "Llama-2-7b-hf", "llama-7b-hf", "downloads/llama-2-7b-hf",
        "my-fine-tune-hf", "Llama3.1-8B-Instruct-hf",
    ):  # fmt: skip
        assert (folder / output / "config.json").exists(), output
        assert (folder / output / "model.safetensors").exists(), output
    assert json.loads((folder / "in-float16/config.json").read_text())["torch_dtype"] == "float16"
    templates = {path.parent.name for path in folder.glob("*/tokenizer_config.json")
                 if "chat_template" in json.loads(path.read_text(encoding="utf-8"))}  # fmt: skip
    assert templates == {"llama-2-7b-chat-hf", "Llama-2-7b-chat-hf", "my-fine-tune-hf",
                         "Llama3.1-8B-Instruct-hf"}  # fmt: skip
    assert (folder / "CodeLlama-7b-tokenizer" / "tokenizer.json").exists()
    assert not (folder / "CodeLlama-7b-tokenizer" / "config.json").exists()


@needs_commands
def test_the_page_of_the_tokenizer_runs_in_order(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run_script("codellama-convert --input_dir CodeLlama-7b", folder)
    names, printed = run_page(TOKENIZER, folder)
    expected = (
        f'def remove_non_ascii(s: str) -> str:\n    """ {DOCUMENTED_MIDDLE}\n    return result\n'
    )
    assert expected in printed
    assert names["filling"] == names["result"]["generated_text"] == DOCUMENTED_MIDDLE
    # The recipe, defined on the page, gives the prompt of the class.
    ours = names["CodeLlamaTokenizer"].from_pretrained("CodeLlama-7b-hf")
    assert type(names["tokenizer"]) is not type(ours)
    for prefix, suffix in (("x = ", " + 1"), ("", "\nx"), ("def f", "")):
        assert names["infilling_prompt"](prefix, suffix) == ours.infilling_prompt(prefix, suffix)
    text = "    return\n"
    told = ours.encode("☺" + text, add_special_tokens=False)[2:]
    assert names["decode_infilling"](told) == text


# Pages whose commands have to run, and whose results nothing else looks at.
OTHERS = sorted(
    {b.page for b in BLOCKS if b.language in ("bash", "python") and b.text not in ELSEWHERE}
    - {FRONT, TOKENIZER, "tests/README.md"}
)


@needs_commands
@pytest.mark.parametrize("page", OTHERS)
def test_every_other_page_runs_in_order(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run_script("codellama-convert --input_dir CodeLlama-7b", folder)
    run_page(page, folder)


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
        printed = run_script(
            f"{{ {command}; }} || true", true_size
        )  # 1 where the disk is too small
        assert masked(printed) == masked(shown)


@needs_commands
def test_true_size_commands_of_the_pages_can_be_planned(true_size):
    """What ran on tiny models would run on those that it is written for."""
    found = [options for page in PAGES
             for options in re.findall(r"codellama-convert ((?:--input_dir )?CodeLlama-70b[^`\n]*)", read(page))]  # fmt: skip
    assert len(found) > 1
    for options in set(found):
        plan = f"codellama-convert plan {options}"
        run_script(f"{plan} > planned || grep 'free: .* too little' planned", true_size)


@needs_commands
def test_the_picture_shows_what_goes_in_and_comes_out(true_size, folder):
    picture = read(".github/in-and-out.svg")
    assert "](.github/in-and-out.svg)" in read(FRONT)
    shown = re.findall(r'<text class="file"[^>]*>([^<]*)</text>', picture)
    plan = json.loads(
        run_script("codellama-convert plan --input_dir CodeLlama-7b --json || true", true_size)
    )
    shards = {file["name"]: file["bytes"] for file in plan["files"]}
    run_script("codellama-convert --input_dir CodeLlama-7b --max_shard_size 300KB", folder)
    small = {path.name for path in (folder / "CodeLlama-7b-hf").iterdir()
             if not path.name.endswith(".safetensors")}  # fmt: skip
    read_files = ["consolidated.00.pth", "params.json", "tokenizer.model"]
    assert sorted(shown) == sorted([*read_files, *shards, *small])
    sizes = re.findall(r'<text class="size"[^>]*>([^<]*) GB</text>', picture)
    assert sizes[1:] == [f"{n_bytes / 1e9:.1f}" for n_bytes in shards.values()]
    assert sizes[0] == f"{sum(shards.values()) / 1e9:.1f}"


@needs_commands
def test_verification_prints_what_the_page_shows(folder):
    run_script("codellama-convert --input_dir CodeLlama-7b --output_dir CodeLlama-7b-hf", folder)
    ((command, shown),) = transcript(PROOF)
    printed = run_script(f"{command} 2>/dev/null", folder)
    assert without_figures(printed) == without_figures(shown)


@needs_commands
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL as POSIX has it")
def test_a_crash_is_taken_up_as_the_page_shows(tmp_path):
    """As the page has it but for the size of the files, and with the context given: no note."""
    save_7b(tmp_path / "CodeLlama-7b")
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
    assert without_figures(run_script(command, tmp_path)) == without_figures(shown)
    assert "kept" in shown


COMMANDS = ["", "batch ", "convert ", "plan ", "reverse ", "verify "]


def test_the_help_of_every_command_is_shown():
    assert [f"{name} " for name in sorted(main.commands)] == COMMANDS[1:]


@needs_commands
@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_is_what_80_columns_show(command, tmp_path):
    line = f"codellama-convert {command}--help"
    (shown,) = (b.text for b in BLOCKS if b.text.startswith(f"$ {line}\n"))
    assert f"$ {line}\n{run_script(f'COLUMNS=80 {line}', tmp_path)}" == shown
    assert run_script(f"COLUMNS=100 {line}", tmp_path) not in shown
