"""Say on what a benchmark runs, and make its files cold; part of benchmark.py.

Only the standard library and click, as in benchmark_meter.py.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import click

SLACK_BYTES = 1 << 30  # free space that is left alone
_BLOCK_BYTES = 4096
_MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")


def make_cold(files: Iterable[Path]) -> None:
    """Write everything out, and let the page cache forget some files."""
    os.sync()
    for path in files:
        with suppress(OSError):
            fd = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def takes_direct_io(folder: Path) -> bool:
    """Tell whether a folder's file system takes O_DIRECT."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(bytes(_BLOCK_BYTES))
        file.flush()
        try:
            os.close(os.open(file.name, os.O_RDWR | os.O_DIRECT))
        except OSError as problem:
            if problem.errno == errno.EINVAL:
                return False
            raise
    return True


def file_system(folder: Path) -> str:
    """Name the type of a folder's file system, such as "ext4"."""
    place = str(folder.resolve())
    found = ("", "unknown")
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        left, _, right = line.partition(" - ")
        mount = left.split()[4]
        inside = place == mount or place.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(found[0]):
            found = (mount, right.split()[0])
    return found[1]


def proc_value(file: str, key: str) -> str:
    """Read the first value of a key from a file such as /proc/meminfo; "unknown" if it has none."""
    text = Path(file).read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(key)}\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else "unknown"


def require_space(folder: Path, n_bytes: float, what: str, *, in_memory: bool = False) -> None:
    """Refuse what does not fit on the disk, or into memory.

    Args:
        folder: Where it would be written.
        n_bytes: How much.
        what: For the message.
        in_memory: Whether the folder's files are to be in memory.

    Raises:
        click.ClickException: If it does not fit.
    """
    free, kind, instead = shutil.disk_usage(folder).free, "disk", "another disk with --work_dir"
    if in_memory:
        if file_system(folder) not in _MEMORY_FILE_SYSTEMS:
            raise click.ClickException(
                f"{folder} is on {file_system(folder)}, and its files are not in memory; name a "
                "folder of a tmpfs with --ram_dir, or other series with --series"
            )
        free = min(free, 1024 * int(proc_value("/proc/meminfo", "MemAvailable").split()[0]))
        kind, instead = "memory", "other series with --series"
    if n_bytes + SLACK_BYTES > free:
        raise click.ClickException(
            f"{what} takes {n_bytes / 1e9:.1f} GB of {kind} and 1 GB is left alone, but "
            f"{free / 1e9:.1f} GB are free; name {instead}, fewer --layers, or a subset with --only"
        )


def machine_facts(reference_python: Path | None) -> dict[str, object]:
    """Describe the machine and the versions, without names of machines and without paths.

    Args:
        reference_python: The interpreter of the reference converter.

    Returns:
        Plain values.
    """
    versions = {
        "codellama-convert": metadata.version("codellama-convert"),
        "Python": platform.python_version(),
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
    }
    for name in ("zlib-ng", "numpy", "torch"):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    if reference_python is not None:
        for name in ("transformers", "torch"):
            code = f"from importlib import metadata; print(metadata.version({name!r}))"
            versions[f"the reference's {name}"] = subprocess.check_output(  # noqa: S603
                [str(reference_python), "-c", code], text=True
            ).strip()
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": proc_value("/proc/cpuinfo", "model name"),
        "machine": platform.machine(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "versions": versions,
    }
