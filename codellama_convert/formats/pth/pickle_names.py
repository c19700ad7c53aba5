"""Own the names that a weights file may refer to, and what each of them would build.

Nothing here is imported or called: a name becomes a token, a call of a known constructor is matched
by its shape.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from codellama_convert.formats.pth.pickle_beside import INERT_CALLS, INERT_NAMES, refusal_of
from codellama_convert.tensors import DTYPES, Dtype

# The exact names a weights file may refer to; source: torch/_weights_only_unpickler.py
# (`_get_allowed_globals`) and torch/_utils.py (`_rebuild_*`), of PyTorch 1.6 to 2.13.
_TENSOR_TYPES = frozenset(
    {("torch", "Tensor"), ("torch.nn.parameter", "Parameter"), ("torch._tensor", "Tensor")}
)
_REBUILDERS = frozenset(
    ("torch._utils", name)
    for name in (
        "_rebuild_tensor_v2",
        "_rebuild_parameter",
        "_rebuild_parameter_with_state",
    )
) | {("torch._tensor", "_rebuild_from_type_v2")}
_ORDERED_DICT = ("collections", "OrderedDict")
_STORAGES = {("torch", dtype.storage): dtype for dtype in DTYPES}
# Known to be harmless, so the error can name them; none of them makes a model's weight.
_OTHER_REBUILDERS = frozenset(
    ("torch._utils", f"_rebuild_{name}")
    for name in (
        "qtensor", "sparse_tensor", "sparse_csr_tensor", "nested_tensor",
        "meta_tensor_no_storage", "wrapper_subclass", "device_tensor_from_numpy",
    )
)  # fmt: skip
_OTHER_STORAGES = frozenset(
    ("torch", f"{name}Storage")
    for name in (
        "Double", "Long", "Int", "Short", "Char", "Byte", "Bool", "ComplexFloat", "ComplexDouble",
        "QInt8", "QUInt8", "QInt32", "Untyped",
    )
) | {("torch.storage", "UntypedStorage"), ("torch.storage", "TypedStorage")}  # fmt: skip


# What holds its dtype as a name, where torch has no storage class for it; source: torch/_tensor.py.
_REBUILD_V3 = ("torch._utils", "_rebuild_tensor_v3")
_OTHER_DTYPES = frozenset(
    ("torch", name)
    for name in (
        "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
        "float4_e2m1fn_x2", "uint16", "uint32", "uint64",
    )
)  # fmt: skip
_KNOWN = (
    frozenset({_ORDERED_DICT, _REBUILD_V3})
    | _REBUILDERS
    | _TENSOR_TYPES
    | _STORAGES.keys()
    | _OTHER_STORAGES
    | _OTHER_DTYPES
    | INERT_CALLS.keys()
    | INERT_NAMES
)

METAS_FILES_HINT = "use the files that Meta released"
# A parameter of a subclass takes three calls, with two extras each; more calls are forged.
_MAX_EXTRAS = 6
_MAX_SHOWN = 80


class Extra(NamedTuple):
    """An argument beside those that place a tensor.

    torch applies it: `metadata` can negate every value, a `state` can replace them, so only an
    empty one is harmless.
    """

    function: str
    argument: str
    value: Any

    @property
    def content(self) -> str | None:
        """What it holds, for a message; None where it is empty and torch applies nothing."""
        value = self.value.content if type(self.value) is OrderedItems else self.value
        if value is None or (type(value) in (dict, list, tuple) and not value):
            return None
        return repr(next(iter(value)))[:_MAX_SHOWN] if type(value) is dict else "a value"


@dataclass(frozen=True, slots=True)
class View:
    """A tensor as the pickle declares it, nothing checked yet.

    Attributes:
        storage: What it is a view of.
        storage_offset: Elements before the first one.
        shape: Elements along each dimension.
        strides: Elements to step along each dimension.
        extras: What else its constructors were given. A later opcode can still fill these, so
            they are looked at when the pickle has ended.
    """

    storage: DeclaredStorage
    storage_offset: Any
    shape: Any
    strides: Any
    extras: tuple[Extra, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class OtherTensor:
    """A tensor that no weight may be: of a dtype without a storage class.

    Attributes:
        what: Its kind, for a message.
        hint: What to do where it is one of the model's.
    """

    what: str
    hint: str


@dataclass(frozen=True, slots=True)
class DeclaredStorage:
    """A storage as the pickle declares it; `location` is the device that it was saved from."""

    dtype: Dtype | str
    key: str
    n_elements: int
    location: str = "cpu"


@dataclass(frozen=True, slots=True)
class GlobalName:
    """A name that the pickle refers to: a token, nothing is imported."""

    module: str
    name: str


class RefusedPickle(Exception):  # noqa: N818 - the reader of the file adds its path and raises
    """The pickle does something that a weights file has no need of."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class OrderedItems:
    """An OrderedDict: its items; an attached state (`_metadata` of a state dict) is dropped."""

    __slots__ = ("content",)

    def __init__(self) -> None:
        self.content: dict[Any, Any] = {}


def named(module: str, name: str, *, after: str | None = None) -> GlobalName:
    """Return the token of a name.

    Args:
        module: As the pickle says.
        name: As the pickle says.
        after: The text before it, for a message.

    Returns:
        The token; nothing is imported.

    Raises:
        RefusedPickle: If a weights file has no need of it.
    """
    pair = (module, name)
    if pair in _OTHER_REBUILDERS:
        raise RefusedPickle(
            f"a tensor of an unsupported kind ({name}); expected plain bfloat16, float16 or float32",
            METAS_FILES_HINT,
        )
    if pair not in _KNOWN:
        raise RefusedPickle(*refusal_of(pair, after=after))
    return GlobalName(module, name)


def declared(
    storage_class: GlobalName, key: str, n_elements: int, location: str
) -> DeclaredStorage | None:
    """Return a storage as it is declared; None where the name is no storage's."""
    pair = (storage_class.module, storage_class.name)
    if pair in _STORAGES:
        return DeclaredStorage(_STORAGES[pair], key, n_elements, location)
    if pair in _OTHER_STORAGES:
        return DeclaredStorage(storage_class.name, key, n_elements, location)
    return None


def rebuilt(called: GlobalName, arguments: tuple[Any, ...]) -> Any:
    """Return what a known constructor would build.

    Args:
        called: The constructor.
        arguments: Its arguments, as tokens and plain values.

    Returns:
        A `View`, `OrderedItems`, an `OtherTensor` or what is `Inert`.

    Raises:
        RefusedPickle: If it is not called as torch does.
    """
    function = (called.module, called.name)
    if function == _ORDERED_DICT and not arguments:
        return OrderedItems()
    if function == _REBUILD_V3:
        return _of_another_dtype(called.name, arguments)
    if function in INERT_CALLS:
        return INERT_CALLS[function]
    view = _rebuilt_view(called.name, arguments) if function in _REBUILDERS else None
    if view is None:
        raise RefusedPickle(f"calls {'.'.join(function)} in an unknown way")
    return view


def _of_another_dtype(name: str, arguments: tuple[Any, ...]) -> OtherTensor:
    """Name the dtype of a tensor that has one of the newer ones."""
    names = [one.name for one in arguments if type(one) is GlobalName and one.module == "torch"]
    of_dtype = f"{name} of dtype {names[-1]}" if names else name
    is_fp8 = bool(names) and names[-1].startswith(("float8", "float4"))
    return OtherTensor(
        f"a tensor of an unsupported kind ({of_dtype})",
        "these are quantised weights: use those that they were made from"
        if is_fp8
        else METAS_FILES_HINT,
    )


def _rebuilt_view(name: str, arguments: tuple[Any, ...]) -> View | None:
    """Match a constructor of a tensor by its arguments; None where torch does not call it so.

    `requires_grad` says nothing about the values, so it may be either.
    """
    match name, arguments:
        case "_rebuild_tensor_v2", (
            DeclaredStorage() as storage,
            offset,
            shape,
            strides,
            bool(),
            hooks,
            *metadata,
        ) if len(metadata) <= 1:
            view = View(storage, offset, shape, strides)
            extras = {"backward_hooks": hooks, "metadata": metadata[0] if metadata else None}
        case "_rebuild_parameter", (View() as view, bool(), hooks):
            extras = {"backward_hooks": hooks}
        case "_rebuild_parameter_with_state", (View() as view, bool(), hooks, state):
            extras = {"backward_hooks": hooks, "state": state}
        case "_rebuild_from_type_v2", (
            GlobalName() as inner,
            GlobalName() as kind,
            tuple(inner_arguments),
            state,
        ) if inner.name != name and (kind.module, kind.name) in _TENSOR_TYPES:
            rebuilt_inside = rebuilt(inner, inner_arguments)
            if type(rebuilt_inside) is not View:
                return None
            view, extras = rebuilt_inside, {"state": state}
        case _:
            return None
    named_extras = tuple(Extra(name, argument, value) for argument, value in extras.items())
    if len(view.extras) + len(named_extras) > _MAX_EXTRAS:
        return None
    return replace(view, extras=view.extras + named_extras)
