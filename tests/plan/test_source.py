"""A folder of either side is the source of ranks: which side it is, and what is said of that."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from codellama_convert import convert_checkpoint, plan_reverse, reverse_checkpoint
from codellama_convert.errors import CheckpointError, ConfigError
from tests.outputs import content
from tests.refusals import refused
from tests.witness.checkpoints import GQA, random_model, save_checkpoint


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two ranks, and the Hugging Face folder made of another model."""
    folder = tmp_path_factory.mktemp("sides")
    save_checkpoint(folder / "meta", GQA, random_model(GQA, torch.bfloat16, 3), n_ranks=2)
    save_checkpoint(folder / "other", GQA, random_model(GQA, torch.bfloat16, 4))
    convert_checkpoint(folder / "other", folder / "hf")
    return folder


@pytest.fixture
def hugging_face(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "hf", tmp_path / "hf")


def test_a_hugging_face_folder_without_its_config_is_told_so(hugging_face: Path) -> None:
    """It was told that it holds no consolidated.NN.pth, and needs no conversion."""
    plan_reverse(hugging_face)
    (hugging_face / "config.json").unlink()
    with refused(ConfigError, "config.json", "No such file", "it comes with the weights"):
        plan_reverse(hugging_face)
    (hugging_face / "params.json").write_text("{}")  # which many programs call their file
    with refused(ConfigError, "config.json", "No such file"):
        plan_reverse(hugging_face)


def test_a_folder_of_neither_side_is_told_what_both_are(tmp_path: Path) -> None:
    with refused(CheckpointError, "holds no consolidated.NN.pth", "Hugging Face", "config.json"):
        plan_reverse(tmp_path)


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_ranks_beside_a_hugging_face_model_are_passed_over_with_a_note(
    made: Path, hugging_face: Path, tmp_path: Path, n_ranks: int
) -> None:
    """As a download of a whole repository has both; nothing said which was taken."""
    reverse_checkpoint(hugging_face, tmp_path / "alone")
    said = plan_reverse(hugging_face).notes
    for number in range(n_ranks):
        shutil.copyfile(
            made / "meta" / f"consolidated.{number:02d}.pth",
            hugging_face / f"consolidated.{number:02d}.pth",
        )
    both = "consolidated.00.pth" if n_ranks == 1 else "consolidated.00.pth and 1 more"
    note = f"ignored {both}: the Hugging Face model in the folder is read"
    assert set(plan_reverse(hugging_face).notes) - set(said) == {note}
    reverse_checkpoint(hugging_face, tmp_path / "both")
    alone, beside = content(tmp_path / "alone"), content(tmp_path / "both")
    assert alone.pop("conversion.json") != beside.pop("conversion.json")  # it has the note
    assert beside == alone


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_one_file_of_the_other_side_does_not_make_ranks_another_model(
    made: Path, tmp_path: Path, name: str
) -> None:
    source = shutil.copytree(made / "meta", tmp_path / "meta")
    shutil.copyfile(made / "hf" / name, source / name)
    job = plan_reverse(source)
    assert job.weights.source.is_metas
    assert [file.path.name for file in job.weights.source_files] == [
        "consolidated.00.pth", "consolidated.01.pth"
    ]  # fmt: skip
