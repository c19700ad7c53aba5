"""The folder that is given may hold a checkpoint several levels down, or several of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from codellama_convert.cli.commands import main
from codellama_convert.errors import CheckpointError
from codellama_convert.meta import search
from codellama_convert.meta.find import find_files
from tests.refusals import refused

needs_links = pytest.mark.skipif(os.name == "nt", reason="links as POSIX has them")


def checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("consolidated.00.pth", "params.json"):
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_a_checkpoint_is_found_up_to_five_levels_down(tmp_path, depth):
    inside = Path(*"abcde"[:depth])
    folder = checkpoint(tmp_path / inside)
    files = find_files(tmp_path)
    assert files.folder == folder
    assert files.place_notes == (f"the checkpoint was found in {inside}",)
    assert find_files(folder).place_notes == ()


def test_six_levels_down_nothing_is_found(tmp_path):
    checkpoint(tmp_path / "a/b/c/d/e/f")
    with refused(CheckpointError, "holds no consolidated.NN.pth and no params.json"):
        find_files(tmp_path)


def test_the_nearest_level_is_taken(tmp_path):
    near = checkpoint(tmp_path / "7B")
    checkpoint(tmp_path / "old" / "7B")
    assert find_files(tmp_path).folder == near
    assert find_files(tmp_path, model_size="7B").folder == near


def test_a_size_that_is_not_near_is_looked_for_further_down(tmp_path):
    checkpoint(tmp_path / "7B")
    far = checkpoint(tmp_path / "more" / "13B")
    assert find_files(tmp_path, model_size="13B").folder == far
    with refused(CheckpointError, "in a folder named 34B, but 7B, more/13B"):
        find_files(tmp_path, model_size="34B")


def test_a_params_json_of_another_program_is_not_a_checkpoint(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "params.json").touch()
    folder = checkpoint(tmp_path / "llama" / "7B")
    assert find_files(tmp_path).folder == folder


LLAMA_2 = ("llama-2-7b", "llama-2-7b-chat", "llama-2-13b")
CODE_LLAMA = ("CodeLlama-7b", "CodeLlama-7b-Instruct", "CodeLlama-7b-Python")


@pytest.mark.parametrize(
    ("names", "asked", "found"),
    [
        (LLAMA_2, {"model_size": "7Bf"}, "llama-2-7b-chat"),
        (LLAMA_2, {"model_size": "13B"}, "llama-2-13b"),
        (LLAMA_2, {"model_size": "7B", "flavor": "base"}, "llama-2-7b"),
        (LLAMA_2, {"flavor": "chat"}, "llama-2-7b-chat"),
        (CODE_LLAMA, {"flavor": "instruct"}, "CodeLlama-7b-Instruct"),
        (CODE_LLAMA, {"model_size": "7B", "flavor": "python"}, "CodeLlama-7b-Python"),
        (("7B", "llama-2-7b"), {"model_size": "7B"}, "7B"),
        (("my-model",), {"model_size": "7B"}, "my-model"),
        (("my-model",), {"flavor": "chat"}, "my-model"),
    ],
)
def test_size_and_variant_choose(tmp_path, names, asked, found):
    """`--model_size 7Bf` beside llama-2-7b and llama-2-7b-chat was told to give --model_size."""
    for name in names:
        checkpoint(tmp_path / name)
    assert find_files(tmp_path, **asked).folder.name == found


@pytest.mark.parametrize(
    ("names", "asked", "said", "unsaid"),
    [
        (LLAMA_2, {}, ["choose one with --model_size"], ["--variant"]),
        (LLAMA_2, {"model_size": "7B"}, ["for 7B", "with --variant"], ["with --model_size", "13b"]),
        (CODE_LLAMA, {"model_size": "7B"}, ["with --variant"], ["with --model_size"]),
        # What all of them share cannot choose.
        (("a-7b", "b-7b"), {}, ["name the folder"], ["--model_size", "--variant"]),
        (CODE_LLAMA, {}, ["with --variant"], ["with --model_size"]),
        (("a-7b", "b-7b"), {"model_size": "7B"}, ["name the folder"], ["--variant"]),
        (("x-7b-chat", "y-7b-chat"), {"model_size": "7Bf"}, ["name the folder"], ["--variant"]),
    ],
)
def test_a_hint_is_not_given_again_once_it_was_followed(tmp_path, names, asked, said, unsaid):
    for name in names:
        checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError) as caught:
        find_files(tmp_path, **asked)
    told = str(caught.value)
    assert "several checkpoints" in told
    assert all(text in told for text in said), told
    assert not any(text in told for text in unsaid), told


def test_one_whose_name_says_another_size_is_not_taken(tmp_path):
    checkpoint(tmp_path / "13B")
    with refused(CheckpointError, "in a folder named 7B, but 13B; name one"):
        find_files(tmp_path, model_size="7B")


def test_a_flavour_that_no_folder_is_named_after_is_told(tmp_path):
    """It was called several checkpoints for python, of which none was one."""
    checkpoint(tmp_path / "CodeLlama-7b")
    checkpoint(tmp_path / "CodeLlama-7b-Instruct")
    with refused(CheckpointError, "no checkpoint in a folder named python, but CodeLlama-7b, Code"):
        find_files(tmp_path, flavor="python")
    assert find_files(tmp_path, flavor="instruct").folder.name == "CodeLlama-7b-Instruct"


def test_names_that_say_no_flavour_are_chosen_from_by_size(tmp_path):
    checkpoint(tmp_path / "7B")
    checkpoint(tmp_path / "13B")
    with refused(CheckpointError, "several checkpoints for base", "choose one with --model_size"):
        find_files(tmp_path, flavor="base")


def test_hidden_folders_are_passed_over(tmp_path):
    checkpoint(tmp_path / ".cache" / "7B")
    with refused(CheckpointError, "holds no consolidated.NN.pth"):
        find_files(tmp_path)


@needs_links
def test_links_that_lead_in_circles_end(tmp_path):
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    (inside / "up").symlink_to(tmp_path)
    (inside / "self").symlink_to("self")
    (inside / "gone").symlink_to("nowhere")
    with refused(CheckpointError, "holds no consolidated.NN.pth"):
        find_files(tmp_path)
    folder = checkpoint(inside / "7B")
    (tmp_path / "a" / "link").symlink_to(folder)
    (inside / "latest").symlink_to("7B")
    assert find_files(inside).folder == folder
    assert find_files(tmp_path).folder.samefile(folder)


@pytest.mark.skipif(
    os.name == "nt" or (hasattr(os, "geteuid") and os.geteuid() == 0),
    reason="a folder that may not be read, which root may",
)
def test_a_folder_that_may_not_be_read_is_passed_over_and_said_if_nothing_else_is_found(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    with refused(CheckpointError, "no checkpoint that can be read", str(closed)):
        find_files(tmp_path)
    folder = checkpoint(tmp_path / "7B")
    assert find_files(tmp_path).folder == folder


def test_a_search_through_too_much_ends_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "_MAX_ENTRIES", 50)
    full = tmp_path / "images"
    full.mkdir()
    for number in range(40):
        (full / str(number)).touch()
    with refused(CheckpointError, "holds no consolidated.NN.pth"):
        find_files(tmp_path)
    for number in range(40, 60):
        (full / str(number)).touch()
    with refused(CheckpointError, "more than 50 files and folders", "--input_dir"):
        find_files(tmp_path)


def test_the_given_folder_may_be_the_current_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "a" / "7B")
    done = CliRunner().invoke(main, ["plan", "--input_dir", "."])
    assert "a/7B/params.json: the file is empty" in done.stderr


def snapshots(folder: Path) -> tuple[Path, Path]:
    """Lay out two downloads of one model, as a hub keeps them."""
    home = folder / "models--codellama--CodeLlama-7b"
    first, second = (checkpoint(home / "snapshots" / (letter * 40) / "original") for letter in "ab")
    return first, second


@pytest.mark.parametrize("given", ["", "models--codellama--CodeLlama-7b"])
def test_of_two_snapshots_of_a_model_the_current_one_is_taken(tmp_path, given):
    """They were several checkpoints, and only their long names could choose."""
    first, second = snapshots(tmp_path)
    refs = first.parents[2] / "refs"
    refs.mkdir()
    for folder in (first, second):
        (refs / "main").write_text(folder.parent.name)
        assert find_files(tmp_path / given).folder == folder


@pytest.mark.parametrize("current", [None, "", "c" * 40, "\0" * 500, "../snapshots"])
def test_two_snapshots_are_both_named_where_none_is_current(tmp_path, current):
    first, _ = snapshots(tmp_path)
    if current is not None:
        (first.parents[2] / "refs").mkdir()
        (first.parents[2] / "refs" / "main").write_text(current)
    with refused(
        CheckpointError, "several checkpoints", "a" * 40, "b" * 40, "; name the folder of one"
    ):
        find_files(tmp_path)


def test_the_snapshots_of_two_models_stay_several(tmp_path):
    first, _ = snapshots(tmp_path)
    (first.parents[2] / "refs").mkdir()
    (first.parents[2] / "refs" / "main").write_text("a" * 40)
    other = "models--codellama--CodeLlama-13b/snapshots/" + "d" * 40
    checkpoint(tmp_path / other / "original")
    with refused(CheckpointError, "several checkpoints", "CodeLlama-13b", "CodeLlama-7b"):
        find_files(tmp_path)
