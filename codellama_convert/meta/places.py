"""Own what follows from a checkpoint's place: which model it is, and where its output goes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from codellama_convert.errors import OutputError
from codellama_convert.model.folder_name import read_folder_name

# Folders that hubs and repositories put around a checkpoint; they say nothing of the model.
# huggingface_hub: models--ORG--NAME/snapshots/<commit>; Kaggle: NAME/<version>; Meta's repositories
# on the hub keep the .pth files in "original", those of Llama 3.1 405B in "original/mp8" and "mp16".
_WRAPPER = re.compile(r"original|mp8|mp16|snapshots|[0-9]{1,4}|[0-9a-f]{40}", re.IGNORECASE)
_HUB_NAME = re.compile(r"models--(?:.+?--)?(.+)")
_KAGGLE_FRAMEWORKS = ("pytorch", "transformers", "other")  # NAME/pytorch/VARIATION/<version>
_SIZE = re.compile(r"(?<![0-9a-z])[0-9]{1,3}b(?![a-z0-9])", re.IGNORECASE)
_MAX_ANCESTORS = 5
_HF = "-hf"
_CACHES = (".cache", "kagglehub")
_MAX_COMMIT_LENGTH = 100


def model_name(folder: Path) -> str:
    """Return the name of the model that a folder belongs to.

    It is the folder's own name, or that of the folder that a hub or repository puts around it. If
    that name does not say which model it is, the nearest folder above with a model's name is taken:
    one with a size, and with a family or what the model was tuned for. Other folders above do not
    count: `chat-experiments/my-model` does not say which model it is.

    Args:
        folder: The checkpoint's. Links are followed, and the name of the link itself counts too.

    Returns:
        Such as "CodeLlama-7b-Instruct"; "Llama-2-7b-chat" for a snapshot of the hub.
    """
    names = [name for place in (folder.resolve(), folder.absolute()) for name in _names(place)]
    own = _name_of(_unwrapped(folder.resolve()))
    return next(iter(names), own)


def _names(place: Path) -> list[str]:
    """List the names that say which model it is, nearest first."""
    place = _unwrapped(place)
    own = _name_of(place)
    above = [_name_of(parent) for parent in list(place.parents)[:_MAX_ANCESTORS]]
    told = [name for name in above if _SIZE.search(name) and _says_more_than_a_size(name)]
    return [own, *told] if read_folder_name(own) != (None, None) else told


def _says_more_than_a_size(name: str) -> bool:
    return read_folder_name(name) != (None, None) and _SIZE.fullmatch(name) is None


def _unwrapped(place: Path) -> Path:
    while _WRAPPER.fullmatch(place.name) and place.parent != place:
        place = place.parent
    return place


def _name_of(place: Path) -> str:
    """Return a folder's name without a hub's additions, and with what Kaggle puts into the folders above."""
    hub = _HUB_NAME.fullmatch(place.name)
    if hub:
        return hub[1]
    if place.parent.name.lower() in _KAGGLE_FRAMEWORKS:
        return f"{place.parent.parent.name}-{place.name}".lstrip("-")
    return place.name


def default_output_dir(folder: Path, suffix: str = _HF) -> Path:
    """Return where the output goes unless another place is named: beside the checkpoint.

    A cache belongs to the program that made it, so the output of a checkpoint in a cache goes into
    the current folder.

    Args:
        folder: The checkpoint's, as it was found; "." is resolved to its name.
        suffix: What is added to its name; a suffix other than -hf replaces -hf.

    Returns:
        The folder, named after the model.

    Raises:
        OutputError: If the current folder is in a cache too, or the checkpoint's folder has no name.
    """
    place = folder if folder.name not in ("", "..") else folder.resolve()
    if _is_in_cache(place.absolute()) or _is_hub_cache(_unwrapped(place.absolute()).parent):
        if _is_in_cache(Path.cwd()) or _is_hub_cache(Path.cwd()):
            raise OutputError(
                "lies in a cache, and so does the current folder: an output does not belong there",
                path=folder,
                hint="name another place with --output_dir",
            )
        return Path(_with_suffix(model_name(folder), suffix))
    place = _unwrapped(place.absolute()) if _WRAPPER.fullmatch(place.name) else place
    if not place.name:
        raise OutputError(
            "has no name to call the output after", path=folder, hint="name it with --output_dir"
        )
    return place.with_name(_with_suffix(_name_of(place), suffix))


def _with_suffix(name: str, suffix: str) -> str:
    return (name if suffix == _HF else name.removesuffix(_HF)) + suffix


def current_snapshot(folders: Sequence[Path]) -> Path | None:
    """Choose among the snapshots that a hub keeps of one model.

    Args:
        folders: Checkpoints, each in a snapshot.

    Returns:
        The one that the hub's refs/main names; None if it names no such snapshot, or if the
            snapshots are of several models.
    """
    snapshots = {_snapshot_of(folder) for folder in folders}
    if len(snapshots) != len(folders) or None in snapshots:
        return None
    homes = {snapshot.parent.parent for snapshot in snapshots if snapshot is not None}
    if len(homes) != 1:
        return None
    try:
        with (homes.pop() / "refs" / "main").open("rb") as file:
            commit = file.read(_MAX_COMMIT_LENGTH).decode("ascii", "replace").strip()
    except OSError:
        return None
    return next((one for one in folders if (_snapshot_of(one) or one).name == commit), None)


def _snapshot_of(folder: Path) -> Path | None:
    """Return the snapshot that a folder is or lies in: models--ORG--NAME/snapshots/COMMIT."""
    for place in (folder, *folder.parents):
        if place.parent.name == "snapshots" and _HUB_NAME.fullmatch(place.parent.parent.name):
            return place
    return None


def _is_in_cache(place: Path) -> bool:
    return any(_HUB_NAME.fullmatch(name) or name in _CACHES for name in place.parts)


def _is_hub_cache(place: Path) -> bool:
    """Report whether a hub keeps its models in this folder, wherever the user put that."""
    try:
        return any(_HUB_NAME.fullmatch(path.name) for path in place.iterdir())
    except OSError:  # reported when something is written there
        return False
