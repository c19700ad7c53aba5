"""Own a real dask cluster on the loopback: a scheduler and workers, each a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tests.outputs import ROOT, environment, finish, loads

# Whatever happens to the tests, no process outlives them for long: an idle scheduler ends, and a
# worker without one.
_IDLE_SECONDS = "600"
_END_SECONDS = 20
# Where a worker that is killed may be with its file: at every step that a job has.
STEPS = ("space reserved", "data saved", "header saved")


@dataclass
class Cluster:
    """A scheduler, its workers, and how to reach them."""

    folder: Path
    tls: tuple[str, ...]
    to_close: ExitStack
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @cached_property
    def address(self) -> str:
        """Where the scheduler listens, as soon as it does."""
        from distributed.utils import json_load_robust

        return str(json_load_robust(str(self.scheduler_file), timeout=60)["address"])

    @property
    def scheduler_file(self) -> Path:
        """The file in which the scheduler says where it listens."""
        return self.folder / "scheduler.json"

    def start_worker(self, **how: str) -> subprocess.Popen[bytes]:
        """Start one more worker; `how` goes into its environment, its troubles too."""
        name = f"worker-{len(self.workers)}"
        is_troubled = not {"DIE_AFTER", "FREEZE_AFTER", "MOST_BYTES", "REPLACE"}.isdisjoint(how)
        preload = ("--preload", "tests.clusters.troubled_worker") if is_troubled else ()
        worker = self._start(
            name, "dask_worker", "--no-nanny", "--nthreads", "1", "--name", name,
            "--local-directory", str(self.folder), "--death-timeout", _IDLE_SECONDS, *preload, **how,
        )  # fmt: skip
        self.workers.append(worker)
        return worker

    def end_workers(self) -> None:
        """End all of them, frozen ones too; the scheduler stays."""
        for worker in self.workers:
            end(worker)
        self.workers = []

    def wait_for_workers(self, number: int) -> None:
        """Wait until so many workers are there."""
        code = "import sys; from distributed import Client; Client(sys.argv[1]).wait_for_workers(int(sys.argv[2]), 60)"
        finish([sys.executable, "-c", code, self.address, str(number)]).check_returncode()

    def give_up_workers(self) -> None:
        """Let the scheduler take all workers for lost, as it does when one is not heard of."""
        code = (
            "import sys; from distributed import Client\n"
            "async def give_up(dask_scheduler):\n"
            "    for address in list(dask_scheduler.workers):\n"
            "        await dask_scheduler.remove_worker(address, stimulus_id='test')\n"
            "Client(sys.argv[1]).run_on_scheduler(give_up)\n"
        )
        finish([sys.executable, "-c", code, self.address]).check_returncode()

    def wait_for_idle_workers(self) -> None:
        """Wait until each worker has time for another job; a worker has one thread."""
        code = (
            "import sys; from distributed import Client; client = Client(sys.argv[1])\n"
            "for worker in client.scheduler_info()['workers']:\n"
            "    client.submit(abs, 1, workers=[worker], pure=False).result(60)\n"
        )
        finish([sys.executable, "-c", code, self.address]).check_returncode()

    def n_done(self, function: str) -> int:
        """Count the jobs of a function that were done, as the scheduler has noted it."""
        code = (
            "import sys; from distributed import Client\n"
            "def done(dask_scheduler):\n"
            "    return [key for key, _, state, *_ in dask_scheduler.transition_log if state == 'memory']\n"
            "keys = Client(sys.argv[1]).run_on_scheduler(done)\n"
            "print(len({key for key in keys if key.startswith(sys.argv[2] + '-')}))\n"
        )
        done = finish([sys.executable, "-c", code, self.address, function])
        done.check_returncode()
        return int(done.stdout)

    def start_scheduler(self) -> None:
        """Start the scheduler, on a port that is free."""
        protocol = "tls" if self.tls else "tcp"
        self._start(
            "scheduler", "dask_scheduler", "--port", "0", "--protocol", protocol,
            "--idle-timeout", _IDLE_SECONDS,
        )  # fmt: skip

    def _start(self, name: str, program: str, *more: str, **how: str) -> subprocess.Popen[bytes]:
        log = self.to_close.enter_context((self.folder / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            [
                sys.executable, "-m", f"distributed.cli.{program}", "--no-dashboard", "--host",
                "127.0.0.1", "--scheduler-file", str(self.scheduler_file), *self.tls, *more,
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
            env=environment(**how),
        )  # fmt: skip
        self.to_close.callback(end, process)
        return process


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that was started here, and wait for it."""
    process.terminate()
    if os.name == "posix":
        process.send_signal(signal.SIGCONT)  # a stopped one waits for that first
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def running_cluster(
    folder: Path, *, n_workers: int = 2, tls: tuple[str, ...] = ()
) -> Iterator[Cluster]:
    """Run a cluster; the workers come as soon as the scheduler has said where it is."""
    with ExitStack() as to_close:
        cluster = Cluster(folder, tls, to_close)
        cluster.start_scheduler()
        for _ in range(n_workers):
            cluster.start_worker()
        yield cluster


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Make a key, and a certificate that vouches for itself; examples/clusters shows this command."""
    certificate, key = folder / "cluster.crt", folder / "cluster.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-noenc", "-days", "365",
         "-subj", "/CN=cluster", "-keyout", key, "-out", certificate],
        check=True, capture_output=True, cwd=ROOT,
    )  # fmt: skip
    return certificate, key


def tls_options(certificate: Path, key: Path) -> tuple[str, ...]:
    """Spell the options by which a scheduler, a worker and codellama-convert take a certificate."""
    names = ("--tls-ca-file", "--tls-cert", "--tls-key")
    return tuple(
        word
        for name, path in zip(names, (certificate, certificate, key), strict=True)
        for word in (name, str(path))
    )


@contextmanager
def started(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Start a command, and end it with the test."""
    with subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True) as run:
        try:
            yield run
        finally:
            run.kill()


def run_while_workers_die(
    arguments: list[str], output: Path, cluster: Cluster, steps: Sequence[str]
) -> None:
    """Run a command whose workers are killed at these steps, until one comes that lives."""
    dying = [cluster.start_worker(DIE_AFTER=step) for step in steps]
    with started(arguments) as run:
        assert [worker.wait(60) for worker in dying] == len(steps) * [-signal.SIGKILL]
        assert run.poll() is None
        assert not loads(output)
        cluster.start_worker()
        _, printed = run.communicate(timeout=60)
    assert run.returncode == 0, printed
