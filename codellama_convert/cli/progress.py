"""Own how long work is shown: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from codellama_convert.cli.printing import say
from codellama_convert.cli.words import progress_line
from codellama_convert.errors import one_line

_INTERVAL_SECONDS = 30.0


class ProgressLines:
    """Lines on stderr that say how far the work is, for logs; the first after one interval."""

    def __init__(
        self,
        what: str,
        total: int | None,
        *,
        interval_seconds: float = _INTERVAL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._total = total
        self._interval = interval_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._n_done = 0
        self._started = clock()
        self._due = self._started + interval_seconds

    def advance(self, n_bytes: int) -> None:
        """Count the bytes of a step, from any thread; say so if it is time."""
        with self._lock:
            self._n_done += n_bytes
            now = self._clock()
            if now < self._due:
                return
            self._due = now + self._interval
            line = progress_line(self._what, self._n_done, self._total, now - self._started)
        with suppress(OSError):  # a log that is full must not end the work
            say(line, err=True)


@contextmanager
def progress_bar(
    what: str,
    total: int | None,
    *,
    hidden: bool,
    interval_seconds: float = _INTERVAL_SECONDS,
) -> Iterator[Callable[[int], None] | None]:
    """Show bytes, rate and time left on stderr: a bar that is gone once done, or lines.

    Args:
        what: What progresses, such as "converting".
        total: Bytes in the end; None where that is not known.
        hidden: Whether to show nothing.
        interval_seconds: How often there is a line, where stderr is not a terminal.

    Yields:
        To be called with the bytes of each step, from any thread; None where nothing is shown.
    """
    # A closed stderr (2>&-) is None.
    if hidden or sys.stderr is None:
        yield None
        return
    if not sys.stderr.isatty():
        yield ProgressLines(what, total, interval_seconds=interval_seconds).advance
        return
    from tqdm import tqdm  # noqa: PLC0415 - --help is instant

    tqdm.monitor_interval = 0  # its own thread may not start, and says so over two lines
    lock = threading.Lock()
    with tqdm(
        total=total, unit="B", unit_scale=True, desc=one_line(what), file=sys.stderr,
        leave=False, dynamic_ncols=True, miniters=1,
    ) as bar:  # fmt: skip

        def advance(n_bytes: int) -> None:
            with lock:  # several threads report, and the bar adds without one
                bar.update(n_bytes)

        yield advance
