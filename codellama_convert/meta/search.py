"""Own the search for the folder of a checkpoint, below the one that was given."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from codellama_convert.choices import Flavor
from codellama_convert.errors import CheckpointError, listed, one_line
from codellama_convert.meta.places import current_snapshot, model_name
from codellama_convert.model.folder_name import read_folder_name
from codellama_convert.model.recognise import wanted_flavor
from codellama_convert.storage.blocks import first_line

_MAX_DEPTH = 5
_MAX_ENTRIES = 100_000  # of all folders together; a second or so


@dataclass(frozen=True, slots=True)
class Listing:
    """A folder and what it holds.

    Attributes:
        path: The folder.
        names: Everything in it, sorted.
        files: Those of the names that are no folders, nor links to some.
        folders: The others.
    """

    path: Path
    names: tuple[str, ...]
    files: tuple[str, ...]
    folders: tuple[str, ...]


@dataclass(slots=True)
class _Search:
    """A search under way: how much may still be listed, what was seen, what could not be read."""

    n_left: int
    seen: set[tuple[int, int]] = field(default_factory=set)
    unreadable: list[Path] = field(default_factory=list)


def _list_folder(path: Path, max_entries: int) -> Listing:
    """List a folder.

    Raises:
        OSError: If it cannot be read.
        CheckpointError: If it holds more than that many names.
    """
    files: list[str] = []
    folders: list[tuple[bool, str]] = []
    with os.scandir(path) as entries:
        for entry in entries:
            if len(files) + len(folders) == max_entries:
                raise CheckpointError(
                    f"holds more than {_MAX_ENTRIES:,} files and folders, too many to search",
                    path=path,
                    hint="name the checkpoint's own folder with --input_dir",
                )
            if _is_folder(entry):
                # A link comes behind the folder that it leads to.
                folders.append((entry.is_symlink(), entry.name))
            else:
                files.append(entry.name)
    inside = tuple(name for _, name in sorted(folders))
    return Listing(path, tuple(sorted([*files, *inside])), tuple(sorted(files)), inside)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def search_below(
    top: Listing,
    holds: Callable[[Listing], bool],
    *,
    model_size: str | None = None,
    flavor: Flavor | None = None,
) -> Listing | None:
    """Find a checkpoint below a folder: the nearest level that has one is taken.

    Hidden folders are passed over, links are followed, and no folder is visited twice.

    Args:
        top: The folder that was given.
        holds: Whether a folder holds a checkpoint.
        model_size: Such as "7B"; chooses among several.
        flavor: What the model was tuned for; chooses among several.

    Returns:
        What was found, or None.

    Raises:
        CheckpointError: If several are found, or only others than were asked for, or the folder
            holds too much to be searched.
    """
    search = _Search(_MAX_ENTRIES)
    held: list[Listing] = []
    for level in _levels(top, holds, search):
        held += level
        chosen = _choose(held, model_size, flavor)
        if len(chosen) > 1:
            current = current_snapshot([one.path.absolute() for one in chosen])
            chosen = [one for one in chosen if one.path.absolute() == current] or chosen
        if len(chosen) > 1:
            raise _several(top.path, chosen, model_size, flavor)
        if chosen:
            return chosen[0]
    if held:
        raise CheckpointError(
            f"holds no checkpoint in a folder named {model_size}, but {_relative(top.path, held)}",
            path=top.path,
            hint="name one with --input_dir",
        )
    if search.unreadable:
        raise CheckpointError(
            f"holds no checkpoint that can be read; {search.unreadable[0]} could not be opened",
            path=top.path,
            hint="give this user the right to read it, or name the checkpoint's own folder",
        )
    return None


def search_all(
    top: Listing, holds: Callable[[Listing], bool]
) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Find every checkpoint in a folder and below it, by the rules of `search_below`.

    Args:
        top: The folder that was given.
        holds: Whether a folder holds a checkpoint.

    Returns:
        The folders of the checkpoints, sorted, and those that could not be read.

    Raises:
        CheckpointError: If the folder holds too much to be searched.
    """
    if holds(top):
        return (top.path,), ()
    search = _Search(_MAX_ENTRIES)
    found = [one.path for level in _levels(top, holds, search) for one in level]
    return tuple(sorted(found)), tuple(search.unreadable)


def _levels(
    top: Listing, holds: Callable[[Listing], bool], search: _Search
) -> Iterator[list[Listing]]:
    """Return the checkpoints of each level; what lies inside one is not looked at."""
    level = [top]
    _is_new(top.path, search)
    for _ in range(_MAX_DEPTH):
        below = [found for folder in level for found in _inside(folder, search)]
        yield [folder for folder in below if holds(folder)]
        level = [folder for folder in below if not holds(folder)]


def _inside(folder: Listing, search: _Search) -> Iterator[Listing]:
    for name in folder.folders:
        path = folder.path / name
        if name.startswith("."):
            continue
        try:
            if not _is_new(path, search):
                continue
            found = _list_folder(path, search.n_left)
        except OSError:
            search.unreadable.append(path)
            continue
        search.n_left -= len(found.names)
        yield found


def _is_new(path: Path, search: _Search) -> bool:
    status = path.stat()
    inode = (status.st_dev, status.st_ino)
    is_new = inode not in search.seen
    search.seen.add(inode)
    return is_new


def _choose(
    held: Sequence[Listing], model_size: str | None, flavor: Flavor | None
) -> list[Listing]:
    """Keep those of the size and flavour that were asked for, as far as names say them."""
    chosen = list(held)
    if model_size is not None:
        exact = [one for one in held if one.path.name.lower() == model_size.lower()]
        chosen = exact or [one for one in held if _says_size(one, model_size)]
        if len(held) == 1 and not re.search(r"[0-9]b", model_name(held[0].path), re.IGNORECASE):
            chosen = list(held)  # its name says no size, and nothing else can be meant
    wanted = wanted_flavor(model_size, flavor)
    if len(chosen) > 1 and wanted is not None:
        chosen = [one for one in chosen if _flavor_of(one) == wanted] or chosen
    return chosen


def _says_size(one: Listing, model_size: str) -> bool:
    size = re.escape(model_size.removesuffix("f"))
    return bool(re.search(rf"(?<![0-9]){size}(?![a-z])", model_name(one.path), re.IGNORECASE))


def _size_of(one: Listing) -> str | None:
    found = re.search(r"(?<![0-9])[0-9]+b(?![a-z])", model_name(one.path), re.IGNORECASE)
    return found and found[0].lower()


def _flavor_of(one: Listing) -> Flavor | None:
    return read_folder_name(model_name(one.path))[1]


def _several(
    top: Path, chosen: Sequence[Listing], model_size: str | None, flavor: Flavor | None
) -> CheckpointError:
    """Refuse to choose; of the options that choose, name those that were not given and would help."""
    wanted = wanted_flavor(model_size, flavor)
    if wanted is not None and not {wanted, None}.intersection(map(_flavor_of, chosen)):
        return CheckpointError(
            f"holds no checkpoint in a folder named {wanted}, but {_relative(top, chosen)}",
            path=top,
            hint="name the folder of one with --input_dir",
        )
    options = []
    if model_size is None and len({*map(_size_of, chosen)}) > 1:
        options.append("--model_size")
    elif wanted is None and len({*map(_flavor_of, chosen)}) > 1:
        options.append("--variant")
    asked = [text for text in (model_size, flavor) if text is not None]
    return CheckpointError(
        f"holds several checkpoints{' for ' + ' '.join(asked) if asked else ''} "
        f"({_relative(top, chosen)})",
        path=top,
        hint=f"choose one with {options[0]}, or name its folder with --input_dir"
        if options
        else "name the folder of one with --input_dir",
    )


def _relative(top: Path, found: Sequence[Listing]) -> str:
    return listed([one_line(str(one.path.relative_to(top))) for one in found])


def open_listing(path: Path) -> Listing:
    """List the folder that a user gave.

    Raises:
        CheckpointError: If it cannot be read.
    """
    try:
        return _list_folder(path, _MAX_ENTRIES)
    except OSError as problem:
        raise CheckpointError(f"cannot open: {first_line(problem)}", path=path) from problem
