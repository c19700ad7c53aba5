"""Own what this process has used of the machine; know nothing of what it did."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_rss_bytes() -> int | None:
    """Tell the most memory that this process has held at once.

    Linux's VmHWM starts at zero with the program; ru_maxrss would still hold the peak of the shell
    or script that started it.

    Returns:
        Bytes of resident memory, or None where the platform does not tell.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    peak = None
    if sys.platform != "win32":
        import resource  # noqa: PLC0415 - the module does not exist on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if sys.platform != "darwin":  # which alone counts bytes
            peak *= 1024
    return peak
