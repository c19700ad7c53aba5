"""Real clusters for the tests: one without TLS and one with it, started when first asked for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.clusters.cluster import Cluster, make_certificate, running_cluster, tls_options

collect_ignore_glob = ["test_*.py"] if os.name == "nt" else []


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two workers that anyone may use who reaches the port."""
    with running_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(scope="session")
def _scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("own-cluster"), n_workers=0) as running:
        yield running


@pytest.fixture
def own_cluster(_scheduler: Cluster) -> Iterator[Cluster]:
    """A scheduler whose workers are those that the test starts."""
    yield _scheduler
    _scheduler.end_workers()


@pytest.fixture(scope="session")
def tls_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two workers that talk to those who have the certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("tls-cluster")
    with running_cluster(folder, tls=tls_options(*make_certificate(folder))) as running:
        yield running
