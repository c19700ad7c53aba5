"""Own how the ranks of a checkpoint were saved, as conversion.json has it: enough to write them again.

A stranger may have written the record. Whatever is wrong with it is a ValueError, sizes are taken
from the model, and what the record adds to them is small.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeVar, get_args

from codellama_convert.choices import MAX_RANKS, TORCH_LAYOUTS, TorchLayout
from codellama_convert.errors import shown
from codellama_convert.formats.pth.saved_rank import Container, SavedRank, SavedTensor, own_storages
from codellama_convert.model.tensor_table import DROPPED_SUFFIX, names_in_meta_order
from codellama_convert.tensors import TensorSpec, dtype_named

MAX_PARAMS_CHARACTERS = 1 << 12  # Meta's has 200
# What the storages hold besides the model's tensors, over all ranks that differ in it: 65B of Llama 1
# would have 10 kB of frequencies.
MAX_REST_BYTES = 1 << 14
_MAX_TENSORS, _MAX_NAME_LENGTH, _MAX_DIMENSIONS = 20_000, 256, 8
_MAX_ELEMENTS = 1 << 40
_KEYS = frozenset(
    {
        "container", "location", "order", "others", "params", "places", "rest", "roots", "storages",
        "torch_layout",
    }
)  # fmt: skip
_HEX = re.compile(r"(?:[0-9a-f]{2})*")

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Original:
    """How the ranks of a checkpoint were saved.

    Attributes:
        params: The text of params.json.
        torch_layout: The version of PyTorch whose files they equal.
        container: What holds the tensors.
        location: The device that they were saved from.
        roots: The folder inside of each rank's zip.
        order: The names of all tensors as the dict has them; None where that is Meta's order.
        others: The tensors beside the model's, such as the rotary frequencies.
        places: In that order, each tensor's storage and the elements before it; None where each has
            a storage of its own.
        storages: Elements of each storage; None with `places`.
        rest: Of each rank, all bytes of its storages that belong to no tensor of the model.
    """

    params: str
    torch_layout: TorchLayout
    container: Container
    location: str
    roots: tuple[str, ...]
    order: tuple[str, ...] | None
    others: tuple[TensorSpec, ...]
    places: tuple[tuple[int, int], ...] | None
    storages: tuple[int, ...] | None
    rest: tuple[bytes, ...]

    def saved_ranks(self, model: Mapping[str, TensorSpec], n_layers: int) -> tuple[SavedRank, ...]:
        """Say what torch.save was given of each rank.

        Args:
            model: The part that a rank has of each tensor of the model, by Meta's name.
            n_layers: Of the model.

        Returns:
            The ranks; `lay_out` checks them.

        Raises:
            ValueError: If this is said of another model.
        """
        specs = {**model, **{spec.name: spec for spec in self.others}}
        order = self.order or in_meta_order(specs, n_layers)
        if len(order) != len(specs) or specs.keys() != set(order):
            raise ValueError("its tensors are not those of the model")
        first = own_storages([specs[name] for name in order], root="")
        if self.places is not None and self.storages is not None:
            if len(self.places) != len(order):
                raise ValueError("it does not place each tensor")
            tensors = tuple(
                SavedTensor(specs[name], *place)
                for name, place in zip(order, self.places, strict=True)
            )
            first = replace(first, tensors=tensors, storage_elements=self.storages)
        first = replace(first, container=self.container, location=self.location)
        return tuple(replace(first, root=root) for root in self.roots)


def in_meta_order(names: Mapping[str, Any], n_layers: int) -> tuple[str, ...]:
    """Put the names of a rank's tensors into Meta's order; one that it has not is left out."""
    return tuple(name for name in names_in_meta_order(n_layers) if name in names)


def original_json(original: Original) -> dict[str, Any]:
    """Spell it for conversion.json: what all ranks have in common once."""
    rest = [one.hex() for one in original.rest]
    return {
        "container": original.container,
        "location": original.location,
        "order": None if original.order is None else list(original.order),
        "others": {
            spec.name: {"dtype": spec.dtype.code, "shape": list(spec.shape)}
            for spec in original.others
        },
        "params": original.params,
        # A line for each tensor, not three.
        "places": original.places and [f"{storage}+{at}" for storage, at in original.places],
        "rest": rest[:1] if len(set(rest)) == 1 else rest,
        "roots": list(original.roots),
        "storages": None if original.storages is None else list(original.storages),
        "torch_layout": original.torch_layout,
    }


def parse_original(value: object) -> Original:
    """Read it from conversion.json.

    Args:
        value: As the file has it.

    Returns:
        It, every value of the type and in the range that it must have.

    Raises:
        ValueError: If one is not, or an unknown key is there.
    """
    if not isinstance(value, dict) or value.keys() != _KEYS:
        raise ValueError("original is not an object that a conversion writes")
    roots = _items(value, "roots", _text, 1, MAX_RANKS)
    if len({len(root) for root in roots}) != 1:
        raise ValueError("original: roots differ in length")
    rest = _items(value, "rest", _bytes, 1, len(roots))
    if sum(map(len, rest)) > MAX_REST_BYTES:
        raise ValueError("original: rest is too long")
    if len(rest) == 1:
        rest *= len(roots)
    if len(rest) != len(roots) or len({len(one) for one in rest}) != 1:
        raise ValueError("original: rest is not of every rank")
    places, storages = _optional(value, "places", _place), _optional(value, "storages", _elements)
    if (places is None) != (storages is None):
        raise ValueError("original: places and storages do not belong together")
    return Original(
        params=_params(value["params"]),
        torch_layout=_one_of(value, "torch_layout", TORCH_LAYOUTS),
        container=_one_of(value, "container", get_args(Container)),
        location=_text(value["location"]),
        roots=roots,
        order=_optional(value, "order", _text),
        others=_others(value["others"]),
        places=places,
        storages=storages,
        rest=rest,
    )


def _optional(
    found: Mapping[str, Any], key: str, read: Callable[[object], _Item]
) -> tuple[_Item, ...] | None:
    return None if found[key] is None else _items(found, key, read, 1, _MAX_TENSORS)


def _items(
    found: Mapping[str, Any], key: str, read: Callable[[object], _Item], fewest: int, most: int
) -> tuple[_Item, ...]:
    value = found[key]
    if type(value) is not list or not fewest <= len(value) <= most:
        raise ValueError(f"original: {key} is not a list of {fewest} to {most}")
    return tuple(map(read, value))


def _one_of(found: Mapping[str, Any], key: str, known: Sequence[_Item]) -> _Item:
    value = found[key]
    if value not in known:
        raise ValueError(f"original: {key} is {shown(value)}")
    return known[known.index(value)]


def _params(value: object) -> str:
    if type(value) is not str or len(value) > MAX_PARAMS_CHARACTERS:
        raise ValueError("original: params is not the text of such a file")
    value.encode()  # a lone surrogate is a ValueError
    return value


def _text(value: object) -> str:
    if type(value) is not str or not 0 < len(value) <= _MAX_NAME_LENGTH:
        raise ValueError(f"original: {shown(value)} is not a name")
    return value


def _bytes(value: object) -> bytes:
    if type(value) is not str or len(value) > 2 * MAX_REST_BYTES or not _HEX.fullmatch(value):
        raise ValueError("original: rest is too long, or not hexadecimal")
    return bytes.fromhex(value)


def _place(value: object) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,5})\+([0-9]{1,13})", value) if type(value) is str else None
    if found is None:
        raise ValueError(f"original: {shown(value)} is not the place of a tensor")
    return int(found[1]), int(found[2])


def _elements(value: object) -> int:
    if type(value) is not int or not 0 < value <= _MAX_ELEMENTS:
        raise ValueError(f"original: {shown(value)} is not the size of a storage")
    return value


def _others(value: object) -> tuple[TensorSpec, ...]:
    if not isinstance(value, dict) or len(value) > _MAX_TENSORS:
        raise ValueError("original: others is not an object of tensors")
    return tuple(_other(name, one) for name, one in value.items())


def _other(name: str, value: object) -> TensorSpec:
    if not (
        _text(name).endswith(DROPPED_SUFFIX)
        and isinstance(value, dict)
        and value.keys() == {"dtype", "shape"}
        and type(value["dtype"]) is str
    ):
        raise ValueError(f"original: {shown(name)} is not a tensor that was left out")
    shape = _items(value, "shape", _elements, 0, _MAX_DIMENSIONS)
    if prod(shape) > MAX_REST_BYTES:
        raise ValueError(f"original: {shown(name)} is too large")
    return TensorSpec(name, dtype_named(value["dtype"]), shape)
