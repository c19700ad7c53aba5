"""What the files hold, and what their file system can do."""

from __future__ import annotations

import random
from pathlib import Path

from codellama_convert.storage.blocks import BLOCK_BYTES
from codellama_convert.storage.input_file import InputFile

CONTENT = random.Random(3).randbytes(5 * BLOCK_BYTES + 1234)


def has_direct_io(folder: Path) -> bool:
    probe = folder / "probe"
    probe.write_bytes(bytes(BLOCK_BYTES))
    with InputFile(probe, io_mode="auto") as file:
        return file.direct
