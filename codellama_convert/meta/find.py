"""Own which files of a folder make a checkpoint; know nothing of what they hold."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from codellama_convert.errors import CheckpointError, ConfigError
from codellama_convert.storage.blocks import first_line

PARAMS_NAME = "params.json"
TOKENIZER_NAME = "tokenizer.model"
_RANK_NAME = re.compile(r"consolidated\.([0-9]{2})\.pth")
_OTHER_WEIGHTS = (".safetensors", ".gguf", ".bin", ".index.json")
_MAX_RANKS = 8  # Llama 1 65B, Llama 2 70B and Code Llama 70B


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """The files of one Meta checkpoint, not yet read.

    Attributes:
        folder: Where the ranks lie.
        params: params.json.
        ranks: consolidated.NN.pth in order.
        tokenizer: tokenizer.model, inside the folder or beside it; None where there is none.
        notes: What was passed over.
    """

    folder: Path
    params: Path
    ranks: tuple[Path, ...]
    tokenizer: Path | None
    notes: tuple[str, ...]

    def all(self) -> tuple[Path, ...]:
        """List every file that is read."""
        tokenizer = () if self.tokenizer is None else (self.tokenizer,)
        return (self.params, *self.ranks, *tokenizer)


def find_model_folder(input_dir: Path, model_size: str | None) -> Path:
    """Find the folder that holds the checkpoint: the given one, or one inside it.

    Args:
        input_dir: The model's folder, or one that holds it as Meta's download scripts lay it.
        model_size: Such as "7B"; chooses among several.

    Returns:
        The folder with the ranks.

    Raises:
        CheckpointError: If none or several are found.
    """
    if _holds_checkpoint(input_dir):
        return input_dir
    try:
        inside = sorted(path for path in input_dir.iterdir() if path.is_dir())
    except OSError as problem:
        raise CheckpointError(f"cannot open: {first_line(problem)}", path=input_dir) from problem
    found = held = [path for path in inside if _holds_checkpoint(path)]
    if model_size is not None:
        size = re.escape(model_size.removesuffix("f"))
        found = [
            p for p in found if re.search(rf"(?<![0-9]){size}(?![a-z])", p.name, re.IGNORECASE)
        ]
        exact = [path for path in found if path.name.lower() == model_size.lower()]
        found = exact or found
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found or held)
    if found:
        raise CheckpointError(
            f"holds several checkpoints ({names})",
            path=input_dir,
            hint="choose one with --model_size, or name its folder with --input_dir",
        )
    if held:
        raise CheckpointError(
            f"holds no checkpoint whose folder's name says {model_size}, but {names}",
            path=input_dir,
            hint="name one with --input_dir",
        )
    raise _holds_none(input_dir)


def _holds_none(folder: Path) -> CheckpointError:
    """Say that a folder is none of Meta's, and what it is instead where that can be told."""
    what = "holds no consolidated.NN.pth and no params.json"
    names = sorted(path.name for path in folder.iterdir())
    if "config.json" in names or any(name.endswith(_OTHER_WEIGHTS) for name in names):
        example = next((n for n in names if n.endswith(_OTHER_WEIGHTS)), "config.json")
        what += f", but {example}: it is no checkpoint in Meta's layout (a converted one?)"
    return CheckpointError(
        what,
        path=folder,
        hint="--input_dir is the folder that Meta's download script made, such as CodeLlama-7b",
    )


def _holds_checkpoint(folder: Path) -> bool:
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return False
    return PARAMS_NAME in names or any(_RANK_NAME.fullmatch(name) for name in names)


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
    places = (folder, input_dir, folder.absolute().parent)
    candidates = (place / TOKENIZER_NAME for place in places)
    # A dangling link counts: its own error says more than "missing".
    return next((path for path in candidates if os.path.lexists(path)), None)


def find_files(
    input_dir: Path,
    *,
    model_size: str | None = None,
    tokenizer_model: str | os.PathLike[str] | None = None,
) -> CheckpointFiles:
    """Find the files of a checkpoint.

    Args:
        input_dir: The model's folder, or one that holds it.
        model_size: Chooses among several models.
        tokenizer_model: Where tokenizer.model is, if elsewhere.

    Returns:
        The files.

    Raises:
        CheckpointError: If there is none, or a rank is missing in the middle.
    """
    folder = find_model_folder(input_dir, model_size)
    names = sorted(path.name for path in folder.iterdir())
    numbers = [int(match[1]) for match in map(_RANK_NAME.fullmatch, names) if match]
    alike = [name for name in names if ".pth" in name and not _RANK_NAME.fullmatch(name)]
    if not numbers:
        raise CheckpointError(
            "holds no consolidated.NN.pth" + (f", but {', '.join(alike)}" if alike else ""),
            path=folder,
            hint="Meta's ranks are named consolidated.00.pth, consolidated.01.pth and so on; "
            "was the download finished, or a file renamed?",
        )
    missing = sorted(set(range(max(numbers) + 1)) - set(numbers))
    if missing:
        found = ", ".join(f"consolidated.{number:02d}.pth" for number in sorted(numbers))
        raise CheckpointError(
            f"consolidated.{missing[0]:02d}.pth is missing; found were {', '.join([found, *alike])}",
            path=folder,
            hint="download it, or give it back its name",
        )
    if len(numbers) > _MAX_RANKS:
        raise CheckpointError(
            f"holds {len(numbers)} ranks; no model has more than {_MAX_RANKS}",
            path=folder,
            hint="remove those of another model",
        )
    if PARAMS_NAME not in names:
        raise ConfigError(
            "No such file",
            path=folder / PARAMS_NAME,
            hint="it is downloaded with the ranks; get it from where they are from",
        )
    others = [n for n in names if n in alike or n.endswith(".pt")]
    return CheckpointFiles(
        folder=folder,
        params=folder / PARAMS_NAME,
        ranks=tuple(folder / f"consolidated.{number:02d}.pth" for number in numbers),
        tokenizer=find_tokenizer(input_dir, folder, tokenizer_model),
        notes=(f"ignored {', '.join(others)}",) if others else (),
    )
