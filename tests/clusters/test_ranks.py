"""The way back on a real cluster: each rank a job, the bytes of a plain run, whatever dies."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.clusters.cluster import STEPS, Cluster, run_while_workers_die
from tests.outputs import content, convert_whole, finish


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of several files."""
    return convert_whole(tmp_path_factory.mktemp("plain"))


def back(plain: Path, target: Path, *more: str) -> list[str]:
    """Spell the command that makes four ranks of what the plain run wrote."""
    reverse = [sys.executable, "-m", "codellama_convert", "reverse", "--quiet", "--ranks", "4"]
    return [*reverse, str(plain / "out"), str(target), *more]


def test_each_rank_of_the_way_back_is_a_job(plain: Path, tmp_path: Path, cluster: Cluster) -> None:
    """All were one job of one worker, and the other workers had nothing to do."""
    assert finish(back(plain, tmp_path / "here")).returncode == 0
    before = cluster.n_done("write_file")
    done = finish(back(plain, tmp_path / "there", "--dask", cluster.address, "--verify"))
    assert done.returncode == 0, done.stderr
    assert cluster.n_done("write_file") - before == 4
    assert content(tmp_path / "there") == content(tmp_path / "here")


def test_kills_of_workers_do_not_change_a_byte_of_ranks(
    plain: Path, tmp_path: Path, own_cluster: Cluster
) -> None:
    assert finish(back(plain, tmp_path / "here")).returncode == 0
    arguments = back(plain, tmp_path / "there", "--dask", own_cluster.address)
    run_while_workers_die(arguments, tmp_path / "there", own_cluster, STEPS)
    assert content(tmp_path / "there") == content(tmp_path / "here")
