"""What lies in the way in an output folder: it is kept, replaced or refused, and never followed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from codellama_convert.convert import RunOptions, convert_checkpoint, run
from codellama_convert.errors import OutputError
from codellama_convert.job import Options, plan_conversion
from tests.checkpoints import GQA, random_model, save_checkpoint
from tests.outputs import SHARD_BYTES, content

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links and locks as POSIX has them")

OPTIONS = Options(max_shard_bytes=SHARD_BYTES, workers=1, tile_bytes=8192)
OVER = RunOptions(overwrite=True)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and what an uninterrupted run makes of it."""
    folder = tmp_path_factory.mktemp("output_folder")
    save_checkpoint(folder / "in", GQA, random_model(GQA, torch.bfloat16, 3), n_ranks=2)
    convert_checkpoint(folder / "in", folder / "out", options=OPTIONS)
    return folder


def convert(converted: Path, target: Path, how: RunOptions | None = None) -> None:
    run(plan_conversion(converted / "in", OPTIONS), target, how)


# --- the input's own files ------------------------------------------------------------------------


def download(converted: Path, tmp_path: Path) -> Path:
    """Lay the checkpoint out as Meta's script leaves Llama 2: the tokenizer beside the folder."""
    shutil.copytree(converted / "in", tmp_path / "llama" / "7B")
    (tmp_path / "llama" / "7B" / "tokenizer.model").rename(tmp_path / "llama" / "tokenizer.model")
    return tmp_path / "llama"


def test_a_folder_that_holds_a_file_of_the_input_is_refused(
    converted: Path, tmp_path: Path
) -> None:
    """It was allowed with --overwrite: a kill while publishing took tokenizer.model away."""
    llama = download(converted, tmp_path)
    before = content(llama)
    with pytest.raises(OutputError, match=r"holds a file of the input, 'tokenizer\.model'"):
        run(plan_conversion(llama / "7B", OPTIONS), llama, OVER)
    assert content(llama) == before
    assert sorted(path.name for path in llama.iterdir()) == ["7B", "tokenizer.model"]


def test_a_folder_that_a_link_of_the_input_leads_into_is_refused(
    converted: Path, tmp_path: Path
) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    shutil.copytree(converted / "in", source)
    shutil.copytree(converted / "out", target)
    (source / "tokenizer.model").unlink()
    (source / "tokenizer.model").symlink_to("../out/tokenizer.model")
    before = content(target)
    with pytest.raises(OutputError, match=r"tokenizer\.model"):
        run(plan_conversion(source, OPTIONS), target, OVER)
    assert content(target) == before


def test_a_folder_is_known_by_another_name(converted: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(converted / "in")
    for name in (tmp_path / "link", converted / "out" / ".." / "in"):
        with pytest.raises(OutputError, match="the output folder is the input folder"):
            convert(converted, name, OVER)


def test_a_folder_below_or_above_the_input_is_fine(converted: Path, tmp_path: Path) -> None:
    shutil.copytree(converted / "in", tmp_path / "a" / "in")
    run(plan_conversion(tmp_path / "a" / "in", OPTIONS), tmp_path / "a" / "in" / "hf")
    assert content(tmp_path / "a" / "in" / "hf") == content(converted / "out")
    run(plan_conversion(tmp_path / "a" / "in", OPTIONS), tmp_path / "a", OVER)
    assert content(tmp_path / "a") == content(converted / "out")
    assert content(tmp_path / "a" / "in") == content(converted / "in")


def test_a_hard_link_to_an_input_is_replaced_and_the_input_stays(
    converted: Path, tmp_path: Path
) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    shutil.copytree(converted / "in", source)
    target.mkdir()
    for name in ("tokenizer.model", "config.json"):  # one of the same content, one of another
        os.link(source / "tokenizer.model", target / name)
    run(plan_conversion(source, OPTIONS), target, OVER)
    assert content(source) == content(converted / "in")
    assert content(target) == content(converted / "out")
    assert (source / "tokenizer.model").stat().st_nlink == 1
