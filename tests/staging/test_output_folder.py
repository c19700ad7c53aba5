"""What lies in the way in an output folder: it is kept, replaced or refused, and never followed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
from pathlib import Path

import pytest
import torch

from codellama_convert.convert.run import RunOptions, convert_checkpoint, run
from codellama_convert.errors import Interrupted, OutputError
from codellama_convert.plan.job import Options, plan_conversion
from codellama_convert.storage.lock import FolderLock
from codellama_convert.storage.watch import StopRequest
from tests.fuzzers.fuzz import time_limit
from tests.outputs import (
    LOCK,
    SHARD_BYTES,
    STAGING,
    StopAfter,
    command,
    content,
    finish,
    stop_after_files,
)
from tests.witness.checkpoints import GQA, random_model, save_checkpoint

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


# --- links and other things in the place of our own files -----------------------------------------


def interrupt(
    converted: Path, target: Path, how: RunOptions | None = None, looks: int = 30
) -> None:
    """Leave some whole files staged."""
    with pytest.raises(Interrupted):
        run(plan_conversion(converted / "in", OPTIONS), target, how, stop=StopAfter(looks))
    assert list((target / STAGING).glob("model-*.safetensors"))


def everything(folder: Path) -> dict[str, bytes | str | None]:
    """Read a tree: links as where they lead, folders as None."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        else:
            found[name] = None if path.is_dir() else path.read_bytes()
    return found


@pytest.mark.parametrize("how", [RunOptions(), OVER, RunOptions(restart=True, overwrite=True)])
def test_a_staging_folder_that_is_a_link_is_refused_and_not_followed(
    converted: Path, tmp_path: Path, how: RunOptions
) -> None:
    """Even one that leads to our own staged work: what was begun there was deleted or written."""
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "out"
    interrupt(converted, elsewhere)
    (elsewhere / STAGING / "mine.part").write_bytes(b"mine")
    target.mkdir()
    (target / STAGING).symlink_to(elsewhere / STAGING)
    before = everything(tmp_path)
    with pytest.raises(OutputError, match=rf"{STAGING}: is not a folder"):
        convert(converted, target, how)
    assert everything(tmp_path) == before
    (target / STAGING).unlink()
    convert(converted, target, how)
    assert content(target) == content(converted / "out")


def test_a_file_in_the_place_of_the_staging_folder_is_refused(
    converted: Path, tmp_path: Path
) -> None:
    (tmp_path / STAGING).write_bytes(b"mine")
    with pytest.raises(OutputError, match=rf"{STAGING}: is not a folder"):
        convert(converted, tmp_path)
    assert everything(tmp_path) == {STAGING: b"mine"}


@pytest.mark.parametrize("leads_to", ["fifo", "/dev/zero", "journal"])
def test_a_journal_that_is_no_regular_file_is_refused_without_a_hang(
    converted: Path, tmp_path: Path, leads_to: str
) -> None:
    target, journal = tmp_path / "out", tmp_path / "out" / STAGING / "journal.jsonl"
    interrupt(converted, target)
    kept = journal.read_bytes()
    journal.rename(tmp_path / "journal")
    if leads_to == "fifo":
        os.mkfifo(journal)
    else:
        journal.symlink_to(tmp_path / leads_to)
    with time_limit(20), pytest.raises(OutputError, match=r"journal\.jsonl: cannot read"):
        convert(converted, target)
    assert (tmp_path / "journal").read_bytes() == kept
    convert(converted, target, RunOptions(restart=True))
    assert content(target) == content(converted / "out")
    assert (tmp_path / "journal").read_bytes() == kept


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing"])
def test_a_lock_that_is_a_link_is_refused_and_not_followed(
    converted: Path,
    tmp_path: Path,
    there: bool,  # noqa: FBT001 - a parameter of a test
) -> None:
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "out"
    if there:
        elsewhere.write_bytes(b"mine")
    target.mkdir()
    (target / LOCK).symlink_to(elsewhere)
    before = everything(tmp_path)
    with pytest.raises(OutputError, match="cannot create"):
        convert(converted, target)
    assert everything(tmp_path) == before
    (target / LOCK).unlink()
    (target / LOCK).touch()  # as a kill after the end leaves it
    convert(converted, target)
    assert content(target) == content(converted / "out")


def test_links_in_the_place_of_final_names_are_replaced_and_not_followed(
    converted: Path, tmp_path: Path
) -> None:
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    target.mkdir()
    for name in content(converted / "out"):
        (elsewhere / name).write_bytes(b"mine")
        (target / name).symlink_to(elsewhere / name)
    convert(converted, target, OVER)
    assert content(target) == content(converted / "out")
    assert not any(path.is_symlink() for path in target.iterdir())
    assert set(content(elsewhere).values()) == {b"mine"}


def test_an_output_folder_may_be_a_link_to_a_folder(converted: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with pytest.raises(OutputError, match="cannot create"):
        convert(converted, tmp_path / "link")
    assert not (tmp_path / "there").exists()
    (tmp_path / "there").mkdir()
    convert(converted, tmp_path / "link")
    assert content(tmp_path / "there") == content(converted / "out")
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002, 0o077])
def test_every_file_has_the_users_umask(converted: Path, tmp_path: Path, umask: int) -> None:
    """Not the input's permissions: a checkpoint for one user becomes a model for all, or not."""
    shutil.copytree(converted / "in", tmp_path / "in")
    for path in (tmp_path / "in").iterdir():
        path.chmod(0o600)
    before = os.umask(umask)
    try:
        convert(tmp_path, tmp_path / "out")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert modes == {0o666 & ~umask}


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
    with pytest.raises(OutputError, match="not empty"):
        convert(converted, target)
    assert content(target) == content(converted / "out")
    assert not (target / STAGING).exists()


# --- resuming -------------------------------------------------------------------------------------


def test_staged_work_of_another_version_is_refused_with_both(
    converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    interrupt(converted, target)
    monkeypatch.setattr("codellama_convert.plan.job.__version__", "999.0")
    with pytest.raises(
        OutputError, match=r"version is '0\.1\.0' there and '999\.0' now.*--restart"
    ):
        convert(converted, target)
    monkeypatch.undo()
    convert(converted, target)
    assert content(target) == content(converted / "out")


def test_staged_work_of_another_checkpoint_is_named_without_sums(
    converted: Path, tmp_path: Path
) -> None:
    """Lists of sizes and sums were printed, and the same options were asked for in vain."""
    target = tmp_path / "out"
    interrupt(converted, target)
    save_checkpoint(tmp_path / "in", GQA, random_model(GQA, torch.bfloat16, 4), n_ranks=4)
    with pytest.raises(OutputError) as caught:
        convert(tmp_path, target)
    assert str(caught.value) == (
        f"{target}: holds staged work of another checkpoint: consolidated.00.pth is not the same "
        "file; consolidated.01.pth is not the same file; consolidated.02.pth is read now only; "
        "consolidated.03.pth is read now only; name another place with --output_dir, or drop the "
        "staged work with --restart"
    )
    convert(converted, target)
    assert content(target) == content(converted / "out")


def test_overwriting_drops_staged_work_of_another_conversion(
    converted: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    shutil.copytree(converted / "out", target)
    other = Options(max_shard_bytes=90_000, workers=1, tile_bytes=8192)
    with pytest.raises(Interrupted):
        run(plan_conversion(converted / "in", other), target, OVER, stop=StopAfter(30))
    assert list((target / STAGING).glob("model-*-of-00004.safetensors"))
    assert content(target) == content(converted / "out")
    convert(converted, target, OVER)
    assert content(target) == content(converted / "out")
    assert not (target / STAGING).exists()


@pytest.mark.parametrize("how", ["link", "folder", "short"])
def test_a_staged_file_that_is_none_any_more_is_written_again(
    converted: Path, tmp_path: Path, how: str
) -> None:
    target = tmp_path / "out"
    interrupt(converted, target)
    (first, *_) = sorted((target / STAGING).glob("model-*.safetensors"))
    if how == "link":
        first.rename(tmp_path / "elsewhere")
        first.symlink_to(tmp_path / "elsewhere")
    elif how == "folder":
        first.unlink()
        first.mkdir()
    else:
        os.truncate(first, first.stat().st_size - 1)
    if how == "folder":
        with pytest.raises(OutputError, match="cannot rename"):
            convert(converted, target)
        first.rmdir()
    convert(converted, target)
    assert content(target) == content(converted / "out")
    assert not any(path.is_symlink() for path in target.iterdir())


def flip(journal: Path, key: str) -> None:
    """Change a digit of the first number behind a key."""
    text = bytearray(journal.read_bytes())
    at = text.index(b'"%s":{' % key.encode())
    at = text.index(b":", text.index(b":", at) + 1) + 1
    while not chr(text[at]).isdigit():
        at += 1
    text[at] = ord("1") if text[at] != ord("1") else ord("2")
    journal.write_bytes(text)


def test_a_journal_that_was_damaged_does_not_get_into_the_record(
    converted: Path, tmp_path: Path
) -> None:
    """One digit of a tensor's sum: the file is whole, and its record would say that it is not."""
    target = tmp_path / "out"
    interrupt(converted, target)
    journal = target / STAGING / "journal.jsonl"
    before = journal.read_bytes()
    flip(journal, "tensors")
    assert len(journal.read_bytes()) == len(before)
    assert all(json.loads(line) for line in journal.read_bytes().splitlines())
    convert(converted, target)
    assert content(target) == content(converted / "out")


# --- the lock -------------------------------------------------------------------------------------


def test_a_lock_that_was_removed_while_it_was_taken_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that held it ended between our open and our flock, and another one began."""
    import fcntl

    real = fcntl.flock

    def late(fd: int, how: int) -> None:
        (tmp_path / LOCK).unlink()
        (tmp_path / LOCK).touch()
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(OutputError, match="another conversion"):
        FolderLock(tmp_path).take()
    assert (tmp_path / LOCK).exists()  # the other run's
    monkeypatch.undo()
    lock = FolderLock(tmp_path)
    lock.take()
    with pytest.raises(OutputError, match="another conversion"):
        FolderLock(tmp_path).take()
    lock.release()
    assert not (tmp_path / LOCK).exists()


def test_a_stop_before_the_first_whole_file_leaves_what_can_go_on(
    converted: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    stop = StopRequest()
    stop.ask(signal.SIGTERM)
    with pytest.raises(Interrupted):
        run(plan_conversion(converted / "in", OPTIONS), target, stop=stop)
    staged = {path.name for path in (target / STAGING).iterdir()}
    assert "journal.jsonl" in staged
    assert not [name for name in staged if name.endswith((".part", ".safetensors"))]
    convert(converted, target)
    assert content(target) == content(converted / "out")


@pytest.mark.parametrize(
    ("place", "what"), [("/dev/null", "not a folder"), ("/dev/null/out", "Not a directory")]
)
def test_a_device_in_the_place_of_the_folder_is_one_line(
    converted: Path, place: str, what: str
) -> None:
    """As NUL and CON are on Windows, whatever folder they are said to lie in."""
    with pytest.raises(OutputError, match=rf"^{place}: .*{what}.*--output_dir"):
        convert(converted, Path(place))
