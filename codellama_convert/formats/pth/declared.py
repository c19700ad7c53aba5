"""Own what the pickle of a rank declares, before any of its numbers is checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codellama_convert.errors import CheckpointError
from codellama_convert.formats.pth.pickle_beside import Inert
from codellama_convert.formats.pth.pickle_names import (
    METAS_FILES_HINT,
    DeclaredStorage,
    GlobalName,
    OrderedItems,
    OtherTensor,
    RefusedPickle,
    View,
)
from codellama_convert.formats.pth.pickle_reader import parse_pickle
from codellama_convert.formats.pth.saved_rank import Container
from codellama_convert.formats.zip_directory import DAMAGED_HINT


@dataclass(frozen=True, slots=True)
class Declared:
    """What is taken of a pickle.

    Attributes:
        entries: What must be tensors, by the names they go by from here on.
        dropped: Shapes of tensors that are left out, by name; their bytes are never looked at.
        notes: What a user should know of the choice.
        container: What the pickle holds them in.
    """

    entries: Mapping[Any, Any]
    dropped: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    container: Container = "dict"

    @property
    def location(self) -> str:
        """The device that the first tensor was saved from; empty where there is none."""
        views = (value for value in self.entries.values() if type(value) is View)
        return next((view.storage.location for view in views), "")


Choose = Callable[[Path, Mapping[Any, Any]], Declared]


def take_all(path: Path, top: Mapping[Any, Any]) -> Declared:
    """Take every entry of a pickle under its own name."""
    del path
    return Declared(top)


def read_declared(path: Path, pickled: bytes) -> tuple[Container, Mapping[Any, Any]]:
    """Run the inert machine and expect a dict.

    Args:
        path: The file, for messages.
        pickled: The content of data.pkl.

    Returns:
        Its kind and what it holds; what the values are is not looked at.

    Raises:
        CheckpointError: If the pickle is refused, or is of something else.
    """
    try:
        top = parse_pickle(pickled)
    except RefusedPickle as problem:
        hint = problem.hint or DAMAGED_HINT
        raise CheckpointError(f"data.pkl: {problem}", path=path, hint=hint) from None
    content = items_of(top)
    if content is None:
        raise CheckpointError(
            f"holds {kind_of(top)}; expected Meta's flat layout of tensors",
            path=path,
            hint=METAS_FILES_HINT,
        )
    return ("dict" if content is top else "OrderedDict"), content


def items_of(value: Any) -> Mapping[Any, Any] | None:
    """Return what a dict of either kind holds; None where the value is not one."""
    if type(value) is OrderedItems:
        return value.content
    return value if type(value) is dict else None


def kind_of(value: Any) -> str:
    """Name the kind of a value, for a message."""
    if isinstance(value, (Inert, OtherTensor)):
        return value.what
    if isinstance(value, GlobalName):
        return f"the name {value.module}.{value.name}"
    names: dict[type, str] = {
        dict: "a nested dict", OrderedItems: "a nested dict", View: "a tensor", type(None): "None",
        int: "an int", DeclaredStorage: "a storage",
    }  # fmt: skip
    return names.get(type(value), f"a {type(value).__name__}")
