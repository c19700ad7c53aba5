"""Own what a test can leave behind in its process, for the tests that come after it there."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

from codellama_convert.staging import crash_points

_SET_BY_LIBRARIES = {"PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR"}


def process_state() -> dict[str, object]:
    """Return it by name; torch's own only where torch is imported."""
    os.umask(umask := os.umask(0o077))
    return {
        # Hashes: a failure prints them, and a value may be a secret.
        **{f"${k}": hash(v) for k, v in os.environ.items() if k not in _SET_BY_LIBRARIES},
        "working folder": Path.cwd(),
        "umask": umask,
        # SIGALRM is pytest-timeout's, which takes its handler away when a test has failed.
        **{
            f"handler of {number!r}": signal.getsignal(number)
            for number in signal.valid_signals() - {getattr(signal, "SIGALRM", None)}
        },
        "sys.path": tuple(sys.path),
        "level of logging": (logging.root.level, logging.root.manager.disable),
        "hook of the crash points": crash_points.hook,
        **torch_state(),
    }


def torch_state() -> dict[str, object]:
    """Return what is torch's, where it is imported."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    return {
        "torch's threads": torch.get_num_threads(),
        "torch's dtype": torch.get_default_dtype(),
        "torch's determinism": torch.are_deterministic_algorithms_enabled(),
    }


def begin_random_numbers() -> None:
    """Let torch draw the same for each test; in a new process it draws other numbers each time."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)
