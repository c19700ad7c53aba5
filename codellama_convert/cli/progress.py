"""Own the progress bar; know nothing of what progresses."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from codellama_convert.errors import one_line


@contextmanager
def progress_bar(
    what: str, total: int | None, *, hidden: bool
) -> Iterator[Callable[[int], None] | None]:
    """Show bytes, rate and time left on a terminal's stderr; nothing when piped, or once done.

    Args:
        what: What progresses, such as "converting".
        total: Bytes in the end; None where that is not known.
        hidden: Whether to show nothing.

    Yields:
        To be called with the bytes of each step, from any thread; None where nothing is shown.
    """
    # A closed stderr (2>&-) is None.
    if hidden or sys.stderr is None or not sys.stderr.isatty():
        yield None
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
