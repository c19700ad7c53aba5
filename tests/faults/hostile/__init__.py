"""Own the hostile corpus: one checkpoint folder a case, and the facts that the tool must name.

Each module holds what is forged in one place: `downloads`, `zips`, `zip_directories`, `pickles`,
`constructors`, `tensors`, `views`, `folder`, what is `asked` for, and the `writers` whose odd files
are good. `zip_bytes` and `rank_bytes` spell archives and pickles byte by byte with the standard
library, so that they can lie in any place; torch.save writes those where the real writer matters.
Nothing is borrowed from the package. `python -m tests.faults.hostile FOLDER` writes the whole
corpus out to look at.
"""

# Each registers its cases.
from tests.faults.hostile import (
    asked,
    constructors,
    downloads,
    folder,
    pickles,
    tensors,
    views,
    writers,
    zip_directories,
    zips,
)
from tests.faults.hostile.case import CASES, Case

__all__ = (
    "CASES", "Case", "asked", "constructors", "downloads", "folder", "pickles", "tensors", "views",
    "writers", "zip_directories", "zips",
)  # fmt: skip
