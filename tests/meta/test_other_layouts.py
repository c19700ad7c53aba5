"""A folder without Meta's ranks is told what it holds instead: the reported situations."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from codellama_convert import Options, plan_conversion
from codellama_convert.errors import CheckpointError, ConfigError, TokenizerError
from codellama_convert.meta.find import find_files
from tests.refusals import refused
from tests.witness.checkpoints import MHA, save_checkpoint

needs_links = pytest.mark.skipif(os.name == "nt", reason="links as POSIX has them")


def holding(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("names", "facts"),
    [
        (["consolidated.safetensors"], ["consolidated.safetensors", "Mistral"]),
        (["consolidated.00.pth.part"], ["consolidated.00.pth.part", "unfinished download"]),
        (
            ["consolidated.00.pth.aria2", "consolidated.01.pth.aria2"],
            ["consolidated.00.pth.aria2, consolidated.01.pth.aria2", "unfinished downloads"],
        ),
        (["llama-7b.Q4_K_M.gguf"], ["llama-7b.Q4_K_M.gguf", "llama.cpp"]),
        (["ggml-model-q4_0.bin"], ["ggml-model-q4_0.bin", "llama.cpp"]),
        (["pytorch_model.bin"], ["pytorch_model.bin", "Hugging Face model"]),
        (["weights.bin"], ["weights.bin", ".bin file"]),
        (["llama_guard_3_1b.pte"], ["llama_guard_3_1b.pte", "ExecuTorch", "quantised"]),
        (
            ["__0_0.distcp", ".metadata"],
            ["__0_0.distcp", "distributed PyTorch checkpoint", "dcp_to_torch"],
        ),
        (
            ["model-00001-of-00002.safetensors"],
            ["Hugging Face model", "load it as it is, or", "codellama-convert reverse"],
        ),
        (["adapter_model.safetensors"], ["adapter_model.safetensors", "LoRA"]),
        (["adapter_0.pt"], ["adapter_0.pt", "LoRA"]),
        (["config.json"], ["config.json", "Hugging Face", "codellama-convert reverse"]),
    ],
)
@pytest.mark.parametrize("params", [["params.json"], []])
def test_what_lies_there_instead_is_said(tmp_path, names, facts, params):
    """With params.json beside them, all that was said was that no consolidated.NN.pth is there."""
    folder = holding(tmp_path, *names, *params)
    with refused(CheckpointError, "holds no consolidated.NN.pth", *facts):
        find_files(folder)


def test_weights_without_params_json_lack_that(tmp_path):
    """ "holds no consolidated.NN.pth" was a wrong cause: the sole file would be taken."""
    with refused(ConfigError, "params.json", "No such file", "it comes with the ranks"):
        find_files(holding(tmp_path, "model.pt", "tokenizer.model"))


@pytest.mark.parametrize("name", ["consolidated.00.pth", "params.json", "tokenizer.model"])
def test_a_file_that_aria2_still_fills_is_refused(tmp_path, name):
    """It has its full size, so its zip directory was called damaged, or its zeros were found late."""
    folder = save_checkpoint(tmp_path / "in", MHA)
    find_files(holding(folder, "other.zip.aria2"))
    with refused(CheckpointError, f"{name}: its download is unfinished", f"{name}.aria2"):
        find_files(holding(folder, f"{name}.aria2"))


def test_a_rank_whose_download_is_unfinished_is_not_called_missing_alone(tmp_path):
    folder = save_checkpoint(tmp_path / "in", MHA, n_ranks=4)
    (folder / "consolidated.01.pth").rename(folder / "consolidated.01.pth.crdownload")
    with refused(CheckpointError, "consolidated.01.pth is missing, but", ".crdownload", "finish"):
        find_files(folder)


@pytest.mark.parametrize("end", ["part", "aria2", "crdownload"])
@pytest.mark.parametrize("name", ["consolidated.{:02d}.pth", "{:03d}.pth"])
def test_the_last_rank_whose_download_is_unfinished_is_not_called_missing_alone(
    tmp_path, name, end
):
    """It was asked for, though it was on its way; that of a rank that is there is a leftover."""
    folder = save_checkpoint(tmp_path / "in", MHA, n_ranks=2)
    for number in range(2):
        (folder / f"consolidated.{number:02d}.pth").rename(folder / name.format(number))
    if end != "aria2":  # beside a file that is there, it says that zeros are in it
        find_files(holding(folder, f"{name.format(1)}.{end}"))
    (folder / name.format(1)).rename(folder / f"{name.format(1)}.{end}")
    facts = (f"{name.format(1)} is missing, but {name.format(1)}.{end} is its", "finish")
    with refused(CheckpointError, str(folder), *facts):
        find_files(folder)


@needs_links
@pytest.mark.parametrize("name", ["consolidated.00.pth", "params.json", "tokenizer.model"])
def test_a_dangling_link_says_where_it_leads(tmp_path, name):
    """A moved hub cache: "cannot open: No such file" of a file that `ls` shows."""
    folder = save_checkpoint(tmp_path / "in", MHA)
    (folder / name).rename(tmp_path / "blob")
    (folder / name).symlink_to("../blob")
    assert find_files(folder).folder == folder
    (tmp_path / "blob").unlink()
    with refused(CheckpointError, name, "is a link to ../blob, which is not there"):
        find_files(folder)


@pytest.mark.parametrize(
    ("alike", "name"),
    [
        ("Params.json", "params.json"),
        ("params (1).json", "params.json"),
        ("params.json.txt", "params.json"),
        ("params.json.1", "params.json"),
        ("Tokenizer.model", "tokenizer.model"),
        ("tokenizer(2).model", "tokenizer.model"),
        ("tokenizer - Copy.model", "tokenizer.model"),
    ],
)
def test_a_name_that_is_almost_right_is_said(tmp_path, alike, name):
    folder = save_checkpoint(tmp_path / "in", MHA)
    plan_conversion(holding(folder, f"other {alike}"), Options())
    (folder / name).rename(folder / alike)
    if (folder / name).exists():
        pytest.skip("names differ by more than case here")
    kind = ConfigError if name == "params.json" else TokenizerError
    with refused(kind, f"but {alike}", f"rename {alike}"):
        plan_conversion(folder, Options())


def test_a_name_that_only_ends_like_it_is_not_almost_right(tmp_path):
    folder = save_checkpoint(tmp_path / "in", MHA, tokenizer=False)
    with refused(TokenizerError, "no tokenizer.model in the folder or beside it; give its path"):
        plan_conversion(holding(folder, "my_tokenizer.model"), Options())


def test_the_fp8_form_of_405b_is_refused_and_the_right_folders_are_named(tmp_path):
    """The download without a suffix is this one: its scales were passed over with a note."""
    source = save_checkpoint(tmp_path / "Llama3.1-405B", MHA, n_ranks=2)
    plan_conversion(source)
    for number in (0, 1):
        (source / f"fp8_scales_{number}.pt").touch()
    facts = ("Llama3.1-405B", "fp8_scales_0.pt", "FP8", "-bf16-mp8 or -mp16", "original/mp16")
    with refused(CheckpointError, *facts):
        plan_conversion(source)
