"""Checkpoints whose ranks go by other names than Meta's, as people's programs wrote them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from codellama_convert.cli.commands import main
from codellama_convert.errors import CheckpointError
from codellama_convert.meta.find import find_files
from tests.refusals import refused
from tests.witness.checkpoints import (
    MHA,
    expected_state_dict,
    random_model,
    read_output,
    same_bits,
    save_checkpoint,
)

STATE = random_model(MHA, seed=11)


def named(folder: Path, *names: str) -> Path:
    """Save a checkpoint of as many ranks as there are names, and give them these names in order."""
    save_checkpoint(folder, MHA, STATE, n_ranks=len(names))
    for index, name in enumerate(names):
        (folder / f"consolidated.{index:02d}.pth").rename(folder / f"{name}.new")
    for name in names:
        (folder / f"{name}.new").rename(folder / name)
    return folder


def beside(folder: Path, *names: str) -> Path:
    """Add files that hold nothing."""
    for name in names:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (["consolidated.pth"], "so consolidated.pth was used as the weights"),
        (["meta_model_0.pt"], "so meta_model_0.pt was used"),
        (["meta_model_3.pt"], "so meta_model_3.pt was used"),
        (["llama-7b.pth"], "so llama-7b.pth was used"),
        (["CONSOLIDATED.PTH"], "so CONSOLIDATED.PTH was used"),
        (["Consolidated.00.pth"], "so Consolidated.00.pth was used"),
        (["000.pth", "001.pth"], "so 000.pth to 001.pth were used as 2 ranks"),
        (["consolidated.0.pth", "consolidated.1.pth"], "consolidated.1.pth were used as 2 ranks"),
        (["consolidated.0.PTH", "Consolidated.1.pth"], "Consolidated.1.pth were used as 2 ranks"),
        (
            ["consolidated.00-of-02.model.pth", "consolidated.01-of-02.model.pth"],
            "consolidated.00-of-02.model.pth to consolidated.01-of-02.model.pth were used",
        ),
        (["model-00001-of-00002.pt", "model-00002-of-00002.pt"], "were used as 2 ranks"),
    ],
)
def test_ranks_of_other_names_are_converted_with_a_note(tmp_path, names, note):
    """The folder of a TPU port, of a finetuning library, or of a merge was refused."""
    folder = named(tmp_path / "in", *names)
    target = tmp_path / "out"
    done = CliRunner().invoke(main, ["--input_dir", str(folder), "--output_dir", str(target)])
    assert done.exit_code == 0, done.output
    notes = [line for line in done.stderr.splitlines() if "no consolidated.NN.pth is there" in line]
    assert len(notes) == 1
    assert note in notes[0]
    assert "renamed" not in done.stderr
    found, wanted = read_output(target), expected_state_dict(STATE, MHA)
    assert found.keys() == wanted.keys()
    assert all(same_bits(found[name], wanted[name]) for name in wanted)


def test_ten_ranks_are_in_the_order_of_their_numbers(tmp_path):
    """By their letters, consolidated.10.pth would be the third."""
    folder = beside(tmp_path, *(f"consolidated.{n}.pth" for n in range(11)), "params.json")
    ranks = [path.name for path in find_files(folder).ranks]
    assert ranks == [f"consolidated.{n}.pth" for n in range(11)]


def test_sixteen_ranks_are_taken(tmp_path):
    """No release has more than 8, but training has; "no model has more than 8" was wrong."""
    folder = beside(tmp_path, *(f"consolidated.{n:02d}.pth" for n in range(16)), "params.json")
    assert len(find_files(folder).ranks) == 16


@pytest.mark.parametrize(
    ("names", "facts"),
    [
        (["000.pth", "002.pth"], ("001.pth is missing; found: 000.pth, 002.pth",)),
        (["001.pth"], ("000.pth is missing",)),
        (["consolidated.1.pth", "consolidated.2.pth"], ("consolidated.0.pth is missing",)),
        (["consolidated.00-of-02.model.pth"], ("consolidated.01-of-02.model.pth is missing",)),
        (["m-00002-of-00002.pt"], ("m-00001-of-00002.pt is missing",)),
        (["c.00-of-02.pth", "c.01-of-02.pth", "c.05-of-02.pth"], ("c.05-of-02.pth", "2")),
        (["consolidated.0.pth", "consolidated.00.PTH"], ("two files for rank 0",)),
        (["a.pth", "b.pth"], ("several files", "a.pth, b.pth")),
        (["consolidated.pth", "model.pt"], ("several files", "consolidated.pth, model.pt")),
        (["000.pth", "001.pth", "model.pt"], ("several files", "000.pth, 001.pth, model.pt")),
        (["meta_model_0.pt", "meta_model_1.pt"], ("several files", "meta_model_0.pt")),
        (["x.00-of-02.pth", "x.00-of-04.pth"], ("several files",)),
        (["consolidated.00.pth", "consolidated.02.pth", "000.pth"], ("consolidated.01.pth is",)),
    ],
)
def test_a_gap_or_a_choice_is_refused(tmp_path, names, facts):
    folder = beside(tmp_path, *names, "params.json")
    with refused(CheckpointError, str(folder), *facts):
        find_files(folder)


def test_files_of_optimizers_are_no_second_choice(tmp_path):
    folder = beside(tmp_path, "model.pt", "optimizer.pt", "scheduler.pt", "rng_state_0.pth")
    files = find_files(beside(folder, "params.json"))
    assert [path.name for path in files.ranks] == ["model.pt"]
    assert files.notes[1] == "ignored optimizer.pt, rng_state_0.pth, scheduler.pt"
    (folder / "model.pt").unlink()
    with refused(CheckpointError, "holds no consolidated.NN.pth"):
        find_files(folder)


def test_metas_names_come_first(tmp_path):
    folder = beside(tmp_path, "consolidated.00.pth", "model.pt", "000.pth", "params.json")
    files = find_files(folder)
    assert [path.name for path in files.ranks] == ["consolidated.00.pth"]
    assert files.notes == ("ignored 000.pth, model.pt",)


def test_a_folder_of_such_a_name_is_no_rank(tmp_path):
    (tmp_path / "old.pt").mkdir()
    files = find_files(beside(tmp_path, "model.pt", "params.json"))
    assert [path.name for path in files.ranks] == ["model.pt"]
