"""The clusters that the other tests use are what they are taken for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.clusters.cluster import Cluster, make_certificate
from tests.outputs import finish

# Has two workers multiply, each in its own process. Clients that fail live on in their process, and
# one that is collected while the next one starts waits for ever, so each gets a process here.
PROBE = """
import operator, os, sys
from distributed import Client, Security
address, ca, certificate, key = sys.argv[1:]
security = Security(tls_ca_file=ca, tls_client_cert=certificate, tls_client_key=key) if ca else None
client = Client(address, security=security, timeout=5)
client.wait_for_workers(2, timeout=60)
executor = client.get_executor(pure=False)
print([executor.submit(operator.mul, 6, n).result(30) for n in (7, 9)])
print(len({os.getpid(), *client.run(os.getpid).values()}))
"""


def probe(
    address: str, ca: Path | None = None, pair: tuple[Path, Path] | None = None
) -> subprocess.CompletedProcess[str]:
    words = map(str, (ca, *pair) if ca and pair else ("", "", ""))
    return finish([sys.executable, "-c", PROBE, address, *words])


def test_a_cluster_is_two_other_processes(cluster: Cluster) -> None:
    assert cluster.address.startswith("tcp://127.0.0.1:")
    done = probe(cluster.address)
    assert (done.returncode, done.stdout) == (0, "[42, 54]\n3\n"), done.stderr


def test_a_cluster_with_tls_works_for_those_who_have_the_certificate(
    tls_cluster: Cluster, tmp_path: Path
) -> None:
    assert tls_cluster.address.startswith("tls://127.0.0.1:")
    certificate, key = tls_cluster.folder / "cluster.crt", tls_cluster.folder / "cluster.key"
    done = probe(tls_cluster.address, certificate, (certificate, key))
    assert (done.returncode, done.stdout) == (0, "[42, 54]\n3\n"), done.stderr
    others = make_certificate(tmp_path)
    for address, ca, pair in (
        (tls_cluster.address, None, None),
        (tls_cluster.address.replace("tls:", "tcp:"), None, None),
        (tls_cluster.address, others[0], others),
        (tls_cluster.address, certificate, others),
    ):
        done = probe(address, ca, pair)
        assert (done.returncode, done.stdout) == (1, ""), (address, ca, pair)
