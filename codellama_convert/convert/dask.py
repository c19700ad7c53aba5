"""Own the connection to a dask cluster, whose workers may write the files.

Only here is the engine imported, and only when a cluster is named.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codellama_convert import __version__
from codellama_convert.errors import WorkerError, shown

if TYPE_CHECKING:
    from concurrent.futures import Executor

_SAME_VERSION = (
    "all workers need this version of codellama-convert; install it there, and restart them"
)
_TLS = (
    "for a scheduler with TLS, DASK_DISTRIBUTED__COMM__TLS__CA_FILE, __CLIENT__CERT and __CLIENT__KEY "
    "must name the same certificates as there; see examples/clusters"
)

_RUNNING = (
    "see whether the scheduler runs, and whether its port is open from here; "
    "the address of one with TLS begins with tls://"
)


@contextmanager
def dask_executor(
    place: str | None, tell: Callable[[str], None] | None = None
) -> Iterator[Executor | None]:
    """Connect to a scheduler for as long as its workers are needed.

    Args:
        place: Such as tls://node1:8786, or the path of a scheduler file; None for no cluster.
        tell: Called with what the user should know meanwhile.

    Yields:
        What has jobs done by the workers; None without a cluster.

    Raises:
        WorkerError: If dask is not installed, no scheduler answers, or a worker is of another version.
    """
    if place is None:
        yield None
        return
    client = _connect(place)
    try:
        _refuse_other_versions(client, tell)
        yield client.get_executor(pure=False)
    finally:
        client.close()


def _connect(place: str) -> Any:
    address = _address_in(Path(place)) if Path(place).is_file() else place
    if ":" not in address:
        raise WorkerError(
            "there is no scheduler file of this name, and an address has a port", path=place,
            hint="name the file that dask scheduler --scheduler-file wrote, or an address as in "
            "tls://node1:8786",
        )  # fmt: skip
    try:
        distributed: Any = import_module("distributed")  # an extra, and over a second
    except ModuleNotFoundError as problem:
        raise WorkerError(
            f"--dask needs dask.distributed: {problem}",
            hint="install it with pip install '.[dask]' in a clone of this project, or pip install distributed",
        ) from problem
    # What goes wrong is raised; dask's own lines say it once more, with tracebacks.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    import asyncio  # noqa: PLC0415 - with ssl it takes 3 MB, and every conversion comes by here

    try:
        # First without a client: one that fails tries again, and complains, when it is collected.
        asyncio.run(_reach(distributed, address))
        return distributed.Client(address, set_as_default=False)
    except (OSError, TypeError, ValueError) as problem:
        # TypeError is what dask raises for an encrypted address without certificates.
        cause = str(problem).partition("\n")[0] or type(problem).__name__
        if isinstance(problem, TypeError):
            cause = "TLS needs certificates, and none is set"
        raise WorkerError(
            f"no dask scheduler can be reached there: {cause}",
            path=place,
            hint=_TLS if address.startswith("tls:") else _RUNNING,
        ) from problem


def _address_in(scheduler_file: Path) -> str:
    try:
        return str(json.loads(scheduler_file.read_bytes())["address"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise WorkerError("is not the file of a dask scheduler", path=scheduler_file) from problem


async def _reach(distributed: Any, address: str) -> None:
    connection = distributed.Security().get_connection_args("client")
    comm = await distributed.core.connect(address, **connection)
    await comm.close()


def _refuse_other_versions(client: Any, tell: Callable[[str], None] | None) -> None:
    """Refuse workers of another version; those that come later are refused by their first job."""
    found = client.run(worker_version, on_error="return")
    if not found and tell is not None:
        tell("the dask cluster has no worker yet: waiting for one")
    for worker, version in found.items():
        if isinstance(version, ModuleNotFoundError):
            raise WorkerError(
                f"has no codellama-convert that fits: {version}", path=worker, hint=_SAME_VERSION
            )
        if version != __version__:
            raise WorkerError(
                f"is a worker with codellama-convert {shown(version)}, and this is {__version__!r}",
                path=worker,
                hint=_SAME_VERSION,
            )


def worker_version() -> str:
    """Return the version of the program that a worker has; it runs there."""
    return str(sys.modules["codellama_convert"].__version__)
