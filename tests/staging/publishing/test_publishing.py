"""A run that finds itself publishing: it takes back what was moved, and checks it like any other."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from codellama_convert.convert.run import RunOptions, run
from codellama_convert.errors import Interrupted, OutputError
from codellama_convert.plan.job import Job, plan_conversion
from codellama_convert.staging.record_values import FileSum
from codellama_convert.storage.signals import StopRequest
from codellama_convert.storage.watch import Watch
from tests.outputs import STAGING, StopAfter, content, journal_of, loads, put_journal
from tests.staging.publishing.stopped import (
    N_MOVES,
    OPTIONS,
    OVER,
    SHARD,
    convert,
    flip,
    stop_in_publish,
)

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills as POSIX has them")

INDEX = "model.safetensors.index.json"


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [SHARD, "config.json", "tokenizer.json", INDEX])
@pytest.mark.parametrize("damage", [flip, Path.unlink], ids=["flipped", "gone"])
def test_a_staged_file_that_was_damaged_while_publishing_is_made_again(
    converted: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    """It went out as it was, with exit status 0; one that was gone was an error without end."""
    target = tmp_path / "out"
    stop_in_publish(converted, target, "publishing journaled")
    damage(target / STAGING / name)
    convert(converted, target)
    assert content(target) == content(converted / "out")
    assert not (target / STAGING).exists()


def test_a_file_of_an_older_model_is_not_taken_for_one_that_was_moved(
    converted: Path, tmp_path: Path
) -> None:
    """A staged file was lost; the older model's of that name counted as moved, and was mixed in."""
    target = tmp_path / "out"
    shutil.copytree(converted / "old", target)
    stop_in_publish(converted, target, "publishing journaled", how=OVER)
    (target / STAGING / SHARD).unlink()
    assert content(target) == content(converted / "old")
    convert(converted, target, OVER)
    assert content(target) == content(converted / "out")


@pytest.mark.parametrize("name", ["model-00001-of-00006.safetensors", "config.json"])
def test_a_moved_file_that_was_damaged_is_refused_by_name_and_replaced_when_told_to(
    converted: Path, tmp_path: Path, name: str
) -> None:
    """It is not ours any more: somebody may have put it there."""
    target = tmp_path / "out"
    stop_in_publish(converted, target, "file moved", times=N_MOVES - 1)
    flip(target / name)
    before = content(target)
    with pytest.raises(OutputError, match=f"not empty .*{name}.*--overwrite"):
        convert(converted, target)
    assert content(target) == before
    assert not loads(target)
    convert(converted, target, OVER)
    assert content(target) == content(converted / "out")


def test_an_index_that_was_damaged_goes_before_the_shards_that_it_leads_to(
    converted: Path, tmp_path: Path
) -> None:
    """Everything was published; the index is not as recorded, and its shards are taken back."""
    target = tmp_path / "out"
    stop_in_publish(converted, target, "published")
    flip(target / INDEX)
    with pytest.raises(OutputError, match=f"not empty .*{INDEX}"):
        convert(converted, target)
    stop_in_publish(converted, target, "file moved back", how=OVER)
    assert not loads(target)
    convert(converted, target, OVER)
    assert content(target) == content(converted / "out")


def test_a_model_that_was_removed_is_made_again(converted: Path, tmp_path: Path) -> None:
    """A kill at the very end leaves a journal; it must not vouch for what is no longer there."""
    target = tmp_path / "out"
    stop_in_publish(converted, target, "published")
    assert loads(target)
    for name in content(target):
        (target / name).unlink()
    convert(converted, target)
    assert content(target) == content(converted / "out")


# --- the options of this run ----------------------------------------------------------------------


def test_the_options_of_the_resuming_run_are_honoured(converted: Path, tmp_path: Path) -> None:
    """--verify, --sha256 and --model_card were passed over in silence."""
    checked: list[set[str]] = []

    def check(_job: Job, staged: Path, _watch: Watch) -> None:
        checked.append(set(content(staged)) - {"journal.jsonl"})

    target = tmp_path / "out"
    stop_in_publish(converted, target, "file moved", times=5)
    how = RunOptions(sha256=True, model_card=True, check_staged=check)
    convert(converted, target, how)
    assert checked == [{*content(converted / "out"), "README.md"}]
    assert set(content(target)) == {*content(converted / "out"), "README.md"}
    record = json.loads((target / "conversion.json").read_text())
    assert all(len(entry["sha256"]) == 64 for entry in record["files"].values())


def test_a_card_that_was_moved_and_not_asked_for_again_is_not_published(
    converted: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    stop_in_publish(converted, target, "file moved", how=RunOptions(model_card=True))
    assert set(content(target)) == {"README.md"}
    convert(converted, target)
    assert content(target) == content(converted / "out")


def test_a_failed_check_keeps_an_earlier_run_from_being_published(
    converted: Path, tmp_path: Path
) -> None:
    def refuse(_job: Job, staged: Path, _watch: Watch) -> None:
        raise OutputError("differs", path=staged)

    target = tmp_path / "out"
    stop_in_publish(converted, target, "published")
    with pytest.raises(OutputError, match="differs"):
        convert(converted, target, RunOptions(check_staged=refuse))
    assert not loads(target)
    convert(converted, target)
    assert content(target) == content(converted / "out")


def test_reading_what_was_moved_stops_at_a_signal(converted: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    stop_in_publish(converted, target, "published")
    before = content(target)
    stop = StopRequest()
    stop.ask(signal.SIGTERM)
    with pytest.raises(Interrupted):
        run(plan_conversion(converted / "in", OPTIONS), target, watch=Watch(stop=stop))
    assert content(target).items() <= before.items()
    convert(converted, target)
    assert content(target) == content(converted / "out")


# --- kills ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("older", [False, True], ids=["in a new folder", "over an older model"])
def test_a_kill_while_taking_back_leaves_nothing_that_loads(
    converted: Path, tmp_path: Path, *, older: bool
) -> None:
    how = RunOptions(overwrite=older)
    for times in (
        1,
        2,
        8,
        N_MOVES,
    ):  # of all the steps, `python -m tests.faults.sweep kills` tries each
        target = tmp_path / str(times)
        if older:
            shutil.copytree(converted / "old", target)
        stop_in_publish(converted, target, "published", how=how)
        assert loads(target)
        stop_in_publish(converted, target, "file moved back", how=how, times=times)
        assert not loads(target)
        if times == 8:  # and once more, among the rest
            stop_in_publish(converted, target, "file moved back", how=how, times=3)
            assert not loads(target)
        convert(converted, target, how)
        assert content(target) == content(converted / "out")
        shutil.rmtree(target)


# --- the record is input --------------------------------------------------------------------------


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name", ["../../mine", "..", "mine", "/", "a\0b", "model-00001-of-00007.safetensors"]
)
def test_names_in_a_journal_that_the_conversion_does_not_write_are_refused(
    converted: Path, tmp_path: Path, name: str
) -> None:
    """Someone may have written it who may write here, and not where we may."""
    target = tmp_path / "out"
    with pytest.raises(Interrupted):
        run(plan_conversion(converted / "in", OPTIONS), target, watch=Watch(stop=StopAfter(30)))
    (tmp_path / "mine").write_bytes(b"mine")
    (target / "mine").write_bytes(b"mine")
    journal = journal_of(target)
    assert journal is not None
    journal.publishing = {name: FileSum(4, 0x69A8D393)}  # of b"mine"
    put_journal(target, journal)
    before = everything(tmp_path)
    with pytest.raises(OutputError, match=r"does not write.*--restart"):
        convert(converted, target)
    assert everything(tmp_path) == before
    with pytest.raises(OutputError, match=r"not empty .*mine"):
        convert(converted, target, RunOptions(restart=True))
    assert everything(tmp_path) == before
    (target / "mine").unlink()
    convert(converted, target, RunOptions(restart=True))
    assert content(target) == content(converted / "out")
    assert (tmp_path / "mine").read_bytes() == b"mine"


def test_a_link_in_the_place_of_a_moved_file_is_not_ours(converted: Path, tmp_path: Path) -> None:
    """It has the recorded bytes, and leads to somebody's file."""
    target = tmp_path / "out"
    stop_in_publish(converted, target, "file moved", times=N_MOVES - 1)
    (target / SHARD).rename(tmp_path / "mine")
    (target / SHARD).symlink_to(tmp_path / "mine")
    with pytest.raises(OutputError, match=f"not empty .*{SHARD}"):
        convert(converted, target)
    assert (target / SHARD).is_symlink()
    convert(converted, target, OVER)
    assert content(target) == content(converted / "out")
    assert (tmp_path / "mine").read_bytes() == (converted / "out" / SHARD).read_bytes()


def test_publishing_goes_on_after_a_kill_and_drops_what_it_does_not_know(
    converted: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    stop_in_publish(converted, target, "file moved")
    (target / STAGING / "notes.txt").write_bytes(b"mine")
    (target / STAGING / "folder").mkdir()
    (target / STAGING / "folder" / "x").write_bytes(b"mine")
    convert(converted, target)
    assert content(target) == content(converted / "out")
    assert not (target / STAGING).exists()
