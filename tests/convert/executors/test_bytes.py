"""Files as jobs of an executor: the bytes and the record of a plain run, whoever writes them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest
import torch

from codellama_convert import ConfigError, Options, convert_checkpoint, reverse_checkpoint
from codellama_convert.plan.ranks.options import ReverseOptions
from tests.convert.executors.workers import N_FILES, OPTIONS, spawned
from tests.outputs import content
from tests.witness.checkpoints import GQA, random_model, save_checkpoint


def processes() -> Executor:
    return spawned(2)


def threads() -> Executor:
    return ThreadPoolExecutor(3)


@pytest.fixture(scope="module", params=[processes, threads], ids=["processes", "threads"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with request.param() as made:
        yield made


def test_an_executor_writes_what_a_plain_run_writes(converted, executor, tmp_path):
    progress: list[int] = []
    report = convert_checkpoint(
        converted / "in", tmp_path / "out", options=OPTIONS, executor=executor,
        progress=progress.append,
    )  # fmt: skip
    assert content(tmp_path / "out") == content(converted / "out")
    assert len([name for name in report.files if name.startswith("model-")]) == N_FILES
    assert len(progress) == N_FILES
    assert sum(progress) == report.tensor_bytes
    # A folder of another model, by the same way, is another.
    save_checkpoint(tmp_path / "in", GQA, random_model(GQA, torch.bfloat16, 4), n_ranks=2)
    convert_checkpoint(tmp_path / "in", tmp_path / "other", options=OPTIONS, executor=executor)
    other, plain = content(tmp_path / "other"), content(converted / "out")
    assert other.keys() == plain.keys()
    assert other["conversion.json"] != plain["conversion.json"]


def test_a_cast_in_an_executor_counts_what_a_plain_run_counts(converted, executor, tmp_path):
    options = Options(max_shard_bytes=60_000, dtype="float16")
    for name, one in (("plain", None), ("workers", executor)):
        convert_checkpoint(converted / "in", tmp_path / name, options=options, executor=one)
    assert content(tmp_path / "plain") == content(tmp_path / "workers")


def test_ranks_are_written_by_an_executor_too(converted, executor, tmp_path):
    for name, one in (("plain", None), ("workers", executor)):
        reverse_checkpoint(
            converted / "out", tmp_path / name, options=ReverseOptions(n_ranks=2), executor=one
        )
    assert content(tmp_path / "plain") == content(tmp_path / "workers")
    assert "consolidated.01.pth" in content(tmp_path / "workers")


def test_relative_paths_are_those_of_the_caller(converted, tmp_path, monkeypatch):
    """A worker may have been started anywhere."""
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        (tmp_path / "in").symlink_to(converted / "in")
        convert_checkpoint("in", "out", options=OPTIONS, executor=pool)
    assert content(tmp_path / "out") == content(converted / "out")


def test_what_is_no_executor_is_refused(converted, tmp_path):
    with pytest.raises(ConfigError, match="executor is 3"):
        convert_checkpoint(converted / "in", tmp_path / "out", executor=3)
    assert not (tmp_path / "out").exists()
