"""Own the question whether a folder may receive a model: what it holds, and whether there is space."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from codellama_convert.errors import OutputError, shown
from codellama_convert.hugging_face.loader_names import (
    TEMPLATES_NAME,
    is_of_weights,
    is_taken_by_loaders,
)
from codellama_convert.staging.publish import is_replaced
from codellama_convert.staging.records import Journal
from codellama_convert.staging.staged import STAGING_NAME, dropped_bytes, kept_names
from codellama_convert.storage.folders import free_bytes, names_a_folder, names_in
from codellama_convert.storage.lock import LOCK_NAME
from codellama_convert.storage.sizes import format_size

ANOTHER_PLACE = "name another place with --output_dir"


def refuse_content(
    folder: Path,
    names: Collection[str],
    *,
    overwrite: bool,
    moved: Collection[str] = (),
    resumed: bool = False,
) -> None:
    """Refuse a folder for what it holds; nothing is touched.

    Args:
        folder: Where a model is to go.
        names: The files that the conversion may write.
        overwrite: Whether a model that lies there may be replaced.
        moved: What an earlier run of this conversion had moved there.
        resumed: Whether staged work is resumed: only what it would replace, or what would change
            how it loads, is in the way then.

    Raises:
        OutputError: With the name that is in the way.
    """
    content = sorted(names_in(folder).difference(moved, (STAGING_NAME, LOCK_NAME)))
    if resumed:
        content = [
            name for name in content if may_be_ours(name, names) or is_taken_by_loaders(name)
        ]
    if content and not overwrite:
        raise OutputError(
            f"the output folder is not empty ({content[0]!r}"
            + (f" and {len(content) - 1} more)" if len(content) > 1 else ")"),
            path=folder,
            hint="name another with --output_dir, or replace the model in it with --overwrite",
        )
    if not any(map(is_of_weights, names)):
        _refuse_a_model(folder, content)
    for name in content:
        _refuse_what_stays(folder, name, names)


@dataclass(frozen=True, slots=True)
class Space:
    """What an output needs of the disk and what there is.

    Attributes:
        needed: Bytes that are still to be written.
        free: Bytes that its file system has for them, what is staged and not wanted included; None
            where it does not say.
    """

    needed: int
    free: int | None

    @property
    def missing(self) -> int:
        """Bytes that are too few."""
        return 0 if self.free is None else max(0, self.needed - self.free)


def space_for(
    folder: Path, sizes: Mapping[str, int], resumed: Journal | None, moved: Collection[str] = ()
) -> Space:
    """Compare what is to be written with what is free; nothing is touched.

    Args:
        folder: Where it goes; it need not exist.
        sizes: Bytes of each file, by name.
        resumed: What of the staged work is kept: its files are there already.
        moved: Those of them that are in the folder itself.

    Returns:
        Both figures.

    Raises:
        OutputError: If they cannot be looked up.
    """
    staging = folder / STAGING_NAME
    kept = set() if resumed is None else kept_names(staging, resumed.sealed).union(moved)
    needed = sum(n_bytes for name, n_bytes in sizes.items() if name not in kept)
    free = free_bytes(folder)
    return Space(needed, None if free is None else free + dropped_bytes(staging, kept))


def refuse_small_disk(folder: Path, space: Space) -> None:
    """Refuse to begin what cannot come to its end; nothing is reserved.

    Raises:
        OutputError: With both figures.
    """
    if space.missing:
        raise OutputError(
            f"needs {_figure(space.needed)} and has {_figure(space.free or 0)} free",
            path=folder,
            hint=f"free some space, or {ANOTHER_PLACE}",
        )


def _figure(n_bytes: int) -> str:
    return f"{format_size(n_bytes)} ({n_bytes:,} bytes)"


def may_be_ours(name: str, names: Collection[str]) -> bool:
    """Tell whether a conversion that writes `names` may have written, or replaces, this one."""
    return name in names or is_replaced(name)


def _refuse_a_model(folder: Path, content: Collection[str]) -> None:
    """Refuse to leave weights beside the vocabulary of another model."""
    of_model = next(filter(is_of_weights, content), None)
    if of_model is not None:
        raise OutputError(
            f"holds a model ({of_model!r}), to which this tokenizer alone need not belong",
            path=folder,
            hint=f"convert model and tokenizer together, or {ANOTHER_PLACE}",
        )


def _refuse_what_stays(folder: Path, name: str, names: Collection[str]) -> None:
    """Refuse what is not replaced, and would change how the new model loads or be in its way."""
    what = None
    if not may_be_ours(name, names):
        what = "loaders take it beside the model" if is_taken_by_loaders(name) else None
    elif name != TEMPLATES_NAME and names_a_folder(folder / name):
        what = "a folder, where a file goes"
    if what is not None:
        raise OutputError(
            f"holds {shown(name)}: {what}, and --overwrite does not remove it",
            path=folder,
            hint=f"move it away, or {ANOTHER_PLACE}",
        )
