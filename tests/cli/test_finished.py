"""The same command a second time: what is done is not done again, and nothing else passes for it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from codellama_convert.cli.commands import main
from tests.outputs import LOCK, STAGING, content, flip_bit
from tests.witness.checkpoints import GQA, random_model, save_checkpoint, sums_computed

SHARDS = ("--max_shard_size", "60KB")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    save_checkpoint(folder / "in", GQA, random_model(GQA, torch.bfloat16, 3), n_ranks=2)
    assert convert(folder, *SHARDS).exit_code == 0
    return folder


@pytest.fixture
def done(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def convert(folder: Path, *more: str) -> Result:
    both = ["--input_dir", str(folder / "in"), "--output_dir", str(folder / "out")]
    return CliRunner().invoke(main, [*both, *more])


def written(folder: Path) -> dict[str, tuple[int, int]]:
    """Which file each name leads to, and when it was written."""
    found = {path.name: path.stat() for path in folder.iterdir()}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}


def test_the_same_command_twice_does_nothing(done: Path) -> None:
    """The second one was refused: the output folder is not empty."""
    before = written(done / "out")
    again = convert(done, *SHARDS)
    assert again.exit_code == 0, again.output
    assert f"{done / 'out'}: already converted, nothing to do" in again.stdout
    assert written(done / "out") == before
    assert convert(done, *SHARDS, "--quiet").stdout == ""
    said = json.loads(convert(done, *SHARDS, "--json").stdout)
    assert said["already_converted"] is True
    assert said["output_dir"] == str(done / "out")
    assert said["kept_bytes"] == said["tensor_bytes"] > 0
    assert set(said["files"]) == set(before)
    shutil.rmtree(done / "out")
    assert json.loads(convert(done, *SHARDS, "--json").stdout)["already_converted"] is False


def test_what_a_death_at_the_very_end_leaves_is_no_reason_to_refuse(done: Path) -> None:
    """All was published, and the empty staging folder and the lock stayed: "not empty"."""
    before = content(done / "out")
    (done / "out" / STAGING).mkdir()
    (done / "out" / LOCK).touch()
    done_already = ["plan", "--input_dir", str(done / "in"), "--output_dir", str(done / "out")]
    assert "already converted" in CliRunner().invoke(main, [*done_already, *SHARDS]).stdout
    assert (done / "out" / STAGING).exists(), "plan writes nothing"
    again = convert(done, *SHARDS)
    assert again.exit_code == 0, again.output
    assert "already converted" in again.stdout
    assert content(done / "out") == before
    assert not (done / "out" / STAGING).exists()


def test_verifying_reads_the_weights_of_a_finished_conversion_too(done: Path) -> None:
    """A damaged output was "already converted" under --verify."""
    assert "already converted" in convert(done, *SHARDS, "--verify").stdout
    shard = done / "out" / "model-00001-of-00006.safetensors"
    flip_bit(shard, shard.stat().st_size - 5)
    damaged = convert(done, *SHARDS, "--verify")
    assert damaged.exit_code == 1
    assert "already converted" not in damaged.output
    assert shard.name in damaged.stderr
    assert "convert it again" in damaged.stderr


def test_the_weights_are_not_read_for_it(done: Path) -> None:
    """An hour of reading was not asked for; `verify` is there to find what this does not."""
    shard = next((done / "out").glob("*.safetensors"))
    flip_bit(shard, -1)
    assert convert(done, *SHARDS).exit_code == 0
    found = CliRunner().invoke(
        main, ["verify", "--input_dir", str(done / "in"), "--output_dir", str(done / "out")]
    )
    assert found.exit_code == 1


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--max_shard_size", "70KB"],
        [*SHARDS, "--dtype", "float32"],
        [*SHARDS, "--variant", "instruct"],
        [*SHARDS, "--max_position_embeddings", "99"],
        [*SHARDS, "--skip_tokenizer"],
        [*SHARDS, "--tokenizer_class", "LlamaTokenizer"],
        [*SHARDS, "--sha256"],
        [*SHARDS, "--model_card"],
        [*SHARDS, "--restart"],
        ["--model_size", "tokenizer_only"],
    ],
)
def test_another_command_is_refused(done: Path, options: list[str]) -> None:
    before = content(done / "out")
    refused = convert(done, *options)
    assert refused.exit_code == 1
    assert "Error: " in refused.stderr
    assert content(done / "out") == before


def plan(folder: Path, *more: str) -> Result:
    return CliRunner().invoke(main, ["plan", str(folder / "in"), str(folder / "out"), *more])


def test_the_plan_of_a_finished_conversion_says_so(done: Path) -> None:
    """It said that the folder is not empty and would be refused, though `convert` exits with 0."""
    shown = plan(done, *SHARDS)
    assert shown.exit_code == 0
    assert "finished    already converted, nothing to do" in shown.stdout.splitlines()
    assert "refused" not in shown.stdout
    assert "disk        0 B needed, " in shown.stdout
    told = json.loads(plan(done, *SHARDS, "--json").stdout)
    assert (told["output_finished"], told["output_refusal"], told["disk_needed_bytes"]) == (True, None, 0)  # fmt: skip
    other = plan(done)
    assert "already converted" not in other.stdout
    assert "refused     " in other.stdout
    assert json.loads(plan(done, "--json").stdout)["output_finished"] is False


def other_weights(folder: Path) -> None:
    save_checkpoint(folder / "in", GQA, random_model(GQA, torch.bfloat16, 4), n_ranks=2)


def one_rank(folder: Path) -> None:
    shutil.rmtree(folder / "in")
    save_checkpoint(folder / "in", GQA, random_model(GQA, torch.bfloat16, 3), n_ranks=1)


def a_file_is_gone(folder: Path) -> None:
    (folder / "out" / "generation_config.json").unlink()


def a_shard_is_gone(folder: Path) -> None:
    next((folder / "out").glob("*.safetensors")).unlink()


def a_shard_is_short(folder: Path) -> None:
    shard = next((folder / "out").glob("*.safetensors"))
    os.truncate(shard, shard.stat().st_size - 1)


def a_header_is_damaged(folder: Path) -> None:
    flip_bit(next((folder / "out").glob("*.safetensors")), 20)


def a_small_file_was_edited(folder: Path) -> None:
    flip_bit(folder / "out" / "config.json", 10)


def the_record_was_edited(folder: Path) -> None:
    path = folder / "out" / "conversion.json"
    path.write_text(path.read_text().replace('"notes"', '"Notes"'))


def the_record_is_gone(folder: Path) -> None:
    (folder / "out" / "conversion.json").unlink()


def a_loader_takes_another(folder: Path) -> None:
    (folder / "out" / "adapter_config.json").write_text("{}")


def work_is_staged(folder: Path) -> None:
    (folder / "out" / STAGING).mkdir()
    (folder / "out" / STAGING / "model-00001-of-00006.safetensors").touch()
    (folder / "out" / STAGING / "journal.jsonl").touch()  # all else may be left over


@pytest.mark.parametrize(
    "change",
    [
        other_weights, one_rank, a_file_is_gone, a_shard_is_gone, a_shard_is_short,
        a_header_is_damaged, a_small_file_was_edited, the_record_was_edited, the_record_is_gone,
        a_loader_takes_another, work_is_staged,
    ],
)  # fmt: skip
def test_what_is_not_the_whole_result_of_this_command_is_not_finished(
    done: Path, change: Callable[[Path], None]
) -> None:
    change(done)
    refused = convert(done, *SHARDS)
    assert refused.exit_code == 1, refused.output
    assert "already converted" not in refused.output


def test_notes_of_people_do_not_count(done: Path) -> None:
    (done / "out" / "LICENSE").write_text("mine")
    (done / "out" / "README.md").write_text("mine")
    assert "already converted" in convert(done, *SHARDS).stdout


def test_overwriting_converts_again(done: Path) -> None:
    shard = next((done / "out").glob("*.safetensors"))
    whole = shard.read_bytes()
    flip_bit(shard, -1)
    again = convert(done, *SHARDS, "--overwrite")
    assert again.exit_code == 0
    assert "already converted" not in again.stdout
    assert shard.read_bytes() == whole


def test_options_that_change_no_byte_may_differ(done: Path) -> None:
    for more in (["--workers", "1"], ["--io", "buffered"], ["--verify"]):
        assert "already converted" in convert(done, *SHARDS, *more).stdout


def test_the_tokenizer_alone_and_the_sums_are_known_again(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "in", GQA)
    for out, more in (("t", ["--model_size", "tokenizer_only"]), ("s", ["--sha256"])):
        both = ["--input_dir", str(tmp_path / "in"), "--output_dir", str(tmp_path / out), *more]
        assert "wrote" in CliRunner().invoke(main, both).stdout
        assert "already converted" in CliRunner().invoke(main, both).stdout


def test_ranks_without_sums_must_not_have_changed_since(tmp_path: Path) -> None:
    """Their directories do not change with the weights; the same command was always refused."""
    with sums_computed(by_torch=False):
        save_checkpoint(tmp_path / "in", GQA)
    assert convert(tmp_path).exit_code == 0
    assert "already converted" in convert(tmp_path).stdout
    made = max(path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir())
    rank = tmp_path / "in" / "consolidated.00.pth"
    while rank.stat().st_ctime_ns <= made:  # a file system's clock may tick 100 times a second
        with sums_computed(by_torch=False):
            save_checkpoint(tmp_path / "in", GQA, random_model(GQA, torch.bfloat16, 4))
    refused = convert(tmp_path)
    assert refused.exit_code == 1
    assert "not empty" in refused.stderr
