"""The way back by an executor: each rank is a request of its own, and the bytes are a plain run's."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from codellama_convert import plan_reverse, reverse_checkpoint
from codellama_convert.convert.jobs import FileRequest, write_file
from codellama_convert.convert.run import run
from codellama_convert.convert.write_pass import FileReport
from codellama_convert.plan.ranks.options import ReverseOptions
from tests.convert.executors.ranks import (
    N_RANKS,
    NAMES,
    OPTIONS,
    back,
    requests,
)
from tests.convert.executors.workers import (
    Counting,
    Through,
    spawned,
)
from tests.outputs import content, finish
from tests.witness.checkpoints import (
    GQA,
    STORAGES,
    Storage,
    random_model,
    save_checkpoint,
    sums_computed,
)


def test_each_rank_is_a_request_and_a_plain_run_has_none(converted, plain, tmp_path):
    """All ranks were one request: more machines did not make the way back faster."""
    progress: list[int] = []
    with Counting() as pool:
        report = reverse_checkpoint(
            converted / "out", tmp_path / "out", options=OPTIONS, executor=pool,
            progress=progress.append,
        )  # fmt: skip
    assert requests(pool) == [(name,) for name in NAMES]
    assert content(tmp_path / "out") == plain
    assert len(progress) == N_RANKS
    assert sum(progress) == report.tensor_bytes == 266_880


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("n_before", "n_after"), [(2, 4), (4, 2), (4, 1), (1, 2)])
def test_ranks_of_another_number_are_requests_too(tmp_path, storage: Storage, n_before, n_after):
    options = ReverseOptions(n_ranks=n_after, workers=1)
    save_checkpoint(tmp_path / "in", GQA, random_model(GQA, torch.bfloat16, 5), n_before,
                    storage=storage)  # fmt: skip
    reverse_checkpoint(tmp_path / "in", tmp_path / "plain", options=options)
    with Counting() as pool:
        reverse_checkpoint(tmp_path / "in", tmp_path / "out", options=options, executor=pool)
    assert requests(pool) == [(name,) for name in NAMES[:n_after]]
    assert content(tmp_path / "out") == content(tmp_path / "plain")


def test_ranks_without_stored_sums_are_read_as_often(tmp_path):
    with sums_computed(by_torch=False):
        save_checkpoint(tmp_path / "in", GQA, random_model(GQA), 2, storage="flat")
    back(tmp_path / "in", tmp_path / "plain")
    with Counting() as pool:
        back(tmp_path / "in", tmp_path / "out", pool)
    assert requests(pool) == [(name,) for name in NAMES]
    assert content(tmp_path / "out") == content(tmp_path / "plain")


# Elements of the model: 81,920 are split by rows, 51,200 by columns, 320 are copied.
def bytes_of_requests(n_requests: int) -> int:
    return 2 * (81_920 + n_requests * (51_200 + 320))


@pytest.mark.parametrize("n_ranks", [1, 2, 4])
def test_each_request_reads_its_rows_and_all_of_what_is_split_by_columns(
    converted, tmp_path, n_ranks
):
    """What the plan says of it is what was read, by the sums that the workers report."""
    options = ReverseOptions(n_ranks=n_ranks)
    read: list[int] = []

    def look(number: int, request: FileRequest) -> FileReport:
        report = write_file(request)
        pieces = [
            piece for sums in report.sealed[0].source for one in sums.values() for piece in one
        ]
        read.append(sum(end - start for _, start, end, _ in pieces))
        return report

    with Through(look) as pool:
        reverse_checkpoint(converted / "out", tmp_path / "out", options=options, executor=pool)
    assert len(read) == n_ranks
    assert sum(read) == bytes_of_requests(n_ranks)
    plan = plan_reverse(converted / "out", options)
    assert plan.weights.plan.read_in_all == bytes_of_requests(1) == 266_880
    assert plan.each_rank_alone().weights.plan.read_in_all == sum(read)


def test_columns_that_no_rank_of_a_request_gets_are_not_read(tmp_path):
    """Of four ranks that become two, each holds columns of one new rank only."""
    save_checkpoint(tmp_path / "in", GQA, random_model(GQA), 4)
    plan = plan_reverse(tmp_path / "in", ReverseOptions(n_ranks=2)).each_rank_alone()
    assert plan.weights.plan.read_in_all == 2 * (81_920 + 51_200 + 2 * 320)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="Linux counts what is read")
@pytest.mark.parametrize("storage", ["own", "flat"])
def test_the_coordinator_reads_no_weights_again(tmp_path, storage: Storage):
    """Of a storage that holds all tensors too, each pass is whole without another reading."""
    save_checkpoint(tmp_path / "in", GQA, random_model(GQA), 2, storage=storage)
    n_bytes = sum(path.stat().st_size for path in (tmp_path / "in").glob("*.pth"))
    assert n_bytes > 266_880
    with spawned(1) as pool:
        job = plan_reverse(tmp_path / "in", replace(OPTIONS, io_mode="buffered"))
        run(job, tmp_path / "warm", executor=pool)
        before = n_read()
        run(job, tmp_path / "out", executor=pool)
        assert n_read() - before < 60_000


def n_read() -> int:
    """Count what this process has read of any file."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(lines[0].removeprefix("rchar: "))


def test_odd_values_are_counted_once_whoever_has_them(tmp_path):
    """Each worker counts those of its own rank, and all of them have a copy of a norm."""
    model = random_model(GQA, torch.float32, 3)
    for name, n_odd in (("norm.weight", 1), ("layers.0.attention.wo.weight", 3),
                        ("layers.0.attention.wq.weight", 2)):  # fmt: skip
        flat = model[name].view(-1)
        flat[: 7 * n_odd : 7] = 1e-30
        flat[-n_odd:] = float("inf")
    save_checkpoint(tmp_path / "in", GQA, model, n_ranks=1)
    options = ReverseOptions(n_ranks=N_RANKS, dtype="float16")
    plain = reverse_checkpoint(tmp_path / "in", tmp_path / "plain", options=options)
    with Counting() as pool:
        ours = reverse_checkpoint(tmp_path / "in", tmp_path / "out", options=options, executor=pool)
    odd = {"layers.0.attention.wo.weight": 3, "layers.0.attention.wq.weight": 2, "norm.weight": 1}
    for report in (plain, ours):
        assert report.nonfinite == odd
        assert {name: report.became_zero[name] for name in odd} == odd
    assert content(tmp_path / "out") == content(tmp_path / "plain")
    with Counting() as pool:
        again = reverse_checkpoint(
            tmp_path / "in", tmp_path / "out", options=options, executor=pool
        )
    assert again.already_converted
    assert again.nonfinite == odd


def test_a_plan_for_a_cluster_says_what_is_read_in_all(converted):
    """Before anybody starts workers that read a source several times over."""
    n_bytes = sum(path.stat().st_size for path in (converted / "out").glob("model-*"))

    def shown(*more: str) -> str:
        source = ["reverse", str(converted / "out"), "--ranks", "4", "--plan", *more]
        done = finish([sys.executable, "-m", "codellama_convert", *source])
        assert done.returncode == 0, done.stderr
        return done.stdout

    size = f"{n_bytes / 1000:.1f} kB"
    line = f"\nreading     4 jobs read 576.0 kB in all; the source has {size}\n"
    assert line in shown("--dask", "nobody:1")
    assert "jobs" not in shown()
    for more, found in ((("--dask", "nobody:1"), (4, 576_000)), ((), (1, 266_880))):
        told = json.loads(shown("--json", *more))
        assert (told["jobs"], told["read_bytes"], told["source_bytes"]) == (*found, n_bytes)
