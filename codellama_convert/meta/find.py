"""Own which files of a folder make a checkpoint."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from codellama_convert.choices import Flavor
from codellama_convert.errors import CheckpointError, ConfigError, TokenizerError, one_line
from codellama_convert.meta.other_layouts import look_alike, other_layout, refuse_fp8
from codellama_convert.meta.rank_names import choose_ranks, is_meta_name, is_of_weights
from codellama_convert.meta.search import Listing, open_listing, search_all, search_below
from codellama_convert.meta.unfinished import refuse_unfinished

PARAMS_NAME = "params.json"
TOKENIZER_NAME = "tokenizer.model"
_RENAMED = (
    "Meta's ranks are named consolidated.00.pth, consolidated.01.pth and so on; "
    "was the download finished, or a file renamed?"
)

_HINT = "--input_dir is the folder that Meta's download script made, such as CodeLlama-7b"


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """The files of one Meta checkpoint, not yet read.

    Attributes:
        folder: Where the ranks lie.
        params: params.json.
        ranks: The ranks in order.
        tokenizer: tokenizer.model, inside the folder or beside it; None where there is none.
        notes: What was taken under another name, and what was passed over.
        place_notes: Where it was found; the record of a conversion does not depend on it.
    """

    folder: Path
    params: Path
    ranks: tuple[Path, ...]
    tokenizer: Path | None
    notes: tuple[str, ...]
    place_notes: tuple[str, ...] = ()

    def all(self) -> tuple[Path, ...]:
        """List every file that is read."""
        tokenizer = () if self.tokenizer is None else (self.tokenizer,)
        return (self.params, *self.ranks, *tokenizer)


def find_files(
    input_dir: Path,
    *,
    model_size: str | None = None,
    flavor: Flavor | None = None,
    tokenizer_model: str | os.PathLike[str] | None = None,
    hint: str = _HINT,
) -> CheckpointFiles:
    """Find the files of a checkpoint.

    Args:
        input_dir: The model's folder, or one that holds it, up to five levels down.
        model_size: Such as "7B"; chooses among several models.
        flavor: What the model was tuned for; chooses among several models.
        tokenizer_model: Where tokenizer.model is, if elsewhere.
        hint: What to do where nothing is found that looks like a model.

    Returns:
        The files.

    Raises:
        CheckpointError: If there is none, or several, or a rank is missing in the middle, or a
            download is unfinished.
        ConfigError: If there is no params.json.
    """
    listing = _find_folder(open_listing(input_dir), model_size, flavor, hint)
    folder = listing.path
    # A folder of such a name is in a file's place, and refused as what it is when it is opened.
    names = [n for n in listing.names if n in listing.files or n == PARAMS_NAME or is_meta_name(n)]
    refuse_fp8(folder, names)
    ranks = choose_ranks(folder, names)
    if not ranks.names:
        raise _without_ranks(folder, names)
    if PARAMS_NAME not in names:
        raise _without_params(folder, names)
    found = f"the checkpoint was found in {folder.relative_to(input_dir)}"
    files = CheckpointFiles(
        folder=folder,
        params=folder / PARAMS_NAME,
        ranks=tuple(folder / name for name in ranks.names),
        tokenizer=find_tokenizer(input_dir, folder, tokenizer_model),
        notes=ranks.notes,
        place_notes=() if folder == input_dir else (one_line(found),),
    )
    refuse_unfinished(files.all())
    _refuse_dangling(files.all())
    return files


def find_folders(top: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Find the folder of every checkpoint in a folder and up to five levels below it.

    Args:
        top: Where to look.

    Returns:
        The folders, sorted, at least one; and those that could not be read.

    Raises:
        CheckpointError: If there is no checkpoint, or the folder holds too much to be searched.
    """
    found, unreadable = search_all(open_listing(top), _has_params_and_weights)
    if not found:
        unseen = f"; {unreadable[0]} could not be opened" if unreadable else ""
        raise CheckpointError(
            f"holds no checkpoint (consolidated.NN.pth and {PARAMS_NAME}), nor does a folder below it"
            f"{unseen}",
            path=top,
            hint="name the folder that the checkpoints' folders lie in",
        )
    return found, unreadable


def _find_folder(
    given: Listing, model_size: str | None, flavor: Flavor | None, hint: str
) -> Listing:
    """Find the folder that holds the checkpoint: the given one, or one below it."""
    if _has_params_or_ranks(given):
        return given
    for holds in (_has_params_and_weights, _has_params_or_ranks):
        found = search_below(given, holds, model_size=model_size, flavor=flavor)
        if found is not None:
            return found
    weights = [name for name in given.files if is_of_weights(name)]
    if weights:
        raise _without_params(given.path, given.files)
    other = other_layout(given.files)
    raise CheckpointError(
        f"holds no consolidated.NN.pth and no {PARAMS_NAME}"
        + (f", but {other[0]}" if other else ""),
        path=given.path,
        hint=other[1] if other else hint,
    )


def _has_params_or_ranks(listing: Listing) -> bool:
    return PARAMS_NAME in listing.names or any(map(is_meta_name, listing.names))


def _has_params_and_weights(listing: Listing) -> bool:
    """Many programs call a file params.json: alone it is not yet a checkpoint."""
    if any(map(is_meta_name, listing.names)):
        return True
    return PARAMS_NAME in listing.files and (
        any(map(is_of_weights, listing.files)) or other_layout(listing.files) is not None
    )


def _without_ranks(folder: Path, names: list[str]) -> CheckpointError:
    other = other_layout(names)
    alike = [name for name in names if ".pth" in name.lower()]
    what, hint = other or (", ".join(alike), _RENAMED)
    return CheckpointError(
        "holds no consolidated.NN.pth" + (f", but {what}" if what else ""), path=folder, hint=hint
    )


def _without_params(folder: Path, names: tuple[str, ...] | list[str]) -> ConfigError:
    alike = look_alike(names, PARAMS_NAME)
    if alike is not None:
        return ConfigError(
            f"No such file, but {alike}", path=folder / PARAMS_NAME, hint=f"rename {alike}"
        )
    return ConfigError(
        "No such file",
        path=folder / PARAMS_NAME,
        hint="it comes with the ranks; download it from the same place",
    )


def _refuse_dangling(paths: tuple[Path, ...]) -> None:
    """Refuse a link that leads nowhere, as caches have them after a file of theirs was removed."""
    for path in paths:
        if _dangles(path):
            raise CheckpointError(
                f"is a link to {path.readlink()}, which is not there: {os.strerror(errno.ENOENT)}",
                path=path,
                hint="download the file again; to move a checkpoint, copy what its links lead to "
                "(cp -L)",
            )


def _dangles(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return path.is_symlink()
    except OSError:  # a loop of links, or no right to follow: said when it is opened
        return False
    return False


def find_tokenizer(
    input_dir: Path, folder: Path, tokenizer_model: str | os.PathLike[str] | None
) -> Path | None:
    """Find tokenizer.model: where the user says, inside the model's folder, or beside it.

    Args:
        input_dir: As the user gave it.
        folder: The model's folder.
        tokenizer_model: As the user gave it.

    Returns:
        The file, or None.
    """
    if tokenizer_model is not None:
        return Path(tokenizer_model)
    between = (place for place in folder.parents if input_dir in place.parents)
    places = (folder, *between, input_dir, folder.absolute().parent)
    candidates = (place / TOKENIZER_NAME for place in places)
    # A dangling link counts: its own error says more than "missing".
    return next((path for path in candidates if os.path.lexists(path)), None)


def missing_tokenizer(folder: Path, *, hint: str) -> TokenizerError:
    """Say that there is no tokenizer.model, and which file may be it.

    Args:
        folder: The model's folder.
        hint: What to do.

    Returns:
        The error.
    """
    what = f"no {TOKENIZER_NAME} in the folder or beside it"
    for place in (folder, folder.absolute().parent):
        alike = look_alike(_names_in(place), TOKENIZER_NAME)
        if alike is not None:
            return TokenizerError(
                f"{what}, but {alike}", path=folder, hint=f"rename {alike}, or {hint}"
            )
    return TokenizerError(what, path=folder, hint=hint)


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []
