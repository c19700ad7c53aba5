"""Own the question whether a folder may receive a model, for what it holds."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from codellama_convert.errors import CheckpointError, OutputError, listed, shown
from codellama_convert.hugging_face.loader_names import TEMPLATES_NAME
from codellama_convert.hugging_face.model_card import CARD_MARK, CARD_NAME
from codellama_convert.plan.side import TargetSide
from codellama_convert.staging.publish import is_replaced
from codellama_convert.staging.space import ANOTHER_PLACE
from codellama_convert.staging.staged import STAGING_NAME
from codellama_convert.storage.folders import names_a_folder, names_in
from codellama_convert.storage.input_file import InputFile
from codellama_convert.storage.lock import LOCK_NAME

_MAX_CARD_BYTES = 1 << 16  # of somebody's README.md, looked through for our own words


def refuse_content(
    folder: Path,
    names: Collection[str],
    *,
    side: TargetSide,
    overwrite: bool,
    moved: Collection[str] = (),
    resumed: bool = False,
) -> None:
    """Refuse a folder for what it holds; nothing is touched.

    Args:
        folder: Where a model is to go.
        names: The files that the conversion may write.
        side: Who loads from the folder.
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
            name for name in content if may_be_ours(name, names, side) or side.is_taken(name)
        ]
    if content and not overwrite:
        raise OutputError(
            f"the output folder is not empty ({listed([*map(repr, content)], 1)})",
            path=folder,
            hint="name another with --output_dir, or replace the model in it with --overwrite",
        )
    if not any(map(side.is_of_weights, names)):
        _refuse_a_model(folder, content, side)
    for name in content:
        _refuse_what_stays(folder, name, names, side)


def may_be_ours(name: str, names: Collection[str], side: TargetSide) -> bool:
    """Return whether a conversion that writes `names` may have written, or replaces, this one."""
    return name in names or is_replaced(name, side)


def holds_a_card(folder: Path) -> bool:
    """Return whether a folder's README.md is a conversion's model card; it may have been edited."""
    try:
        with InputFile(folder / CARD_NAME) as file:
            head = file.read_exact(0, min(file.n_bytes, _MAX_CARD_BYTES))
    except CheckpointError:  # none, or none that is ours
        return False
    return CARD_MARK.encode() in head


def _refuse_a_model(folder: Path, content: Collection[str], side: TargetSide) -> None:
    """Refuse to leave weights beside the vocabulary of another model."""
    of_model = next(filter(side.is_of_weights, content), None)
    if of_model is not None:
        raise OutputError(
            f"holds a model ({of_model!r}), which this tokenizer may not belong to",
            path=folder,
            hint=f"convert model and tokenizer together, or {ANOTHER_PLACE}",
        )


def _refuse_what_stays(folder: Path, name: str, names: Collection[str], side: TargetSide) -> None:
    """Refuse what is not replaced, and would change how the new model loads or be in its way."""
    what, way_out = None, ANOTHER_PLACE
    if not may_be_ours(name, names, side):
        what = "loaders would use it with the model" if side.is_taken(name) else None
    elif name != TEMPLATES_NAME and names_a_folder(folder / name):
        what = "a folder, where a file goes"
    elif name == CARD_NAME and not holds_a_card(folder):
        what, way_out = "not the model card of a conversion", "leave out --model_card"
    if what is not None:
        raise OutputError(
            f"holds {shown(name)}: {what}, and --overwrite does not remove it",
            path=folder,
            hint=f"move it away, or {way_out}",
        )
