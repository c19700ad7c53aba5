"""The proof by the workers of an executor: the report of a plain one, whoever compares."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from codellama_convert import (
    CheckpointError,
    ConfigError,
    Job,
    Options,
    ReverseOptions,
    convert_checkpoint,
    plan_conversion,
    plan_reverse,
    reverse_checkpoint,
    verify_output,
)
from codellama_convert.verify.jobs import CompareRequest, SourceFile, compare_some
from tests.convert.executors.workers import spawned
from tests.outputs import content, flip_bit
from tests.witness.checkpoints import GQA, random_model, save_checkpoint

OPTIONS = Options(max_shard_bytes=60_000)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    state = random_model(GQA, torch.bfloat16, 3, special_values=True)
    save_checkpoint(folder / "in", GQA, state, n_ranks=2)
    convert_checkpoint(folder / "in", folder / "out", options=OPTIONS)
    return folder


@pytest.fixture(scope="module", params=["processes", "threads"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with spawned(2) if request.param == "processes" else ThreadPoolExecutor(2) as made:
        yield made


def damaged(converted: Path, target: Path) -> Path:
    """Change the last byte of two of the files."""
    target.mkdir()
    for name, bytes_ in content(converted / "out").items():
        (target / name).write_bytes(bytes_)
    for number in (2, 5):
        flip_bit(target / f"model-0000{number}-of-00006.safetensors", -1)
    return target


def test_a_right_output_and_a_wrong_one_get_the_report_of_a_plain_run(
    converted, executor, tmp_path
):
    job = plan_conversion(converted / "in", OPTIONS)
    wrong = damaged(converted, tmp_path / "out")
    for output, n_problems in ((converted / "out", 0), (wrong, 2)):
        progress: list[int] = []
        found = verify_output(output, job, executor=executor, progress=progress.append)
        assert found == verify_output(output, job)
        differing = [line for line in found.problems if "differs" in line]
        assert len(differing) == n_problems, found.problems
        assert sum(progress) == job.tensor_bytes


def test_the_weights_alone_are_compared_by_workers_too(converted, executor, tmp_path):
    job = plan_conversion(converted / "in", OPTIONS)
    wrong = damaged(converted, tmp_path / "out")
    for output in (converted / "out", wrong):
        found = verify_output(output, job, weights_only=True, executor=executor)
        assert found == verify_output(output, job, weights_only=True)
    assert len(found.problems) == 2


def test_ranks_are_compared_by_workers_too(converted, executor, tmp_path):
    options, ranks = ReverseOptions(n_ranks=2), tmp_path / "ranks"
    reverse_checkpoint(converted / "out", ranks, options=options)
    job = plan_reverse(converted / "out", options)
    assert verify_output(ranks, job, executor=executor) == verify_output(ranks, job)
    assert verify_output(ranks, job).problems == ()
    rank = ranks / "consolidated.01.pth"
    flip_bit(rank, rank.stat().st_size // 2)
    found = verify_output(ranks, job, executor=executor)
    assert found == verify_output(ranks, job)
    assert found.problems


def seen_elsewhere(job: Job, *, by: int) -> Job:
    """Give the job of another machine: the same files, with other device or inode numbers."""
    assert job.weights is not None
    ranks = tuple(
        replace(rank, inode=(rank.inode[0] + 7, rank.inode[1] + by)) for rank in job.ranks
    )
    checkpoint = replace(job.weights.checkpoint, ranks=ranks)
    return replace(job, weights=replace(job.weights, checkpoint=checkpoint))


def test_a_file_that_changed_since_is_refused_by_workers(converted, tmp_path):
    """Machines number file systems differently, and files alike."""

    def request(job: Job) -> CompareRequest:
        sources = tuple(
            SourceFile(
                rank.path, rank.n_bytes, rank.inode, rank.mtime_ns, rank.tensors, rank.storages, ()
            )
            for rank in job.ranks
        )
        return CompareRequest((), {}, sources, "auto", 1, None)

    job = plan_conversion(converted / "in", OPTIONS)
    assert compare_some(request(seen_elsewhere(job, by=0))) == ([], [{}, {}])
    with pytest.raises(CheckpointError, match="the file changed"):
        compare_some(request(seen_elsewhere(job, by=1)))


def test_what_is_no_executor_is_refused(converted):
    with pytest.raises(ConfigError, match="executor is 3"):
        verify_output(converted / "out", executor=3)
