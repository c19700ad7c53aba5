"""Own which files of a folder make a model: safetensors, or torch's older pytorch_model.bin."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from codellama_convert.errors import CheckpointError, LayoutError, listed, shown
from codellama_convert.formats.pth.reader import RankIndex
from codellama_convert.formats.safetensors import INDEX_NAME, SINGLE_FILE_NAME
from codellama_convert.formats.safetensors_reader import SafetensorsIndex, read_safetensors
from codellama_convert.formats.strict_json import parse_object
from codellama_convert.hugging_face.foreign_names import refuse_adapters, without_weights
from codellama_convert.hugging_face.torch_file import read_torch_file
from codellama_convert.storage.folders import names_in
from codellama_convert.storage.input_file import InputFile

_MAX_INDEX_BYTES = 4 << 20
_AGAIN = "download the whole folder again"
_MAX_LISTED = 3

Shard = SafetensorsIndex | RankIndex


@dataclass(frozen=True, slots=True)
class _Format:
    """One way of keeping the weights in a folder.

    Attributes:
        index_name: The file that says which tensor is in which file.
        single_name: The file that holds them all.
        names: Those that are files of the model where no index says it.
        suffix: Of every file that an index may name.
        read: Reads what a file holds.
    """

    index_name: str
    single_name: str
    names: re.Pattern[str]
    suffix: str
    read: Callable[[Path], Shard]


_SAFETENSORS = _Format(
    INDEX_NAME,
    SINGLE_FILE_NAME,
    re.compile(r"(?!consolidated).*\.safetensors"),  # Mistral's, under names of its own
    ".safetensors",
    read_safetensors,
)
# transformers' trainer leaves training_args.bin and optimizer.bin beside them.
_TORCH = _Format(
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    re.compile(r"pytorch_model.*\.bin"),
    ".bin",
    read_torch_file,
)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of a model, read up to their tensors.

    Attributes:
        files: In the order of their names.
        file_of: The number of the file that holds a tensor, by the tensor's name.
        notes: What was passed over.
    """

    files: tuple[Shard, ...]
    file_of: dict[str, int]
    notes: tuple[str, ...]

    @property
    def other_dtypes(self) -> dict[str, str]:
        """The dtypes that no model has, by the tensor's name."""
        return {name: code for file in self.files for name, code in _other_dtypes(file).items()}

    def holding(self, name: str) -> Shard:
        """Return the file that holds a tensor."""
        return self.files[self.file_of[name]]


def read_model_files(folder: Path) -> ModelFiles:
    """Find a folder's files of weights, and read what they hold.

    Args:
        folder: It holds an index and what that names, or one file, or the parts of a split model;
            of safetensors and torch's files, the former count.

    Returns:
        The files.

    Raises:
        CheckpointError: If there are none, one is missing or damaged, or an adapter is there.
        LayoutError: If a tensor is in two of them, or in another than the index says.
    """
    names = names_in(folder, error=CheckpointError)
    refuse_adapters(folder, names)
    kind = next((one for one in (_SAFETENSORS, _TORCH) if _is_used(one, names)), None)
    if kind is None:
        raise without_weights(folder, names)
    weight_map = _read_index(folder, kind) if kind.index_name in names else None
    wanted, notes = _wanted(folder, names, kind, weight_map)
    files = tuple(kind.read(folder / name) for name in wanted)
    file_of = _places(folder, files)
    if weight_map is not None:
        there = {name: wanted[number] for name, number in file_of.items()}
        _compare(folder / kind.index_name, weight_map, there)
    return ModelFiles(files, file_of, notes)


def _is_used(kind: _Format, names: set[str]) -> bool:
    return kind.index_name in names or any(map(kind.names.fullmatch, names))


def _wanted(
    folder: Path, names: set[str], kind: _Format, weight_map: Mapping[str, str] | None
) -> tuple[list[str], tuple[str, ...]]:
    """Choose the files, and say what is passed over."""
    fitting = sorted(filter(kind.names.fullmatch, names))
    notes = []
    if weight_map is not None:
        wanted = sorted(set(weight_map.values()))
        _refuse_absent(folder / kind.index_name, names, wanted)
        if kind.single_name in names and kind.single_name not in wanted:
            raise CheckpointError(
                f"holds {kind.single_name} and {kind.index_name}, which does not name it",
                path=folder,
                hint="remove the one that does not belong to this model",
            )
    elif kind.single_name in names:
        wanted = [kind.single_name]
    else:
        wanted = fitting
        notes.append(f"there is no {kind.index_name}: all its files are taken: {_listed(wanted)}")
    others = [
        name
        for name in sorted(names)
        if name.endswith(_SAFETENSORS.suffix) or _TORCH.names.fullmatch(name)
    ]
    passed_over = [name for name in others if name not in wanted]
    if passed_over:
        notes.append(f"ignored {_listed(passed_over)}")
    return wanted, tuple(notes)


def _other_dtypes(file: Shard) -> Mapping[str, str]:
    # Of a torch file, such a tensor is refused when it is read.
    return file.other_dtypes if isinstance(file, SafetensorsIndex) else {}


def _listed(names: list[str]) -> str:
    return listed([shown(name)[1:-1] for name in names], _MAX_LISTED)


def _read_index(folder: Path, kind: _Format) -> Mapping[str, str]:
    path = folder / kind.index_name
    with InputFile(path) as file:
        content = file.read_whole(_MAX_INDEX_BYTES, hint=_AGAIN)
    try:
        weight_map = parse_object(content).get("weight_map")
    except ValueError as problem:
        raise CheckpointError(str(problem), path=path, hint=_AGAIN) from problem
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("has no 'weight_map'", path=path, hint=_AGAIN)
    for tensor, name in weight_map.items():
        if not _is_plain_name(name, kind.suffix):
            raise CheckpointError(
                f"says that tensor {shown(tensor)} is in {shown(name)}, which is not the name of a "
                f"{kind.suffix} file",
                path=path,
                hint=_AGAIN,
            )
    return weight_map


def _is_plain_name(name: object, suffix: str) -> bool:
    return (
        isinstance(name, str)
        and name.endswith(suffix)
        and PurePosixPath(name).name == name
        and not set(name) & {"\\", "\0", ":"}
    )


def _refuse_absent(path: Path, names: set[str], wanted: list[str]) -> None:
    absent = [name for name in wanted if name not in names]
    if absent:
        are = "is" if len(absent) == 1 else "are"
        raise CheckpointError(
            f"names {_listed(absent)}, which {are} not there",
            path=path,
            hint=f"download what is missing: the model has {len(wanted)} files",
        )


def _places(folder: Path, files: tuple[Shard, ...]) -> dict[str, int]:
    """Say in which file each tensor is, once."""
    file_of: dict[str, int] = {}
    for number, index in enumerate(files):
        for name in (*index.tensors, *_other_dtypes(index)):
            if name in file_of:
                raise LayoutError(
                    f"tensor {shown(name)} is in {files[file_of[name]].path.name} and in "
                    f"{index.path.name}",
                    path=folder,
                    hint="remove the files that do not belong to this model",
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
                f"says that tensor {shown(name)} is {where}, but it is {is_in}",
                path=path,
                hint="an index and its files must come from the same folder",
            )
