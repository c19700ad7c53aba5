"""Workers that see something else, or outlive their run: they write nothing, or it is not taken."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from codellama_convert import Interrupted, WorkerError, convert_checkpoint, plan_conversion
from codellama_convert.convert import jobs
from codellama_convert.convert.jobs import FileRequest, write_file
from codellama_convert.convert.run import run
from codellama_convert.convert.write_pass import FileReport
from codellama_convert.staging import crash_points
from codellama_convert.staging.run_token import put_token
from codellama_convert.storage.held_folder import HeldFolder
from codellama_convert.storage.signals import StopRequest
from codellama_convert.storage.watch import Watch
from tests.convert.executors.workers import N_FILES, OPTIONS, Through
from tests.outputs import STAGING, content
from tests.witness.checkpoints import GQA, random_model, save_checkpoint


def changed(**fields: Callable[[Any], Any]) -> Callable[[int, FileRequest], FileReport]:
    """Let a worker see a request in which some fields are others."""

    def work(number: int, request: FileRequest) -> FileReport:
        new = {name: change(getattr(request, name)) for name, change in fields.items()}
        return write_file(replace(request, **new))

    return work


@pytest.mark.parametrize(
    ("work", "named"),
    [
        (changed(fingerprint=lambda one: {**one, "version": "0.0.1"}), "version is '0.0.1' there"),
        (changed(options=lambda one: replace(one, dtype="float16")), "dtype is 'bfloat16' there"),
        (changed(names=lambda _: ("model-00009-of-00006.safetensors",)), "not written in one pass"),
        (changed(output_dir=lambda one: f"{one}/elsewhere"), "does not see the output folder"),
        (changed(token=lambda _: "0" * 32), "is over"),
    ],
    ids=["version", "options", "names", "mount", "run"],
)
def test_a_worker_that_sees_something_else_is_refused(converted, tmp_path, work, named):
    with Through(work) as wrong, pytest.raises(WorkerError, match=named):
        convert_checkpoint(converted / "in", tmp_path / "out", options=OPTIONS, executor=wrong)
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_another_for_the_worker_is_refused(converted, tmp_path):
    """Mounts differ between machines, or the files are being replaced."""
    source, other = tmp_path / "in", tmp_path / "other"
    shutil.copytree(converted / "in", source)
    save_checkpoint(other, GQA, random_model(GQA, torch.bfloat16, 4), n_ranks=2)

    def replace_it(number: int, request: FileRequest) -> FileReport:
        shutil.copytree(other, source, dirs_exist_ok=True)
        return write_file(request)

    with (
        Through(replace_it) as late,
        pytest.raises(WorkerError, match=r"consolidated\.00\.pth is not the same file"),
    ):
        convert_checkpoint(source, tmp_path / "out", options=OPTIONS, executor=late)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def orphan(converted, tmp_path) -> FileRequest:
    """The request of a file that is not whole, of a run that stopped."""
    job, stop = plan_conversion(converted / "in", OPTIONS), StopRequest()
    watch = Watch(lambda _: stop.ask(signal.SIGTERM), stop)
    with Through(lambda _, request: write_file(request)) as pool, pytest.raises(Interrupted):
        run(job, tmp_path / "out", watch=watch, executor=pool)
    return pool.asked[-1]


def test_a_worker_whose_run_is_over_writes_nothing(orphan):
    staging = Path(orphan.output_dir) / STAGING
    before = content(staging)
    with pytest.raises(WorkerError, match="is over"):
        write_file(orphan)
    with HeldFolder(staging) as held:
        token = put_token(held)
        with pytest.raises(WorkerError, match="is over"):
            write_file(orphan)  # another run's
        assert content(staging).keys() - before.keys() == {"run.token"}
        (part,) = write_file(replace(orphan, token=token)).parts
    assert content(staging).keys() - before.keys() == {"run.token", part}


def test_a_worker_that_is_done_after_its_run_leaves_nothing(orphan, monkeypatch):
    """Ctrl-C left its part: dask says of a job at work that it was cancelled, so nobody waited."""
    staging = Path(orphan.output_dir) / STAGING
    before = content(staging)
    with HeldFolder(staging) as held:
        request = replace(orphan, token=put_token(held))

        def end_the_run(step: str) -> None:
            if step == "header saved":
                (staging / "run.token").unlink()

        monkeypatch.setattr(crash_points, "hook", end_the_run)
        with pytest.raises(WorkerError, match="is over"):
            write_file(request)
    assert content(staging) == before


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_worker_stops_between_two_tiles_when_its_run_is_over(orphan, monkeypatch, how):
    monkeypatch.setattr(jobs, "_LOOK_SECONDS", 0.0)
    staging = Path(orphan.output_dir) / STAGING
    before = content(staging)
    with HeldFolder(staging) as held:
        request = replace(orphan, token=put_token(held))

        def end_the_run(step: str) -> None:
            if step == "space reserved":
                (staging / "run.token").unlink()
                if how == "replaced":
                    put_token(held)

        monkeypatch.setattr(crash_points, "hook", end_the_run)
        with pytest.raises(WorkerError, match="is over"):
            write_file(request)
    assert content(staging).keys() - before.keys() <= {"run.token"}


@pytest.mark.parametrize("n_looks", [2, 3], ids=["passes", "lasts"])
def test_a_token_that_cannot_be_opened_for_a_while_is_no_end_of_the_run(
    orphan, monkeypatch, n_looks
):
    """A worker without a free descriptor, or whose mount hiccups, ended the whole run as "over"."""
    monkeypatch.setattr(jobs, "_LOOK_SECONDS", 0.0)
    staging = Path(orphan.output_dir) / STAGING
    with HeldFolder(staging) as held:
        token = put_token(held)
        clock = jobs._RunClock(held, token)
        clock.check()
        (staging / "run.token").rename(staging / "away")
        (staging / "run.token").symlink_to("away")  # opening it is an OSError that is not ENOENT
        for _ in range(2):
            clock.look(1)
        if n_looks == 3:
            with pytest.raises(OSError, match="symbolic links"):
                clock.look(1)
        else:
            (staging / "away").replace(staging / "run.token")
            clock.look(1)
            clock.check()
        (staging / "run.token").unlink()
        with pytest.raises(WorkerError, match="is over"):
            clock.look(1)


def test_a_worker_that_cannot_read_the_token_is_no_loss(converted, tmp_path):
    """The coordinator asks another one."""

    def cannot_look_once(number: int, request: FileRequest) -> FileReport:
        staging = Path(request.output_dir) / STAGING
        if number != 2:
            return write_file(request)
        (staging / "run.token").rename(staging / "away")
        (staging / "run.token").symlink_to("away")
        try:
            return write_file(request)
        finally:
            (staging / "away").replace(staging / "run.token")

    with Through(cannot_look_once) as pool:
        convert_checkpoint(converted / "in", tmp_path / "out", options=OPTIONS, executor=pool)
    assert len(pool.asked) == N_FILES + 1
    assert content(tmp_path / "out") == content(converted / "out")


def test_a_new_token_takes_the_place_of_the_old_one_at_once(orphan):
    """It was removed first: a client of NFS may remember that there is none, and workers stopped."""
    staging = Path(orphan.output_dir) / STAGING
    with HeldFolder(staging) as held:
        put_token(held)
        before = content(staging)
        with (staging / "run.token").open() as old:
            token = put_token(held)
            assert old.read() != token
    assert (staging / "run.token").read_text() == token
    assert content(staging).keys() == before.keys()


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda part: part.unlink(), "No such file or directory"),
        (lambda part: part.write_bytes(b"torn"), "it has 4 bytes here"),
    ],
    ids=["absent", "torn"],
)
def test_a_part_that_the_coordinator_does_not_see_is_not_named(converted, tmp_path, change, fact):
    """A worker's word was enough: a file of another mount got its name and its record."""

    def elsewhere(number: int, request: FileRequest) -> FileReport:
        report = write_file(request)
        if number == 2:
            change(Path(request.output_dir) / STAGING / report.parts[0])
        return report

    with (
        Through(elsewhere) as pool,
        pytest.raises(
            WorkerError, match=rf"wrote model-.*\.part with \d+ bytes, but {fact}.*"
        ) as caught,
    ):
        convert_checkpoint(converted / "in", tmp_path / "out", options=OPTIONS, executor=pool)
    assert "the same file system" in str(caught.value)
    staged = [name for name in content(tmp_path / "out" / STAGING) if name.startswith("model-")]
    assert len(staged) == 1, "what was whole before is kept"
    convert_checkpoint(converted / "in", tmp_path / "out", options=OPTIONS)
    assert content(tmp_path / "out") == content(converted / "out")


def test_a_worker_with_an_output_folder_of_its_own_is_asked_for_its_file_system(orphan):
    """The commonest mistake: the folder is there, and is not shared. It was told that the run is over."""
    (Path(orphan.output_dir) / STAGING).rename(Path(orphan.output_dir) / "of another machine")
    with pytest.raises(WorkerError, match="another file system here; all workers need the same"):
        write_file(orphan)
