"""Where a checkpoint lies says which model it is, and where its output goes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from codellama_convert.cli.commands import main
from codellama_convert.errors import OutputError
from codellama_convert.meta.places import default_output_dir, model_name
from tests.witness.checkpoints import MHA, save_checkpoint

needs_links = pytest.mark.skipif(os.name == "nt", reason="links as POSIX has them")
SHA = "1c9f047f0e1dbe2e1be6f15f5107bf9f74bb425f"


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("CodeLlama-7b-Instruct", "CodeLlama-7b-Instruct"),
        ("CodeLlama-7b-Instruct/original", "CodeLlama-7b-Instruct"),
        ("CodeLlama-7b-Python/1", "CodeLlama-7b-Python"),
        ("CodeLlama-7b-Python/weights/final", "CodeLlama-7b-Python"),
        (f"hub/models--meta-llama--Llama-2-7b-chat/snapshots/{SHA}", "Llama-2-7b-chat"),
        (f"hub/models--codellama--CodeLlama-7b/snapshots/{SHA}/original", "CodeLlama-7b"),
        (f"hub/models--meta-llama--Llama-3.1-405B/snapshots/{SHA}/original/mp16", "Llama-3.1-405B"),
        ("Meta-Llama-3-8B-Instruct/original", "Meta-Llama-3-8B-Instruct"),
        ("checkpoints/Llama3.2-1B", "Llama3.2-1B"),
        ("checkpoints/Llama-Guard-3-8B", "Llama-Guard-3-8B"),
        (f"models--me--my--model/snapshots/{SHA}", "my--model"),
        ("llama-2/pyTorch/7b-chat/1", "llama-2-7b-chat"),
        ("llama-2/pyTorch/7b/3", "llama-2-7b"),
        ("LLaMA/7B", "7B"),
        ("CodeLlama-7b-Instruct/llama-2-13b", "llama-2-13b"),
        # Nothing is said of the model by a folder that only has such a word in its name.
        ("chat-experiments/my-model", "my-model"),
        ("codellama/my-model", "my-model"),
        ("13b/my-model", "my-model"),
        ("CodeLlama-7b-Instruct/a/b/c/d/e/f", "f"),
    ],
)
def test_the_name_of_the_model_is_the_nearest_that_says_one(tmp_path, folder, name):
    assert model_name(tmp_path / folder) == name


@needs_links
def test_a_link_may_say_what_the_folder_does_not(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "CodeLlama-7b-Instruct").symlink_to("weights")
    assert model_name(tmp_path / "CodeLlama-7b-Instruct") == "CodeLlama-7b-Instruct"
    (tmp_path / "llama-2-7b").mkdir()
    (tmp_path / "current").symlink_to("llama-2-7b")
    assert model_name(tmp_path / "current") == "llama-2-7b"


@pytest.mark.parametrize(
    ("folder", "output"),
    [
        ("LLaMA/13B", "LLaMA/13B-hf"),
        ("CodeLlama-7b/original", "CodeLlama-7b-hf"),
        ("Llama-3.1-405B/original/mp8", "Llama-3.1-405B-hf"),
        ("CodeLlama-7b/1", "CodeLlama-7b-hf"),
        ("llama-2/pytorch/7b-chat/1", "llama-2/pytorch/llama-2-7b-chat-hf"),
        (f"models--meta-llama--Llama-2-7b/snapshots/{SHA}", "work/Llama-2-7b-hf"),
        (f"models--me--mine/snapshots/{SHA}/original", "work/mine-hf"),
        (".cache/somebody/llama-2-7b", "work/llama-2-7b-hf"),
        ("kagglehub/models/meta/llama-2/pyTorch/7b/1", "work/llama-2-7b-hf"),
        ("cache/llama-2-7b", "cache/llama-2-7b-hf"),
    ],
)
def test_the_default_output_is_named_after_the_model_and_in_no_cache(
    tmp_path, monkeypatch, folder, output
):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert default_output_dir(tmp_path / folder).absolute() == tmp_path / output


def hub_cache(folder: Path) -> Path:
    """Lay a checkpoint as huggingface_hub does: links into blobs/ with the names of their sums."""
    saved = save_checkpoint(folder / "tmp", MHA)
    repository = folder / "hub" / "models--meta-llama--Llama-2-7b-chat"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / SHA
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(saved.iterdir())):
        path.rename(repository / "blobs" / f"{number:064x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064x}")
    return snapshot


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@needs_links
@pytest.mark.parametrize("given", ["", "../..", "../../.."])
def test_a_hub_cache_is_converted_into_the_current_folder(tmp_path, monkeypatch, given):
    """The output was snapshots/<commit>-hf, inside the cache, and had no chat template."""
    snapshot = hub_cache(tmp_path)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    before = everything(tmp_path / "hub")
    done = CliRunner().invoke(main, ["--input_dir", os.path.normpath(snapshot / given)])
    assert done.exit_code == 0, done.output
    assert everything(tmp_path / "hub") == before
    config = json.loads((tmp_path / "work/Llama-2-7b-chat-hf/tokenizer_config.json").read_text())
    assert "chat_template" in config


@needs_links
def test_inside_the_cache_itself_an_output_must_be_named(tmp_path, monkeypatch):
    snapshot = hub_cache(tmp_path)
    monkeypatch.chdir(snapshot)
    before = everything(tmp_path)
    done = CliRunner().invoke(main, ["--input_dir", "."])
    assert done.exit_code == 1
    assert "--output_dir" in done.stderr
    assert everything(tmp_path) == before
    named = ["--input_dir", ".", "--output_dir", str(tmp_path / "out")]
    assert CliRunner().invoke(main, named).exit_code == 0


@needs_links
@pytest.mark.parametrize("where", [".", "models--meta-llama--Llama-2-7b-chat"])
def test_the_folder_that_holds_the_models_of_a_hub_is_its_cache(tmp_path, monkeypatch, where):
    """A cache that its owner put elsewhere has no such name; the output was written into it."""
    snapshot = hub_cache(tmp_path)
    monkeypatch.chdir(tmp_path / "hub" / where)
    before = everything(tmp_path)
    done = CliRunner().invoke(main, ["--input_dir", str(snapshot)])
    assert done.exit_code == 1
    assert "so does the current folder" in done.stderr
    assert "--output_dir" in done.stderr
    assert everything(tmp_path) == before


@needs_links
def test_beside_the_models_of_a_hub_nothing_is_written_either(tmp_path, monkeypatch):
    hub_cache(tmp_path)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    plain = tmp_path / "hub" / "CodeLlama-7b"
    assert default_output_dir(plain) == Path("CodeLlama-7b-hf")
    assert default_output_dir(tmp_path / "CodeLlama-7b") == tmp_path / "CodeLlama-7b-hf"


def test_the_chosen_checkpoint_names_the_output(tmp_path):
    """`--input_dir LLaMA --model_size 13B` wrote LLaMA-hf, which says nothing of the size."""
    save_checkpoint(tmp_path / "LLaMA/7B", MHA)
    save_checkpoint(tmp_path / "LLaMA/13B", MHA, n_ranks=2)
    asked = ["--input_dir", str(tmp_path / "LLaMA"), "--model_size", "13B"]
    planned = CliRunner().invoke(main, ["plan", *asked])
    assert f"output      {tmp_path / 'LLaMA/13B-hf'}" in planned.stdout.splitlines()
    assert CliRunner().invoke(main, asked).exit_code == 0
    assert sorted(path.name for path in tmp_path.rglob("*-hf")) == ["13B-hf"]
    assert {path.name for path in (tmp_path / "LLaMA/13B-hf").glob("m*")} == {"model.safetensors"}


@pytest.mark.parametrize(
    ("folder", "has_template"),
    [
        ("CodeLlama-7b-Instruct/original", True),
        ("CodeLlama-7b-Instruct/1", True),
        ("llama-2/pyTorch/7b-chat/1", True),
        ("CodeLlama-7b/original", False),
        ("CodeLlama-7b-Instruct/CodeLlama-7b", False),
    ],
)
def test_the_flavour_is_read_from_the_nearest_name(tmp_path, folder, has_template):
    """ "original" says nothing, and an Instruct model was written without its chat template."""
    source = save_checkpoint(tmp_path / folder, MHA)
    target = tmp_path / "out"
    both = ["--input_dir", str(source), "--output_dir", str(target)]
    assert CliRunner().invoke(main, both).exit_code == 0
    config = json.loads((target / "tokenizer_config.json").read_text())
    assert ("chat_template" in config) == has_template


@pytest.mark.parametrize("name", ["/", "/.."])
def test_the_root_has_no_name_for_an_output(name):
    """It was a traceback."""
    with pytest.raises(OutputError, match=r"has no name .*; name it with --output_dir"):
        default_output_dir(Path(name))
    assert default_output_dir(Path("/m")) == Path("/m-hf")
