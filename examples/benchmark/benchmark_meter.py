"""Measure a whole process: time, memory and disk, as the kernel counts them; part of benchmark.py.

The kernel counts the memory of whoever starts a process into that process's own peak, so this
module, and what imports it, must stay small: only the standard library and click.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click

SAMPLE_SECONDS = 0.05
MAX_SAMPLES = 60
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
                seconds = round(time.perf_counter() - self._start, 2)
                self.samples.append((seconds, resident))
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
    name: str,
    command: Sequence[str],
    *,
    watched: Sequence[Path],
    env: Mapping[str, str],
    may_refuse: bool = False,
) -> Measurement:
    """Run a command and measure it.

    Args:
        name: Of the run, for messages.
        command: What to run.
        watched: Folders whose content is its output or temporary.
        env: Environment variables beside the own ones.
        may_refuse: Whether it may end with 1, as `plan` does where the disk is too small.

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
        if process.returncode not in ((0, 1) if may_refuse else (0,)):
            log.seek(0)
            last = log.read().decode(errors="replace").strip().splitlines()[-5:]
            raise click.ClickException("\n".join([f"{name}: exit {process.returncode}", *last]))
    left = disk_bytes(watched)
    peak = usage.ru_maxrss * 1024
    if peak <= status_bytes("self", "VmHWM"):  # ours, not its own: see the module's docstring
        peak = sampler.high_water
    return Measurement(
        seconds=round(seconds, 4),
        cpu_seconds=round(usage.ru_utime + usage.ru_stime, 4),
        peak_rss_bytes=peak,
        output_bytes=left,
        temporary_bytes=max(0, sampler.peak_disk - left),
        samples=thin(sampler.samples, MAX_SAMPLES),
    )
