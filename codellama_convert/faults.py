"""Own the places where a test may stop the program; know nothing else. Without the hook, a no-op.

Each step of the output protocol calls `step`. With CODELLAMA_CONVERT_KILL_AT=N in the environment
the N-th call kills the process as a power cut would: at once, nothing flushed, nothing cleaned up.
"""

from __future__ import annotations

import os
import signal

KILL_AT = "CODELLAMA_CONVERT_KILL_AT"
_COUNT = "CODELLAMA_CONVERT_STEPS_SEEN"


def step(name: str) -> None:
    """Pass one step of the output protocol.

    Args:
        name: What was just done; for who reads the caller, nothing here asks for it.
    """
    del name
    wanted = os.environ.get(KILL_AT)
    if wanted is None:
        return
    seen = int(os.environ.get(_COUNT, "0")) + 1
    os.environ[_COUNT] = str(seen)
    if seen == int(wanted):
        os.kill(os.getpid(), signal.SIGKILL)
