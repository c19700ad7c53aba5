"""Own the inert pickle machine; know nothing of files or models, and never run a pickle.

It keeps its own stack, yields plain values and tokens, and neither imports nor calls anything: a
call of a known constructor is matched by its shape, everything else is refused. So there is no
`find_class` to fool, and no scanner that could disagree with a loader.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from codellama_convert.tensors import DTYPES, Dtype

# 70B in 8 ranks has 120 kB and 40,000 opcodes a rank; with this cap a forged pickle stays below
# some 20 MB, whatever it holds.
_MAX_OPCODES = 200_000
_MAX_INT_BITS = 64
_MAX_PROTOCOL = 5  # since Python 3.8; no later one is known

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
        "tensor_v3", "qtensor", "sparse_tensor", "sparse_csr_tensor", "nested_tensor",
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


@dataclass(frozen=True, slots=True)
class View:
    """A tensor as the pickle declares it, nothing checked yet."""

    storage: DeclaredStorage
    storage_offset: Any
    shape: Any
    strides: Any


@dataclass(frozen=True, slots=True)
class DeclaredStorage:
    """A storage as the pickle declares it."""

    dtype: Dtype | str
    key: str
    n_elements: int


@dataclass(frozen=True, slots=True)
class GlobalName:
    """A name that the pickle refers to: a token, nothing is imported."""

    module: str
    name: str


def parse_pickle(pickled: bytes) -> Any:
    """Read a pickle without running it.

    Args:
        pickled: The content of data.pkl; protocols 2 to 5.

    Returns:
        Plain values, `View` for a tensor and `OrderedItems` for an OrderedDict.

    Raises:
        RefusedPickle: If it is damaged, or does what a weights file has no need of.
    """
    return _Machine().run(pickled)


class RefusedPickle(Exception):  # noqa: N818 - the reader of the file adds its path and raises
    """The pickle does something that a weights file has no need of."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class OrderedItems:
    """An OrderedDict: its items; an attached state (`_metadata` of a state dict) is dropped."""

    __slots__ = ("content",)

    def __init__(self) -> None:
        self.content: dict[str, Any] = {}


class _Mark:
    __slots__ = ()


_MARK = _Mark()


def _opcodes(pickled: bytes) -> Iterator[tuple[str, Any]]:
    """Yield each opcode's name and argument up to STOP.

    An argument is decoded only after its opcode is known to be allowed: `pickletools.genops` would
    spend minutes on the decimal digits of one integer before it says what it found.
    """
    stream = io.BytesIO(pickled)
    for _ in range(_MAX_OPCODES):
        code = stream.read(1).decode("latin-1")
        opcode = _OPCODES.get(code)
        if opcode is None:
            raise ValueError(f"unknown opcode {code!r}" if code else "it has no end")
        if opcode.name == "STOP":
            return
        if opcode.name not in _ALLOWED:
            argument = opcode.arg.reader(stream) if opcode.name == "INST" and opcode.arg else ""
            raise _not_allowed(opcode.name, argument)
        yield opcode.name, opcode.arg.reader(stream) if opcode.arg else None
    raise RefusedPickle("it has more opcodes than any model needs")


def _not_allowed(name: str, argument: str) -> RefusedPickle:
    quoted = argument.replace(" ", ".", 1)[:80]
    what = f"refers to {quoted!r}, which" if name == "INST" else f"opcode {name}"
    return RefusedPickle(
        f"{what} is not allowed in a weights file",
        "the file may be malicious. Nothing was executed",
    )


class _Machine:
    """A pickle machine that builds plain values and tokens, and nothing else."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, pickled: bytes) -> Any:
        """Run the opcodes to STOP and give the one value left."""
        try:
            for name, argument in _opcodes(pickled):
                self._step(name, argument)
        except (ValueError, OverflowError) as problem:
            # What pickletools says of torn input can quote all of it.
            raise RefusedPickle(f"it is damaged ({str(problem)[:80]})") from None
        if len(self._stack) != 1 or self._stack[0] is _MARK:
            raise RefusedPickle("it is damaged (unbalanced stack)")
        return self._stack[0]

    def _step(self, name: str, argument: Any) -> None:
        if name in _PUSH_ARGUMENT:
            if type(argument) is int and argument.bit_length() > _MAX_INT_BITS:
                raise RefusedPickle("an integer is larger than any size of a tensor")
            self._stack.append(argument)
        elif name in _PUSH_CONSTANT:
            self._stack.append(_PUSH_CONSTANT[name])
        elif name in _PUSH_NEW:
            self._stack.append(_PUSH_NEW[name]())
        elif name in _TUPLE_SIZES:
            self._stack.append(tuple(self._pop_many(_TUPLE_SIZES[name])))
        elif name in _METHODS:
            _METHODS[name](self, argument)
        elif name == "PROTO" and argument > _MAX_PROTOCOL:
            raise RefusedPickle(f"it is of the unknown protocol {argument}")

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise RefusedPickle("it is damaged (empty stack)")
        return self._stack.pop()

    def _pop_many(self, count: int) -> list[Any]:
        values = [self._pop() for _ in range(count)]
        values.reverse()
        return values

    def _pop_to_mark(self) -> list[Any]:
        values: list[Any] = []
        while self._stack:
            value = self._stack.pop()
            if value is _MARK:
                values.reverse()
                return values
            values.append(value)
        raise RefusedPickle("it is damaged (no mark)")

    def tuple_to_mark(self, _: Any) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def memo_put(self, key: Any) -> None:
        value = self._pop()
        self._memo[len(self._memo) if key is None else key] = value
        self._stack.append(value)

    def memo_get(self, key: Any) -> None:
        if key not in self._memo:
            raise RefusedPickle("it is damaged (unknown memo key)")
        self._stack.append(self._memo[key])

    def append(self, _: Any) -> None:
        self._extend([self._pop()])

    def appends(self, _: Any) -> None:
        self._extend(self._pop_to_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is not list:
            raise RefusedPickle("it is damaged (append to no list)")
        target.extend(values)

    def set_item(self, _: Any) -> None:
        self._update(self._pop_many(2))

    def set_items(self, _: Any) -> None:
        self._update(self._pop_to_mark())

    def _update(self, flat: list[Any]) -> None:
        target = self._top()
        content = target.content if type(target) is OrderedItems else target
        if type(content) is not dict or len(flat) % 2:
            raise RefusedPickle("it is damaged (items for no dict)")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            # Only strings: hashing a forged tuple of tuples takes for ever.
            if type(key) is not str:
                raise RefusedPickle("a dict key is not a string")
            if key in content:
                raise RefusedPickle(f"the dict key {key[:80]!r} occurs twice")
            content[key] = value

    def _top(self) -> Any:
        if not self._stack:
            raise RefusedPickle("it is damaged (empty stack)")
        return self._stack[-1]

    def refer_to(self, argument: Any) -> None:
        module, _, name = str(argument).partition(" ")
        self._refer(module, name)

    def stack_global(self, _: Any) -> None:
        module, name = self._pop_many(2)
        if type(module) is not str or type(name) is not str:
            raise RefusedPickle("it is damaged (a global's name is not a string)")
        self._refer(module, name)

    def _refer(self, module: str, name: str) -> None:
        pair = (module, name)
        if pair in _OTHER_REBUILDERS:
            raise RefusedPickle(
                f"a tensor of an unsupported kind ({name}); expected plain bfloat16, float16 or "
                "float32",
                "use the files that Meta released",
            )
        known = pair in _REBUILDERS or pair in _TENSOR_TYPES or pair in _STORAGES
        if not known and pair not in _OTHER_STORAGES and pair != _ORDERED_DICT:
            quoted = f"{module}.{name}"[:80]
            raise RefusedPickle(
                f"refers to {quoted!r}, which is not allowed in a weights file",
                "the file may be malicious. Nothing was executed",
            )
        self._stack.append(GlobalName(module, name))

    def persistent_id(self, _: Any) -> None:
        match self._pop():
            case ("storage", GlobalName(module, name), str(key), str(), int(n_elements)) if (
                type(n_elements) is int
                and n_elements >= 0
                and len(key) <= 20
                and key.isascii()
                and key.isdigit()
            ):
                pair = (module, name)
                if pair in _STORAGES:
                    self._stack.append(DeclaredStorage(_STORAGES[pair], key, n_elements))
                    return
                if pair in _OTHER_STORAGES:
                    self._stack.append(DeclaredStorage(name, key, n_elements))
                    return
        raise RefusedPickle("a storage is declared in an unknown way")

    def reduce(self, _: Any) -> None:
        called, arguments = self._pop_many(2)
        if type(called) is not GlobalName or type(arguments) is not tuple:
            raise RefusedPickle("it calls something that is no function")
        self._stack.append(_rebuild((called.module, called.name), arguments))

    def build(self, _: Any) -> None:
        target, state = self._pop_many(2)
        # torch.save of a state dict attaches `_metadata`; it says nothing about the weights.
        if type(target) is not OrderedItems or type(state) is not dict:
            raise RefusedPickle("it sets the state of something that has none")
        self._stack.append(target)

    def push_mark(self, _: Any) -> None:
        self._stack.append(_MARK)


def _rebuild(function: tuple[str, str], arguments: tuple[Any, ...]) -> Any:
    """Give what a known constructor would build, as a token."""
    name = function[1]
    if function == _ORDERED_DICT and not arguments:
        return OrderedItems()
    if function in _REBUILDERS:
        match name, arguments:
            case "_rebuild_tensor_v2", (
                DeclaredStorage() as storage,
                offset,
                shape,
                strides,
                *rest,
            ):
                if len(rest) in (2, 3):  # requires_grad, backward_hooks[, metadata]
                    return View(storage, offset, shape, strides)
            case "_rebuild_parameter", (View() as view, _, _):
                return view
            case "_rebuild_parameter_with_state", (View() as view, _, _, _):
                return view
            case "_rebuild_from_type_v2", (
                GlobalName() as inner,
                GlobalName(),
                tuple(inner_arguments),
                _,
            ):
                # A subclass of Tensor with attributes: the inner call holds all of its values.
                if inner.name != name:
                    return _rebuild((inner.module, inner.name), inner_arguments)
    raise RefusedPickle(f"calls {'.'.join(function)} in an unknown way")


_NO_OPERATION = frozenset({"PROTO", "FRAME"})
_PUSH_ARGUMENT = frozenset(
    {
        "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT",
        "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    }
)  # fmt: skip
_PUSH_CONSTANT: dict[str, Any] = {
    "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (),
}  # fmt: skip
_PUSH_NEW: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_TUPLE_SIZES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_METHODS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.push_mark,
    "TUPLE": _Machine.tuple_to_mark,
    "BINPUT": _Machine.memo_put,
    "LONG_BINPUT": _Machine.memo_put,
    "MEMOIZE": _Machine.memo_put,
    "BINGET": _Machine.memo_get,
    "LONG_BINGET": _Machine.memo_get,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.refer_to,
    "STACK_GLOBAL": _Machine.stack_global,
    "BINPERSID": _Machine.persistent_id,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}
_ALLOWED = frozenset(
    {*_NO_OPERATION, *_PUSH_ARGUMENT, *_PUSH_CONSTANT, *_PUSH_NEW, *_TUPLE_SIZES, *_METHODS}
)
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
