"""Workers die, double and fail: whole or nothing, the same bytes in the end, and nothing left behind."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from codellama_convert import (
    CheckpointError,
    Interrupted,
    OutputError,
    WorkerError,
    convert_checkpoint,
    plan_conversion,
)
from codellama_convert.convert.jobs import FileRequest, write_file
from codellama_convert.convert.run import run
from codellama_convert.convert.write_pass import FileReport
from codellama_convert.storage.executors import done_by
from codellama_convert.storage.signals import StopRequest
from codellama_convert.storage.watch import Watch
from tests.convert.executors.workers import (
    N_FILES,
    OPTIONS,
    LostError,
    Through,
    allow_little_in_the_third,
    always_lack_descriptors,
    die_in_the_third,
    lack_descriptors,
    lack_memory,
    left_over,
    lose_the_first,
    spawned,
)
from tests.faults.at_once import AtOnce
from tests.faults.dying import die_after
from tests.outputs import LOCK, STAGING, content, flip_bit, journal_of, loads
from tests.witness.checkpoints import GQA, random_model, save_checkpoint


def convert(source: Path, target: Path, how: Any) -> Any:
    return convert_checkpoint(source, target, options=OPTIONS, executor=how)


def sealed(target: Path) -> list[str]:
    """Name the files that are kept, which is all that is staged beside the journal."""
    journal = journal_of(target)
    assert journal is not None
    names = sorted(journal.sealed)
    assert [name for name in left_over(target) if name.startswith("model-")] == names
    assert "run.token" not in left_over(target)
    return names


def assert_resumes(converted: Path, target: Path, how: Any = None) -> None:
    """Run the same command again, and see that it keeps what is whole."""
    journal = journal_of(target)
    assert journal is not None
    kept = {name: (target / STAGING / name).stat().st_ino for name in journal.sealed}
    assert kept
    report = convert(converted / "in", target, how)
    assert content(target) == content(converted / "out")
    assert {name: (target / name).stat().st_ino for name in kept} == kept
    assert 0 < report.kept_bytes < report.tensor_bytes
    assert not (target / STAGING).exists()


def test_a_pool_whose_worker_is_killed_can_be_resumed(converted, tmp_path):
    target = tmp_path / "out"
    with (
        Through(die_in_the_third, spawned(1)) as dying,
        pytest.raises(WorkerError, match="a worker died") as caught,
    ):
        convert(converted / "in", target, dying)
    assert "run the same command again to resume" in str(caught.value)
    assert caught.value.can_resume
    assert not loads(target)
    assert len(sealed(target)) == 2
    assert_resumes(converted, target)


def test_workers_that_are_lost_six_times_cost_their_files_only(converted, tmp_path):
    """An engine gives the job to another worker; what the dead one left goes away."""
    target, seen = tmp_path / "out", []

    def look(number: int, request: FileRequest) -> FileReport:
        report = lose_the_first(6)(number, request)
        seen.append([name for name in left_over(target) if name.startswith(request.names[0])])
        return report

    with Through(look) as losing:
        convert(converted / "in", target, losing)
    assert content(target) == content(converted / "out")
    assert not (target / STAGING).exists()
    asked = [one.names for one in losing.asked]
    assert len(asked) == 12
    assert all(asked.count(names) == 2 for names in asked)
    assert [len(parts) for parts in seen] == [2] * 6, "a dead worker's part and the report's"


def test_a_job_that_is_lost_three_times_ends_the_run(converted, tmp_path):
    def fail(number: int, request: FileRequest) -> FileReport:
        if request.names == ("model-00002-of-00006.safetensors",):
            raise LostError("killed")
        return write_file(request)

    with (
        Through(fail) as failing,
        pytest.raises(WorkerError, match=r"work on model-00002.* failed 3 times.*killed"),
    ):
        convert(converted / "in", tmp_path / "out", failing)
    sealed(tmp_path / "out")
    assert_resumes(converted, tmp_path / "out")


def test_what_is_done_at_once_is_taken_in_the_order_of_the_requests():
    """A set had it in any order, so that no two runs made the same calls."""
    names = [f"file {number}" for number in range(40)]
    found = done_by(AtOnce(), str.upper, dict(zip(names, names, strict=True)), Watch())
    assert [name for name, _ in found] == names


def test_two_workers_on_one_file_do_no_harm(converted, tmp_path):
    reports: list[FileReport] = []

    def twice(number: int, request: FileRequest) -> FileReport:
        reports.extend([write_file(request), write_file(request)])
        return reports[-1]

    with Through(twice) as doubling:
        convert(converted / "in", tmp_path / "out", doubling)
    for one, other in zip(reports[::2], reports[1::2], strict=True):
        assert one.sealed == other.sealed
        assert one.parts != other.parts
    assert content(tmp_path / "out") == content(converted / "out")
    assert not (tmp_path / "out" / STAGING).exists()


def test_a_bit_that_the_source_loses_is_found_by_who_joins_the_sums(converted, tmp_path):
    """One storage is read by several workers; none of them reads all of it."""
    source = tmp_path / "in"
    save_checkpoint(source, GQA, random_model(GQA, torch.bfloat16, 3), n_ranks=2, storage="flat")
    with ThreadPoolExecutor(2) as pool:
        convert(source, tmp_path / "right", pool)
        right, plain = content(tmp_path / "right"), content(converted / "out")
        weights = [name for name in plain if name.startswith("model-")]
        assert [right[name] for name in weights] == [plain[name] for name in weights]
        rank = source / "consolidated.00.pth"
        flip_bit(rank, rank.stat().st_size // 2)
        with pytest.raises(CheckpointError, match="CRC-32 mismatch"):
            convert(source, tmp_path / "out", pool)
    assert not (tmp_path / "out").exists()


def test_a_report_of_something_else_is_refused(converted, tmp_path):
    """It says that all bytes of the source were read for one file: those of others are counted twice."""
    reports: list[FileReport] = []

    def tell_too_much(number: int, request: FileRequest) -> FileReport:
        reports.append(write_file(request))
        (first,) = reports[0].sealed
        (own,) = reports[-1].sealed
        both = [{**a, **b} for a, b in zip(first.source, own.source, strict=True)]
        return replace(reports[-1], sealed=(replace(own, source=both),))

    with (
        Through(tell_too_much) as telling,
        pytest.raises(WorkerError, match="is not what the plan says"),
    ):
        convert(converted / "in", tmp_path / "out", telling)
    assert len(sealed(tmp_path / "out")) == 1
    assert_resumes(converted, tmp_path / "out")


def test_a_disk_that_is_full_for_a_worker_can_be_resumed(converted, tmp_path):
    with (
        Through(allow_little_in_the_third, spawned(1)) as poor,
        pytest.raises(OutputError, match=r"cannot reserve .* File too large"),
    ):
        convert(converted / "in", tmp_path / "out", poor)
    assert len(sealed(tmp_path / "out")) == 2
    assert_resumes(converted, tmp_path / "out")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="says how much memory it has")
@pytest.mark.parametrize("lack", [lack_descriptors, lack_memory], ids=["descriptors", "memory"])
def test_what_a_worker_lacks_for_a_moment_is_no_end_of_the_run(converted, tmp_path, lack):
    """One machine that had too many files open, or whose mount was stale, ended the run for all."""
    with Through(lack, spawned(1)) as poor:
        convert(converted / "in", tmp_path / "out", poor)
    assert len(poor.asked) == N_FILES + 2
    assert content(tmp_path / "out") == content(converted / "out")


def test_what_every_worker_lacks_is_said_as_it_is(converted, tmp_path):
    with (
        Through(always_lack_descriptors, spawned(1)) as poor,
        pytest.raises(OutputError, match="Too many open files") as caught,
    ):
        convert(converted / "in", tmp_path / "out", poor)
    assert caught.value.path == tmp_path / "out"
    asked = [one.names for one in poor.asked]
    assert max(map(asked.count, asked)) == 3
    assert not (tmp_path / "out").exists()


def test_a_request_to_stop_keeps_what_is_whole(converted, tmp_path):
    job, stop = plan_conversion(converted / "in", OPTIONS), StopRequest()
    with ThreadPoolExecutor(2) as pool:
        watch = Watch(lambda _: stop.ask(signal.SIGTERM), stop)
        with pytest.raises(Interrupted):
            run(job, tmp_path / "out", watch=watch, executor=pool)
        assert sealed(tmp_path / "out")
        assert_resumes(converted, tmp_path / "out", pool)


def test_a_key_that_interrupts_python_keeps_what_is_whole(converted, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(KeyboardInterrupt):
            convert_checkpoint(
                converted / "in", tmp_path / "out", options=OPTIONS, executor=pool,
                progress=lambda _: signal.raise_signal(signal.SIGINT),
            )  # fmt: skip
        assert sealed(tmp_path / "out")
        assert_resumes(converted, tmp_path / "out", pool)


@pytest.mark.skipif(os.name == "nt", reason="fork, and SIGKILL as POSIX has it")
@pytest.mark.parametrize("again", ["plain", "workers"])
def test_a_coordinator_that_is_killed_is_resumed(converted, tmp_path, again):
    """Files are sealed in any order; what its workers left goes away with their run's word."""
    target = tmp_path / "out"
    pid = os.fork()
    if pid == 0:
        try:
            die_after("file journaled", times=2)
            with ThreadPoolExecutor(2) as pool:
                convert(converted / "in", target, pool)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert not loads(target)
    assert {"run.token", "journal.jsonl"} <= set(left_over(target))
    (target / LOCK).unlink()
    with ThreadPoolExecutor(2) as pool:
        assert_resumes(converted, target, pool if again == "workers" else None)
