"""`--dask` on a real cluster: the bytes of a plain run, whatever dies, and nothing left behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

import codellama_convert
from tests.cli.terminal.test_signals import hooked
from tests.clusters.cluster import (
    STEPS,
    Cluster,
    make_certificate,
    run_while_workers_die,
    started,
)
from tests.outputs import ROOT, STAGING, TOKEN, content, convert_whole, error_line, finish, loads
from tests.outputs import command as plain_command
from tests.witness.checkpoints import GQA, random_model, save_checkpoint

DIES = """
import sys
from tests.faults.dying import die_after
die_after("file journaled", 2)
from codellama_convert.__main__ import main
main()
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and what a plain conversion makes of it: several files."""
    folder = convert_whole(tmp_path_factory.mktemp("plain"))
    assert len(list((folder / "out").glob("model-*.safetensors"))) > 4
    return folder


def command(plain: Path, target: Path, address: str, *more: str) -> list[str]:
    return plain_command(plain / "in", target, "--dask", address, *more)


def whole(plain: Path, target: Path) -> bool:
    """Whether a folder holds what the plain run wrote, and nothing beside it."""
    found = content(target)
    return found == content(plain / "out") and {path.name for path in target.iterdir()} == set(
        found
    )


def test_workers_write_the_bytes_of_a_plain_run(
    plain: Path, tmp_path: Path, cluster: Cluster
) -> None:
    done = finish(command(plain, tmp_path / "out", cluster.address))
    assert done.returncode == 0, done.stderr
    assert whole(plain, tmp_path / "out")
    by_file = finish(command(plain, tmp_path / "again", str(cluster.scheduler_file), "--verify"))
    assert by_file.returncode == 0, by_file.stderr
    assert whole(plain, tmp_path / "again")
    path = next((tmp_path / "again").glob("model-*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert not whole(plain, tmp_path / "again"), "one byte is seen"


def test_a_batch_uses_the_cluster_too(tmp_path: Path, cluster: Cluster) -> None:
    for seed, name in enumerate(("CodeLlama-7b", "llama-2-7b")):
        save_checkpoint(tmp_path / "in" / name, GQA, random_model(GQA, torch.bfloat16, seed))
    batch = [sys.executable, "-m", "codellama_convert", "batch", str(tmp_path / "in")]
    assert finish([*batch, "--dask", cluster.address]).returncode == 0
    for name in ("CodeLlama-7b", "llama-2-7b"):
        where = (tmp_path / "in" / name, tmp_path / name)
        assert finish([*batch[:3], *map(str, where)]).returncode == 0
        assert content(tmp_path / name) == content(tmp_path / "in" / f"{name}-hf")


def test_tls_works_and_who_has_no_certificate_is_turned_away(
    plain: Path, tmp_path: Path, tls_cluster: Cluster
) -> None:
    """An open port would let anyone run code on every worker."""
    ours = (tls_cluster.folder / "cluster.crt", tls_cluster.folder / "cluster.key")
    arguments = command(plain, tmp_path / "out", tls_cluster.address)
    for pair in (None, make_certificate(tmp_path)):
        refused = finish(arguments, **({} if pair is None else tls(*pair)))
        assert refused.returncode == 1
        line = error_line(refused)
        assert line.startswith(f"Error: {tls_cluster.address}: no dask scheduler can be reached")
        assert "DASK_DISTRIBUTED__COMM__TLS__CA_FILE" in line
        assert not (tmp_path / "out").exists()
    done = finish(arguments, **tls(*ours))
    assert done.returncode == 0, done.stderr
    assert whole(plain, tmp_path / "out")


def tls(certificate: Path, key: Path) -> dict[str, str]:
    """Spell the environment in which dask uses a certificate."""
    name = "DASK_DISTRIBUTED__COMM__TLS__"
    return {
        f"{name}CA_FILE": str(certificate),
        f"{name}CLIENT__CERT": str(certificate),
        f"{name}CLIENT__KEY": str(key),
    }


@pytest.mark.parametrize(
    ("address", "fact"),
    [
        (
            "127.0.0.1:9",
            "no dask scheduler can be reached there: .*; see whether the scheduler runs",
        ),
        (
            "tls://127.0.0.1:9",
            "no dask scheduler can be reached there: TLS needs certificates, and",
        ),
        ("scheduler.json", "there is no scheduler file of this name"),
        (__file__, "is not the file of a dask scheduler"),
    ],
)
def test_an_address_where_nobody_answers_is_one_line(
    plain: Path, tmp_path: Path, address: str, fact: str
) -> None:
    soon = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "1s"}
    refused = finish(command(plain, tmp_path / "out", address), **soon)
    assert refused.returncode == 1
    assert re.match(f"Error: {re.escape(address)}: {fact}", error_line(refused))
    assert not (tmp_path / "out").exists()


def test_without_the_extra_the_error_says_how_to_get_it(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "distributed.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'distributed'\")\n", encoding="utf-8"
    )
    path = f"{tmp_path}:{ROOT}"
    lacking = finish(command(plain, tmp_path / "out", "127.0.0.1:9"), PYTHONPATH=path)
    assert lacking.returncode == 1
    assert "--dask needs dask.distributed" in error_line(lacking)
    assert "pip install" in error_line(lacking)
    assert finish(plain_command(plain / "in", tmp_path / "out"), PYTHONPATH=path).returncode == 0


def test_help_and_a_plain_run_import_no_engine(plain: Path, tmp_path: Path) -> None:
    for arguments in (["--help"], plain_command(plain / "in", tmp_path / "out")[3:]):
        code = (
            "import sys; from codellama_convert.cli.commands import main\n"
            f"try: main({arguments!r})\n"
            "except SystemExit as end: assert not end.code, end\n"
            "print(sorted({name.partition('.')[0] for name in sys.modules}\n"
            "    & {'dask', 'distributed', 'ray', 'tornado', 'mpi4py'}))\n"
        )
        done = finish([sys.executable, "-c", code])
        assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_worker_of_another_version_is_refused(
    plain: Path, tmp_path: Path, own_cluster: Cluster
) -> None:
    """It may write other bytes, and none of them can be told by looking at the file."""
    shutil.copytree(ROOT / "codellama_convert", tmp_path / "other" / "codellama_convert")
    init = tmp_path / "other" / "codellama_convert" / "__init__.py"
    version = codellama_convert.__version__
    init.write_text(init.read_text().replace(f'"{version}"', '"0.0.9"'), encoding="utf-8")
    arguments = command(plain, tmp_path / "out", own_cluster.address)
    with started(arguments) as run:
        assert run.stderr is not None
        waiting = run.stderr.readline()
        while waiting.startswith("note: max_position"):
            waiting = run.stderr.readline()
        assert "has no worker yet" in waiting
        own_cluster.start_worker(PYTHONPATH=str(tmp_path / "other"))
        late = run.communicate(timeout=60)[1]
    assert run.returncode == 1
    assert "version is '" in late.splitlines()[-1]
    assert not (tmp_path / "out").exists()
    refused = finish(arguments)
    assert refused.returncode == 1
    assert f"'0.0.9', and this is '{version}'" in error_line(refused)
    assert not (tmp_path / "out").exists()


def test_six_kills_of_workers_do_not_change_a_byte(
    plain: Path, tmp_path: Path, own_cluster: Cluster
) -> None:
    """Each is killed in the middle of a file: none of the six comes to the end of one."""
    arguments = command(plain, tmp_path / "out", own_cluster.address)
    run_while_workers_die(arguments, tmp_path / "out", own_cluster, (*STEPS, *STEPS))
    assert whole(plain, tmp_path / "out")


def test_two_workers_on_one_file_do_no_harm(
    plain: Path, tmp_path: Path, own_cluster: Cluster
) -> None:
    """A worker is taken for lost that was only frozen: it resumes a file that another one writes."""
    frozen = own_cluster.start_worker(FREEZE_AFTER="data saved")
    staging = tmp_path / "out" / STAGING
    with started(command(plain, tmp_path / "out", own_cluster.address)) as run:
        os.waitid(os.P_PID, frozen.pid, os.WSTOPPED | os.WNOWAIT)
        assert len(list(staging.glob("model-*.part"))) == 1
        own_cluster.give_up_workers()
        other = own_cluster.start_worker(FREEZE_AFTER="data saved")
        os.waitid(os.P_PID, other.pid, os.WSTOPPED | os.WNOWAIT)
        assert len(list(staging.glob("model-*.part"))) == 2
        for worker in (frozen, other):
            worker.send_signal(signal.SIGCONT)
        _, printed = run.communicate(timeout=60)
    assert run.returncode == 0, printed
    own_cluster.end_workers()
    assert whole(plain, tmp_path / "out")


def test_a_disk_that_is_full_for_a_worker_leaves_what_was_whole(
    plain: Path, tmp_path: Path, own_cluster: Cluster
) -> None:
    own_cluster.start_worker(MOST_BYTES="20000")
    target = tmp_path / "out"
    full = finish(command(plain, target, own_cluster.address))
    assert full.returncode == 1
    assert "cannot reserve" in error_line(full)
    assert not loads(target)
    assert {path.name for path in target.iterdir()} == {STAGING}
    (sealed,) = (target / STAGING).glob("model-*")
    assert not sealed.name.endswith(".part")
    assert not (target / STAGING / TOKEN).exists()
    inode = sealed.stat().st_ino
    assert finish(plain_command(plain / "in", target)).returncode == 0
    assert (target / sealed.name).stat().st_ino == inode
    assert whole(plain, target)


def test_a_source_that_changes_under_the_workers_is_refused(
    plain: Path, tmp_path: Path, own_cluster: Cluster
) -> None:
    """The one worker has planned and has written a file; what it opens for the next one is another."""
    source, target = tmp_path / "in", tmp_path / "out"
    shutil.copytree(plain / "in", source)
    save_checkpoint(tmp_path / "new", GQA, random_model(GQA, torch.bfloat16, 4), n_ranks=2)
    own_cluster.start_worker(REPLACE=f"{tmp_path / 'new'}:{source}")
    arguments = command(tmp_path, target, own_cluster.address)
    refused = finish(arguments)
    assert refused.returncode == 1
    assert "consolidated.00.pth: the file changed" in error_line(refused)
    assert not target.exists()
    assert finish(arguments).returncode == 0  # the same worker, which plans again
    assert finish(plain_command(source, tmp_path / "plain")).returncode == 0
    assert content(target) == content(tmp_path / "plain") != content(plain / "out")


def test_a_killed_coordinator_is_followed_by_the_same_command(
    plain: Path, tmp_path: Path, cluster: Cluster
) -> None:
    arguments = command(plain, tmp_path / "out", cluster.address)
    killed = finish([sys.executable, "-c", DIES, *arguments[3:]])
    assert killed.returncode == -signal.SIGKILL
    assert not loads(tmp_path / "out")
    arguments.remove("--quiet")
    again = finish(arguments)
    assert again.returncode == 0, again.stderr
    assert "of it kept from an earlier run" in again.stdout
    assert whole(plain, tmp_path / "out")


def test_ctrl_c_stops_the_workers_and_the_same_command_resumes(
    plain: Path, tmp_path: Path, cluster: Cluster
) -> None:
    arguments = command(plain, tmp_path / "out", cluster.address)
    stopped = hooked("staging.folder:OutputFolder:note_sealed", signal.SIGINT, arguments)
    assert stopped.returncode == 130, stopped.stderr
    assert "run the same command again to resume" in stopped.stderr.splitlines()[-1]
    assert "Traceback" not in stopped.stderr
    assert not loads(tmp_path / "out")
    cluster.wait_for_idle_workers()
    assert not list((tmp_path / "out" / STAGING).glob("*.part")), "workers clear up behind them"
    assert finish(arguments).returncode == 0
    assert whole(plain, tmp_path / "out")
