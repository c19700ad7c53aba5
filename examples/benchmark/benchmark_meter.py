"""Measure a whole process: time, memory and disk, as the kernel counts them; part of benchmark.py.

The kernel counts the memory of whoever starts a process into that process's own peak, so this
module, and what imports it, must stay small: only the standard library and click.
"""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import click

SAMPLE_SECONDS = 0.05
MAX_SAMPLES = 100
_BLOCK_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one process took.

    Attributes:
        seconds: Wall time, from before its start to after its end.
        cpu_seconds: User and system time of it and its children.
        peak_rss_bytes: Peak resident memory of the whole process.
        output_bytes: What it left in the watched folders, as the disk counts it.
        temporary_bytes: How much more than that the watched folders ever held.
        samples: (seconds since the start, resident bytes).
    """

    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    output_bytes: int
    temporary_bytes: int
    samples: tuple[tuple[float, int], ...]


def status_bytes(pid: int | str, key: str) -> int:
    """Read a memory figure of a process from /proc; 0 if it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return 0


def family(pid: int) -> Iterator[int]:
    """List a process and the processes that its main thread started."""
    yield pid
    with suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        for child in children.split():
            yield from family(int(child))


def disk_bytes(folders: Sequence[Path]) -> int:
    """Count what the files in some folders take of the disk.

    A file counts with its blocks, but with no more than its size in whole blocks: a file system's
    own maps of a file, which come and go while it is written, are not what is asked for.
    """
    files: dict[tuple[int, int], int] = {}
    for folder in folders:
        for root, _, names in os.walk(folder):
            for name in names:
                with suppress(OSError):  # renamed or removed meanwhile
                    status = Path(root, name).lstat()
                    size = -(-status.st_size // _BLOCK_BYTES) * _BLOCK_BYTES
                    key = (status.st_dev, status.st_ino)  # a renamed file may be listed twice
                    files[key] = min(512 * status.st_blocks, size)
    return sum(files.values())


class Sampler:
    """Watches a process and some folders from a thread of its own.

    Attributes:
        samples: (seconds since the start, resident bytes).
        high_water: Peak resident memory of any of its processes, as far as seen.
        peak_disk: Most bytes that the folders held, as far as seen.
    """

    def __init__(self, pid: int, watched: Sequence[Path], start: float) -> None:
        """Begin to watch.

        Args:
            pid: The process.
            watched: Folders.
            start: When it was started.
        """
        self.samples: list[tuple[float, int]] = []
        self.high_water = 0
        self.peak_disk = 0
        self._pid, self._watched, self._start = pid, watched, start
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while True:
            pids = list(family(self._pid))
            resident = sum(status_bytes(pid, "VmRSS") for pid in pids)
            if resident:
                self.samples.append((time.perf_counter() - self._start, resident))
            high_water = max(status_bytes(pid, "VmHWM") for pid in pids)
            self.high_water = max(self.high_water, high_water)
            self.peak_disk = max(self.peak_disk, disk_bytes(self._watched))
            if self._ended.wait(SAMPLE_SECONDS):
                return

    def end(self) -> None:
        """Stop watching."""
        self._ended.set()
        self._thread.join()


def thin(samples: Sequence[tuple[float, int]], n_most: int) -> tuple[tuple[float, int], ...]:
    """Keep the highest of neighbouring samples, so that no peak is lost.

    Args:
        samples: In order of time.
        n_most: How many to keep at most.

    Returns:
        The samples that are kept.
    """
    step = -(-len(samples) // n_most) if samples else 1
    groups = (samples[i : i + step] for i in range(0, len(samples), step))
    return tuple(max(group, key=lambda sample: sample[1]) for group in groups)


def measure(
    name: str, command: Sequence[str], *, watched: Sequence[Path], env: Mapping[str, str]
) -> Measurement:
    """Run a command and measure it.

    Args:
        name: Of the run, for messages.
        command: What to run.
        watched: Folders whose content is its output or temporary.
        env: Environment variables beside the own ones.

    Returns:
        What it took.

    Raises:
        click.ClickException: If it fails.
    """
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(  # noqa: S603 - the commands are this benchmark's own
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **env}
        )
        sampler = Sampler(process.pid, watched, start)
        try:
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            sampler.end()
        if process.returncode:
            log.seek(0)
            last = log.read().decode(errors="replace").strip().splitlines()[-5:]
            raise click.ClickException("\n".join([f"{name}: exit {process.returncode}", *last]))
    left = disk_bytes(watched)
    peak = usage.ru_maxrss * 1024
    if peak <= status_bytes("self", "VmHWM"):  # ours, not its own: see the module's docstring
        peak = sampler.high_water
    return Measurement(
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_rss_bytes=peak,
        output_bytes=left,
        temporary_bytes=max(0, sampler.peak_disk - left),
        samples=thin(sampler.samples, MAX_SAMPLES),
    )


def drop_caches(files: Sequence[Path]) -> bool:
    """Write everything out and let the page cache go.

    Args:
        files: Their pages are let go in any case.

    Returns:
        Whether the kernel let go of all others too, which needs root.
    """
    os.sync()
    for path in files:
        with suppress(OSError):
            fd = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n", encoding="ascii")
    except OSError:
        return False
    return True


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


def machine_facts(folder: Path, reference_python: Path | None) -> dict[str, object]:
    """Describe the machine, without its name and without paths.

    Args:
        folder: Where the benchmark works.
        reference_python: The interpreter of the reference converter.

    Returns:
        Plain values.
    """
    versions = {name: metadata.version(name) for name in ("codellama-convert", "numpy", "torch")}
    if reference_python is not None:
        for name in ("transformers", "torch"):
            code = f"from importlib import metadata; print(metadata.version({name!r}))"
            versions[f"reference {name}"] = subprocess.check_output(  # noqa: S603
                [str(reference_python), "-c", code], text=True
            ).strip()
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "file_system": file_system(folder),
        "direct_io": takes_direct_io(folder),
        "versions": versions,
    }
