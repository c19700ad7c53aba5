"""Own the death of a dask worker in the middle of its work: what `dask worker --preload` is given.

DIE_AFTER in its environment names the step of the output protocol after which it is killed.
"""

from __future__ import annotations

import os

from tests.faults.dying import die_after


def dask_setup(worker: object) -> None:
    """Prepare the death of this process; dask calls it."""
    del worker
    die_after(os.environ["DIE_AFTER"])
