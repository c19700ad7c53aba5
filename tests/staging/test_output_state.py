"""What `plan` says of the output folder: what is in the way, what is staged, what is too little."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from codellama_convert.cli.commands import main
from codellama_convert.convert.run import convert_checkpoint, run
from codellama_convert.errors import Interrupted
from codellama_convert.plan.job import plan_conversion
from codellama_convert.plan.options import Options
from codellama_convert.storage.watch import Watch
from tests.faults.dying import run_and_die
from tests.outputs import SHARD_BYTES, SHARDS, STAGING, StopAfter
from tests.witness.checkpoints import GQA, random_model, save_checkpoint

OPTIONS = Options(max_shard_bytes=SHARD_BYTES, workers=1)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("output_state")
    save_checkpoint(folder / "in", GQA, random_model(GQA, torch.bfloat16, 3), n_ranks=2)
    convert_checkpoint(folder / "in", folder / "out", options=OPTIONS)
    return folder


def plan(source: Path, target: Path, *more: str) -> tuple[int, str]:
    arguments = ["plan", "--input_dir", str(source), "--output_dir", str(target)]
    result = CliRunner().invoke(main, [*arguments, "--max_shard_size", SHARDS, *more])
    return result.exit_code, result.stdout


def described(source: Path, target: Path) -> dict[str, Any]:
    before = _tree(target.parent)
    status, printed = plan(source, target, "--json")
    assert _tree(target.parent) == before  # it writes nothing
    found: dict[str, Any] = json.loads(printed)
    # So that `plan && convert` begins nothing that would be refused.
    assert status == (0 if found["output_refusal"] is None else 1)
    return found


def _in_blocks(path: Path) -> int:
    """Tell what a file takes of a disk; a sparse one counts whole."""
    return -(-path.stat().st_size // 4096) * 4096


def _tree(folder: Path) -> list[tuple[Path, int]]:
    return [(path, path.lstat().st_mtime_ns) for path in sorted(folder.rglob("*"))]


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_a_folder_with_nothing_in_the_way(converted: Path, tmp_path: Path, *, there: bool) -> None:
    target = tmp_path / "out"
    if there:
        target.mkdir()
    found = described(converted / "in", target)
    assert found["output_dir"] == str(target)
    assert found["output_refusal"] is None
    assert found["staged_bytes"] == 0
    assert found["disk_missing_bytes"] == 0
    taken = sum(map(_in_blocks, (converted / "out").iterdir()))
    # The record is estimated, to the safe side: what lies beside the weights may have 32 kB in it.
    assert taken <= found["disk_needed_bytes"] <= taken + 60_000
    assert found["disk_needed_bytes"] % 4096 == 0
    _, printed = plan(converted / "in", target)
    assert f"output      {target}\n" in printed
    assert "refused" not in printed
    assert "resumed" not in printed


def test_a_folder_that_holds_something_is_named_with_what_to_do(
    converted: Path, tmp_path: Path
) -> None:
    """It exited with 0, and `plan && convert` went on to be refused."""
    (tmp_path / "config.json").write_bytes(b"mine")
    found = described(converted / "in", tmp_path)
    assert "not empty ('config.json')" in found["output_refusal"]
    assert "--overwrite" in found["output_refusal"]
    status, printed = plan(converted / "in", tmp_path)
    assert status == 1
    assert f"refused     {tmp_path}: the output folder is not empty" in printed


def test_staged_work_of_the_same_conversion_counts(converted: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(Interrupted):
        run(plan_conversion(converted / "in", OPTIONS), target, watch=Watch(stop=StopAfter(12)))
    staged = sorted((target / STAGING).glob("*.safetensors"))
    sizes = sum(path.stat().st_size for path in staged)
    assert 0 < len(staged) < 6
    new = described(converted / "in", tmp_path / "new")
    found = described(converted / "in", target)
    assert found["output_refusal"] is None
    assert found["staged_bytes"] == sizes
    assert found["disk_needed_bytes"] == new["disk_needed_bytes"] - sum(map(_in_blocks, staged))
    _, printed = plan(converted / "in", target)
    assert f"resumed     {sizes / 1000:.1f} kB left by an earlier run\n" in printed
    os.truncate(staged[0], 10)  # it will be written again
    assert described(converted / "in", target)["staged_bytes"] < sizes


def test_a_readme_beside_staged_work_is_not_in_the_way(converted: Path, tmp_path: Path) -> None:
    """`plan` said "refused", although the conversion resumes and leaves it alone."""
    target = tmp_path / "out"
    job = plan_conversion(converted / "in", OPTIONS)
    with pytest.raises(Interrupted):
        run(job, target, watch=Watch(stop=StopAfter(12)))
    (target / "README.md").write_bytes(b"mine")
    assert described(converted / "in", target)["output_refusal"] is None
    run(job, target)
    assert (target / "README.md").read_bytes() == b"mine"
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "README.md").write_bytes(b"mine")
    assert "README.md" in described(converted / "in", tmp_path / "new")["output_refusal"]


def test_staged_work_of_another_conversion_is_named_with_what_differs(
    converted: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    with pytest.raises(Interrupted):
        run(plan_conversion(converted / "in", OPTIONS), target, watch=Watch(stop=StopAfter(12)))
    status, printed = plan(converted / "in", target, "--dtype", "float32", "--json")
    found = json.loads(printed)
    assert status == 1
    for fact in ("another conversion", "'bfloat16'", "'float32'", "--restart"):
        assert fact in found["output_refusal"]
    assert found["staged_bytes"] == 0


@pytest.mark.skipif(os.name == "nt", reason="kills as POSIX has them")
@pytest.mark.parametrize(
    ("step", "times"), [("file moved", 1), ("file moved", 8), ("published", 1)]
)
def test_what_an_earlier_run_had_begun_to_publish_counts(
    converted: Path, tmp_path: Path, step: str, times: int
) -> None:
    target = tmp_path / "out"
    run_and_die(plan_conversion(converted / "in", OPTIONS), target, step, times=times)
    found = described(converted / "in", target)
    assert found["output_refusal"] is None
    shards = sum(path.stat().st_size for path in (converted / "out").glob("model-*"))
    assert found["staged_bytes"] >= shards > 200_000


@pytest.mark.parametrize("kind", ["file", "below a file", "staging is a file"])
def test_a_place_that_cannot_be_a_folder_is_named(
    converted: Path, tmp_path: Path, kind: str
) -> None:
    target = tmp_path / "out"
    if kind == "staging is a file":
        target.mkdir()
        (target / STAGING).touch()
    else:
        target.touch()
    found = described(converted / "in", target / "below" if kind == "below a file" else target)
    assert "is not a folder" in found["output_refusal"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root gives a folder away")
@pytest.mark.parametrize("given", ["folder", "journal"])
def test_staged_work_of_another_user_is_named_and_nothing_is_written(
    converted: Path, tmp_path: Path, given: str
) -> None:
    """To learn whose new files are, a file came and went in a folder that was only looked at."""
    target = tmp_path / "out"
    with pytest.raises(Interrupted):
        run(plan_conversion(converted / "in", OPTIONS), target, watch=Watch(stop=StopAfter(12)))
    assert described(converted / "in", target)["output_refusal"] is None
    path = target / STAGING if given == "folder" else target / STAGING / "journal.jsonl"
    os.chown(path, 65534, 65534)
    refusal = described(converted / "in", target)["output_refusal"]
    assert "belongs to another user (uid 65534)" in refusal
