"""Own the places where a test may stop the program. Without a hook, a no-op.

Each step of the output protocol calls `step`. Only code that runs in this process can set the hook:
nothing in the environment of a conversion can stop it.
"""

from __future__ import annotations

from collections.abc import Callable

hook: Callable[[str], None] | None = None


def step(name: str) -> None:
    """Pass one step of the output protocol.

    Args:
        name: What was just done.
    """
    if hook is not None:
        hook(name)
