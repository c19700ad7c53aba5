"""Own how long work is watched: what hears of its progress, and what asks it to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from codellama_convert.errors import Interrupted
from codellama_convert.storage.signals import StopRequest

# Called with the bytes of each piece of work that is done, from several threads.
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Watch:
    """What watches long work, and is called between two pieces of it; safe for threads.

    Attributes:
        progress: Called with the bytes of each piece; what it raises ends the work.
        stop: Whether to stop.
        hint: What the user can do after a stop.
    """

    progress: Progress | None = None
    stop: StopRequest = field(default_factory=StopRequest)
    hint: str | None = None

    def advance(self, n_bytes: int) -> None:
        """Report a piece of the work.

        Args:
            n_bytes: How much was done.

        Raises:
            Interrupted: If somebody asked to stop.
        """
        if self.progress is not None:
            self.progress(n_bytes)
        self.check()

    def check(self) -> None:
        """Look whether to continue, where nothing counts as progress.

        Raises:
            Interrupted: If somebody asked to stop.
        """
        if self.stop.is_set():
            raise Interrupted("Interrupted", signal_number=self.stop.signal_number, hint=self.hint)
