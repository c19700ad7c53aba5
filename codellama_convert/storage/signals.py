"""Own the signals that ask to stop: an exit at once, or a request that work looks at."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# SIGHUP does not exist on Windows.
STOP_SIGNALS: tuple[str, ...] = ("SIGINT", "SIGTERM", "SIGHUP")

# `timeout` signals its child and then the child's whole group: twice, and meant once.
_ONE_WISH_SECONDS = 0.25

# After a request the run stops between two pieces of work, which takes milliseconds, or the saving
# of one file. A call of the system that does not come back (a network mount that hangs, a lock) is
# repeated by Python after each signal, and would be waited for without end.
_PATIENCE_SECONDS = 10.0
_OUT_OF_PATIENCE = (
    b"Error: Interrupted while the system did not answer; run the same command again\n"
)


def _stop_signals() -> tuple[signal.Signals, ...]:
    """List those that this platform has, and that whoever started us does not want ignored.

    nohup ignores SIGHUP, and a shell SIGINT for what its scripts put into the background.
    """
    known = (signal.Signals[name] for name in STOP_SIGNALS if hasattr(signal, name))
    return tuple(number for number in known if signal.getsignal(number) != signal.SIG_IGN)


def exit_on_signals() -> None:
    """Leave at once, without a traceback, with the status that shells give: 128 + the signal."""
    for number in _stop_signals():
        signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    del frame
    if os.isatty(2):
        os.write(2, b"\n")  # a progress bar may stand there without an end of line
    # os._exit: an import that was interrupted must not run half-made clean-up code.
    os._exit(128 + number)


def _leave_unanswered(number: int) -> None:
    with suppress(OSError):
        os.write(2, _OUT_OF_PATIENCE)
    _leave(number, None)


class StopRequest:
    """Whether somebody asked to stop; safe for threads.

    Attributes:
        signal_number: The signal that asked; 0 before one did.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self.signal_number = 0

    def ask(self, number: int) -> None:
        """Ask to stop because of a signal."""
        self.signal_number = number
        self._event.set()

    def is_set(self) -> bool:
        """Return whether somebody asked."""
        return self._event.is_set()


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first signal into a request and a later one into an exit at once.

    A request that nobody answers becomes an exit too.

    Yields:
        The request, to be looked at between tiles.
    """
    request = StopRequest()
    asked_at = 0.0
    timers: list[threading.Timer] = []

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked_at
        if not request.is_set():
            request.ask(number)
            asked_at = time.monotonic()
            timer = threading.Timer(_PATIENCE_SECONDS, _leave_unanswered, [number])
            timer.daemon = True
            timers.append(timer)
            with suppress(RuntimeError):  # no thread to be had: a second signal still leaves
                timer.start()
        elif time.monotonic() - asked_at > _ONE_WISH_SECONDS:
            _leave(number, frame)

    before = {number: signal.signal(number, ask) for number in _stop_signals()}
    try:
        yield request
    finally:
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
