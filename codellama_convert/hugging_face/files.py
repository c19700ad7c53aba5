"""Own which safetensors files of a folder make a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from codellama_convert.errors import CheckpointError, LayoutError, shown
from codellama_convert.formats.safetensors import INDEX_NAME, SINGLE_FILE_NAME
from codellama_convert.formats.safetensors_reader import SafetensorsIndex, read_safetensors
from codellama_convert.formats.stored_tensor import StoredTensor
from codellama_convert.formats.strict_json import parse_object
from codellama_convert.hugging_face.foreign_names import refuse_adapters, without_safetensors
from codellama_convert.storage.folders import names_in
from codellama_convert.storage.input_file import InputFile

_SUFFIX = ".safetensors"
_MAX_INDEX_BYTES = 4 << 20
_AGAIN = "download the whole folder again"
_MAX_LISTED = 3


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of a model, their headers read.

    Attributes:
        files: In the order of their names.
        file_of: The number of the file that holds a tensor, by the tensor's name.
        notes: What was passed over.
    """

    files: tuple[SafetensorsIndex, ...]
    file_of: dict[str, int]
    notes: tuple[str, ...]

    def stored(self, name: str) -> tuple[Path, StoredTensor]:
        """Return a tensor of a dtype that a model may have, and its file."""
        index = self.files[self.file_of[name]]
        return index.path, index.tensors[name]


def read_model_files(folder: Path) -> ModelFiles:
    """Find a folder's safetensors files, and read their headers.

    Args:
        folder: It holds an index and what that names, or one file, or the parts of a split model.

    Returns:
        The files.

    Raises:
        CheckpointError: If there are none, one is missing or damaged, or an adapter is there.
        LayoutError: If a tensor is in two of them, or in another than the index says.
    """
    names = names_in(folder, error=CheckpointError)
    refuse_adapters(folder, names)
    weight_map: Mapping[str, str] | None = None
    notes: list[str] = []
    if INDEX_NAME in names:
        weight_map = _read_index(folder / INDEX_NAME)
        wanted = sorted(set(weight_map.values()))
        _refuse_absent(folder, names, wanted)
        if SINGLE_FILE_NAME in names and SINGLE_FILE_NAME not in wanted:
            raise CheckpointError(
                f"holds {SINGLE_FILE_NAME} and {INDEX_NAME}, which does not name it",
                path=folder,
                hint="remove the one that is not of this model",
            )
    elif SINGLE_FILE_NAME in names:
        wanted = [SINGLE_FILE_NAME]
    else:
        wanted = sorted(
            n for n in names if n.endswith(_SUFFIX) and not n.startswith("consolidated")
        )
        if not wanted:
            raise without_safetensors(folder, names)
        notes.append(f"there is no {INDEX_NAME}: all {_SUFFIX} files are taken: {_listed(wanted)}")
    passed_over = sorted(name for name in names if name.endswith(_SUFFIX) and name not in wanted)
    passed_over += sorted(n for n in names if n.startswith("pytorch_model") and n.endswith(".bin"))
    if passed_over:
        notes.append(f"passed over {_listed(passed_over)}")
    files = tuple(read_safetensors(folder / name) for name in wanted)
    file_of = _places(folder, files)
    if weight_map is not None:
        _compare(folder / INDEX_NAME, weight_map, {n: wanted[i] for n, i in file_of.items()})
    return ModelFiles(files, file_of, tuple(notes))


def _listed(names: list[str]) -> str:
    shown_names = [shown(name)[1:-1] for name in names[:_MAX_LISTED]]
    more = len(names) - len(shown_names)
    return ", ".join(shown_names) + (f" and {more} more" if more else "")


def _read_index(path: Path) -> Mapping[str, str]:
    with InputFile(path) as file:
        content = file.read_whole(_MAX_INDEX_BYTES, hint=_AGAIN)
    try:
        weight_map = parse_object(content).get("weight_map")
    except ValueError as problem:
        raise CheckpointError(str(problem), path=path, hint=_AGAIN) from problem
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("has no 'weight_map'", path=path, hint=_AGAIN)
    for tensor, name in weight_map.items():
        if not _is_plain_name(name):
            raise CheckpointError(
                f"says that tensor {shown(tensor)} is in {shown(name)}, which is not the name of a "
                f"{_SUFFIX} file",
                path=path,
                hint=_AGAIN,
            )
    return weight_map


def _is_plain_name(name: object) -> bool:
    return (
        isinstance(name, str)
        and name.endswith(_SUFFIX)
        and PurePosixPath(name).name == name
        and not set(name) & {"\\", "\0", ":"}
    )


def _refuse_absent(folder: Path, names: set[str], wanted: list[str]) -> None:
    absent = [name for name in wanted if name not in names]
    if absent:
        are = "is" if len(absent) == 1 else "are"
        raise CheckpointError(
            f"names {_listed(absent)}, which {are} not there",
            path=folder / INDEX_NAME,
            hint=f"download what is missing: the model has {len(wanted)} files",
        )


def _places(folder: Path, files: tuple[SafetensorsIndex, ...]) -> dict[str, int]:
    """Say in which file each tensor is, once."""
    file_of: dict[str, int] = {}
    for number, index in enumerate(files):
        for name in (*index.tensors, *index.other_dtypes):
            if name in file_of:
                raise LayoutError(
                    f"tensor {shown(name)} is in {files[file_of[name]].path.name} and in "
                    f"{index.path.name}",
                    path=folder,
                    hint="remove the files that are not of this model",
                )
            file_of[name] = number
    return file_of


def _compare(path: Path, weight_map: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Refuse an index that says otherwise than the files do."""
    for name in sorted(weight_map.keys() | found.keys()):
        said, there = weight_map.get(name), found.get(name)
        if said != there:
            where = "nowhere" if said is None else f"in {said}"
            is_in = "in no file" if there is None else f"in {there}"
            raise LayoutError(
                f"says that tensor {shown(name)} is {where}, and it is {is_in}",
                path=path,
                hint="an index and its files must come from the same folder",
            )
