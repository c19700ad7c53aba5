"""Own what the place of a checkpoint says of it: which model it is, and where its output goes."""

from __future__ import annotations

import re
from pathlib import Path

from codellama_convert.errors import OutputError
from codellama_convert.model.recognise import read_folder_name

# Folders that hubs and repositories put around a checkpoint; they say nothing of the model.
# huggingface_hub: models--ORG--NAME/snapshots/<commit>; Kaggle: NAME/<version>; Meta's repositories
# on the hub keep the .pth files in "original".
_WRAPPER = re.compile(r"original|snapshots|[0-9]{1,4}|[0-9a-f]{40}", re.IGNORECASE)
_HUB_NAME = re.compile(r"models--(?:.+?--)?(.+)")
_KAGGLE_FRAMEWORKS = ("pytorch", "transformers", "other")  # NAME/pytorch/VARIATION/<version>
_SIZE = re.compile(r"(?<![0-9a-z])[0-9]{1,3}b(?![a-z0-9])", re.IGNORECASE)
_MAX_ANCESTORS = 5
_CACHES = (".cache", "kagglehub")


def model_name(folder: Path) -> str:
    """Return the name of the model that a folder belongs to.

    It is the folder's own, or that of the folder that a hub or repository wraps around it. Where
    that says nothing of the model, the nearest folder above whose name is a model's is taken: it
    has a size, and a family or what the model was tuned for. Other folders above do not count: in
    `chat-experiments/my-model` nothing is said of the model.

    Args:
        folder: The checkpoint's; links are followed, but the link's own name may say more.

    Returns:
        Such as "CodeLlama-7b-Instruct"; "Llama-2-7b-chat" for a snapshot of the hub.
    """
    names = [name for place in (folder.resolve(), folder.absolute()) for name in _names(place)]
    own = _name_of(_unwrapped(folder.resolve()))
    return next(iter(names), own)


def _names(place: Path) -> list[str]:
    """List the names that say something of the model, nearest first."""
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
    """Return a folder's name without a hub's additions, and with what Kaggle writes further up."""
    hub = _HUB_NAME.fullmatch(place.name)
    if hub:
        return hub[1]
    if place.parent.name.lower() in _KAGGLE_FRAMEWORKS:
        return f"{place.parent.parent.name}-{place.name}".lstrip("-")
    return place.name


def default_output_dir(folder: Path) -> Path:
    """Return where the output goes unless another place is named: beside the checkpoint.

    What lies in a cache belongs to the program that made the cache, so the output of a checkpoint
    there goes into the current folder.

    Args:
        folder: The checkpoint's, as it was found; "." is resolved to its name.

    Returns:
        The folder, named after the model with -hf added.

    Raises:
        OutputError: If the current folder is in a cache too, or the checkpoint's has no name.
    """
    place = folder if folder.name not in ("", "..") else folder.resolve()
    if _is_in_cache(place.absolute()):
        if _is_in_cache(Path.cwd()):
            raise OutputError(
                "lies in a cache, and so does the current folder: an output does not belong there",
                path=folder,
                hint="name another place with --output_dir",
            )
        return Path(f"{model_name(folder)}-hf")
    place = _unwrapped(place.absolute()) if _WRAPPER.fullmatch(place.name) else place
    if not place.name:
        raise OutputError(
            "has no name to call the output after", path=folder, hint="name it with --output_dir"
        )
    return place.with_name(f"{_name_of(place)}-hf")


def _is_in_cache(place: Path) -> bool:
    return any(_HUB_NAME.fullmatch(name) or name in _CACHES for name in place.parts)
