"""What lies in the way in an output folder: it is kept, replaced or refused, and never followed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from codellama_convert.convert.run import RunOptions, run
from codellama_convert.errors import OutputError
from codellama_convert.plan.job import Options, plan_conversion
from tests.outputs import STAGING, command, content, finish, stop_after_files
from tests.staging.runs import OPTIONS, OVER, convert, interrupt
from tests.witness.checkpoints import GQA, save_checkpoint

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links and locks as POSIX has them")


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


# --- what is kept, and what is in the way ---------------------------------------------------------


def test_overwriting_keeps_what_is_not_a_converted_model(converted: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    shutil.copytree(converted / "out", target)
    foreign = {"notes.txt": b"mine", "model-1-of-2.gguf": b"mine", ".hidden": b"mine"}
    for name, bytes_ in foreign.items():
        (target / name).write_bytes(bytes_)
    (target / "folder").mkdir()
    (target / "folder" / "config.json").write_bytes(b"mine")
    old = [f"model-0000{i}-of-00009.safetensors" for i in range(1, 10)]
    for name in (*old, "model.safetensors"):
        (target / name).write_bytes(b"old")
    convert(converted, target, OVER)
    assert content(target) == content(converted / "out") | foreign
    assert content(target / "folder") == {"config.json": b"mine"}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "tokenizer.model"])
def test_a_file_that_came_between_two_runs_is_not_replaced_unasked(
    converted: Path, tmp_path: Path, name: str
) -> None:
    target = tmp_path / "out"
    interrupt(converted, target)
    (target / name).write_bytes(b"mine")
    with pytest.raises(OutputError, match=f"not empty .*{name}.*--overwrite"):
        convert(converted, target)
    assert (target / name).read_bytes() == b"mine"
    (target / name).rename(target / "notes.txt")  # which is in nobody's way
    convert(converted, target)
    assert content(target) == content(converted / "out") | {"notes.txt": b"mine"}


def test_what_somebody_else_put_into_the_staging_folder_is_not_published(
    converted: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    interrupt(converted, target)
    (target / STAGING / "notes.txt").write_bytes(b"mine")
    (target / STAGING / "folder").mkdir()
    convert(converted, target)
    assert content(target) == content(converted / "out")
    assert not (target / STAGING).exists()


def test_what_somebody_else_put_into_the_staging_folder_is_not_verified(
    tmp_path: Path,
) -> None:
    """Each resumed run with --verify ended in "is not JSON; convert it again", about no file of it.

    Into one file no index is written, but verify looks for one first; a leftover of that name in
    the staging folder stayed from run to run.
    """
    save_checkpoint(tmp_path / "in", GQA)
    target = tmp_path / "out"
    stop_after_files(plan_conversion(tmp_path / "in", Options()), target, 0)
    for name in ("model.safetensors.index.json", "config.json", "chat_template.jinja"):
        (target / STAGING / name).write_bytes(b"not JSON")
    done = finish([*command(tmp_path / "in", target, "--verify"), "--max_shard_size", "5GB"])
    assert done.returncode == 0, done.stderr
    assert "model.safetensors.index.json" not in content(target)


def test_a_card_that_was_not_asked_for_again_is_not_published(
    converted: Path, tmp_path: Path
) -> None:
    def stop_there(*_: object) -> None:
        raise KeyboardInterrupt

    target = tmp_path / "out"
    how = RunOptions(model_card=True, check_staged=stop_there)
    with pytest.raises(KeyboardInterrupt):
        convert(converted, target, how)
    assert (target / STAGING / "README.md").exists()
    convert(converted, target)
    assert content(target) == content(converted / "out")
    convert(converted, tmp_path / "with", RunOptions(model_card=True))
    assert set(content(tmp_path / "with")) == {*content(converted / "out"), "README.md"}


def test_an_empty_staging_folder_that_a_kill_left_is_cleared_away(
    converted: Path, tmp_path: Path
) -> None:
    """The last kill but one that there can be: the journal is gone, its folder is not."""
    target = tmp_path / "out"
    shutil.copytree(converted / "out", target)
    (target / STAGING).mkdir()
    convert(converted, target)  # all is done
    assert content(target) == content(converted / "out")
    assert not (target / STAGING).exists()
    (target / STAGING).mkdir()
    (target / "conversion.json").unlink()  # so that it cannot be known
    with pytest.raises(OutputError, match="not empty"):
        convert(converted, target)
    assert not (target / STAGING).exists()
