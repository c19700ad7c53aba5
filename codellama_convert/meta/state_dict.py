"""Own which entries of a pickle are the model's tensors, and what Meta calls them.

What other programs put around Meta's flat dict is taken off here: a dict around it, a prefix before
every name, buffers among the weights. What is passed over is never looked at.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from codellama_convert.errors import LayoutError, listed, shown
from codellama_convert.formats.pth.declared import Declared, items_of
from codellama_convert.formats.pth.pickle_names import OtherTensor, View
from codellama_convert.meta.foreign_tensors import is_foreign, refuse_foreign
from codellama_convert.model.tensor_table import DROPPED_SUFFIX

# A name as Meta's modules have it, and what stands before it.
_META_NAME = re.compile(r"(|.*?\.)(?:tok_embeddings|norm|output|layers\.[0-9]+)\..*", re.DOTALL)
# What reimplementations register beside the weights: karpathy/llama2.c (model.py), pytorch-labs/
# gpt-fast (model.py), pytorch-tpu/llama (model.py), transformers' rotary embedding. Each with what
# it has of a head: an angle for each pair of rows, a column for each pair or for each row, nothing.
_BUFFERS: dict[str, Literal["angle", "pair", "row"] | None] = {
    "inv_freq": "angle",
    "freqs_cis": "pair", "freqs_cos": "pair", "freqs_sin": "pair",
    "cos_cached": "row", "sin_cached": "row",
    "cache_k": "row", "cache_v": "row", "k_cache": "row", "v_cache": "row",
    "mask": None, "causal_mask": None,
}  # fmt: skip
_BUFFER = re.compile(rf"(?:.*\.)?(?:{'|'.join(_BUFFERS)})")
_MAX_LISTED, _MAX_SHOWN = 6, 60
_TENSORS = (View, OtherTensor)
# Modules that PyTorch puts around others, and that a state dict then names: FullyShardedDataParallel,
# checkpoint_wrapper, torch.compile.
_WRAPPER = re.compile(r"(?<=\.)(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
# torch.distributed.checkpoint's tutorial has the model under "app" and "model".
_MAX_DEPTH = 3
_Place = tuple[str | int | float, ...]  # keys, from the outside
_Level = dict[_Place, Any]
_Dicts = dict[_Place, Mapping[Any, Any]]


def find_state_dict(path: Path, top: Mapping[Any, Any]) -> Declared:
    """Find the model's tensors in what a file holds.

    Args:
        path: The file, for messages.
        top: Its pickle's dict; nothing of it was checked.

    Returns:
        The entries that must be tensors, by Meta's names; the buffers that are left out; and a note
        on everything that was taken off.

    Raises:
        LayoutError: If there are two dicts of tensors, some names have a prefix and others none, or
            a name shows another kind of model.
    """
    entries, notes = _unwrap(path, top)
    if not all(type(name) is str for name in entries):
        return Declared(entries)  # refused for it when the entries are looked at
    refuse_foreign(path, entries)
    prefix = _common_prefix(path, entries)
    if prefix:
        notes += (
            f"every tensor's name begins with {shown(prefix, _MAX_SHOWN)}, which was removed",
        )
        entries = {name.removeprefix(prefix): value for name, value in entries.items()}
    wrappers = sorted({found for name in entries for found in _WRAPPER.findall(name)})
    if wrappers:
        notes += (f"removed {_quoted(wrappers)} from the names of tensors",)
        entries = _without_wrappers(path, entries)
    dropped = {
        name: _plain_shape(value)
        for name, value in entries.items()
        if type(value) is View and _BUFFER.fullmatch(name)
    }
    if dropped:
        notes += (f"left out {_quoted(dropped)}: buffers computed from the sizes, not weights",)
        entries = {name: value for name, value in entries.items() if name not in dropped}
    return Declared(entries, dropped, notes)


def is_meta_tensor(name: str) -> bool:
    """Report whether a name is one of Meta's, or ends in one behind a dot."""
    return _META_NAME.fullmatch(name) is not None


def _plain_shape(view: View) -> tuple[int, ...]:
    """Return a shape of which nothing was checked; empty where it is not one."""
    shape = view.shape
    return shape if type(shape) is tuple and all(type(n) is int for n in shape) else ()


def head_size_of(name: str, shape: tuple[int, ...]) -> int | None:
    """Report the size of a head that a buffer shows.

    Args:
        name: Its name.
        shape: Its shape; empty where that is not known.

    Returns:
        The size; None where it shows none.
    """
    shows = _BUFFERS.get("inv_freq" if name.endswith(DROPPED_SUFFIX) else name.rpartition(".")[2])
    if not shape or shows is None:
        return None
    if shows == "angle":
        return 2 * shape[0] if len(shape) == 1 else None
    if shows == "pair":
        # Complex numbers may be stored as pairs of real ones.
        return 2 * (shape[-2] if len(shape) > 2 and shape[-1] == 2 else shape[-1])
    return shape[-1]


def _unwrap(path: Path, top: Mapping[Any, Any]) -> tuple[Mapping[Any, Any], tuple[str, ...]]:
    """Find the one dict of tensors that lies beside numbers, texts and a trainer's own state.

    Below the top's own dicts only the names of a model show it: optimizers have matrices there too.
    """
    level: _Level = {(key,): value for key, value in top.items()}
    dicts = _dicts_in(level)
    # The second kind is a model of which only norms have a dtype that can be read.
    wrapped = _those(dicts, _holds_matrix) or _those(dicts, _holds_other)
    if _is_itself_a_model(top, wrapped):
        return top, ()
    for _ in range(_MAX_DEPTH - 1):
        if wrapped:
            break
        level = _opened(level, dicts)
        dicts = _dicts_in(level)
        wrapped = _those(dicts, _holds_model)
    if not wrapped:
        return top, ()
    if len(wrapped) > 1:
        raise LayoutError(
            f"holds {len(wrapped)} dicts of tensors: {_quoted(map(_spelled, wrapped))}",
            path=path,
            hint="save the one that is the model as a file of its own",
        )
    ((place, items),) = wrapped.items()
    others = [_spelled(other) for other in level if other != place]
    passed_over = f"; ignored: {_quoted(others)}" if others else ""
    return items, (f"the tensors lie under {shown(_spelled(place), _MAX_SHOWN)}{passed_over}",)


def _dicts_in(level: _Level) -> _Dicts:
    return {
        place: items for place, value in level.items() if (items := items_of(value)) is not None
    }


def _opened(level: _Level, dicts: _Dicts) -> _Level:
    """Put what the dicts hold in their place; one that lies at several places is opened once."""
    first = {id(items): place for place, items in reversed(dicts.items())}
    inside = {
        (*place, key): value
        for place, items in dicts.items()
        if first[id(items)] == place
        for key, value in items.items()
    }
    return inside | {place: value for place, value in level.items() if place not in dicts}


def _those(dicts: _Dicts, is_wanted: Callable[[Mapping[Any, Any]], bool]) -> _Dicts:
    """Keep some of the dicts; one that a forged pickle has in many places is looked at once."""
    distinct = {id(items): items for items in dicts.values()}
    wanted = {key for key, items in distinct.items() if is_wanted(items)}
    return {place: items for place, items in dicts.items() if id(items) in wanted}


def _spelled(place: _Place) -> str | int | float:
    """Write where something lies; a single key stays what it is."""
    return place[0] if len(place) == 1 else ".".join(map(str, place))


def _is_itself_a_model(top: Mapping[Any, Any], wrapped: _Dicts) -> bool:
    """Report whether the tensors are those of the top, and the dicts in it something else's.

    A matrix beside a dict that has a model's names is state of the trainer's, such as that of a
    random number generator.
    """
    return _holds_model(top) or (
        (_holds_matrix(top) or _holds_other(top)) and not _those(wrapped, _names_a_model)
    )


def _holds_model(items: Mapping[Any, Any]) -> bool:
    return any(_is_of_a_model(name) for name, value in items.items() if type(value) in _TENSORS)


def _names_a_model(items: Mapping[Any, Any]) -> bool:
    return any(map(_is_of_a_model, items))


def _is_of_a_model(name: Any) -> bool:
    return type(name) is str and (is_meta_tensor(name) or is_foreign(name))


def _holds_other(items: Mapping[Any, Any]) -> bool:
    return any(type(value) is OtherTensor for value in items.values())


def _holds_matrix(items: Mapping[Any, Any]) -> bool:
    return any(
        type(value) is View and type(value.shape) is tuple and len(value.shape) > 1
        for value in items.values()
    )


def _common_prefix(path: Path, names: Iterable[str]) -> str:
    """Return what stands before every name; empty where nothing does."""
    found = Counter(match[1] for name in names if (match := _META_NAME.fullmatch(name)))
    prefix = max(found, key=lambda one: found[one], default="")
    if not prefix and len(found) < 2:
        return ""
    prefix = prefix or next(filter(None, found))
    bare = [name for name in names if not name.startswith(prefix)]
    if bare:
        raise LayoutError(
            f"some tensors' names begin with {shown(prefix, _MAX_SHOWN)}, and others do not: "
            f"{_quoted(bare)}",
            path=path,
            hint="save the model's state dict alone, with one prefix or none",
        )
    return prefix


def _without_wrappers(path: Path, entries: Mapping[str, Any]) -> Mapping[str, Any]:
    """Take the names of wrapping modules off that stand inside the names of tensors."""
    bare: dict[str, str] = {}
    for name in entries:
        other = bare.setdefault(_WRAPPER.sub("", name), name)
        if other is not name:
            raise LayoutError(
                f"holds both {shown(other, _MAX_SHOWN)} and {shown(name, _MAX_SHOWN)}, which are "
                "one tensor with and without the name of a wrapping module",
                path=path,
                hint="save the model's state dict alone",
            )
    return {name: entries[wrapped] for name, wrapped in bare.items()}


def _quoted(keys: Iterable[Any]) -> str:
    return listed([shown(key, _MAX_SHOWN) for key in keys], _MAX_LISTED)
