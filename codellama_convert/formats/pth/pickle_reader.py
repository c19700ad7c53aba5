"""Own the inert pickle machine: a pickle is read, and never run.

It keeps its own stack, yields plain values and tokens, and neither imports nor calls anything: a
call of a known constructor is matched by its shape, everything else is refused. So there is no
`find_class` to fool, and no scanner that could disagree with a loader.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Iterator
from typing import Any

from codellama_convert.errors import shown
from codellama_convert.formats.pth.pickle_beside import (
    A_FROZENSET,
    A_SET,
    INERT_OPCODES,
    TRAINERS_HINT,
    Inert,
)
from codellama_convert.formats.pth.pickle_names import (
    METAS_FILES_HINT,
    GlobalName,
    OrderedItems,
    RefusedPickle,
    declared,
    named,
    rebuilt,
)

# 70B in 8 ranks has 120 kB and 40,000 opcodes a rank; with this cap a forged pickle stays below
# some 20 MB, whatever it holds.
_MAX_OPCODES = 200_000
_MAX_INT_BITS = 64
_LARGE_INT = Inert("an integer of more than 64 bits")  # of random number generators
_MAX_PROTOCOL = 5  # since Python 3.8; no later one is known


def parse_pickle(pickled: bytes) -> Any:
    """Read a pickle without running it.

    Args:
        pickled: The content of data.pkl; protocols 2 to 5.

    Returns:
        Plain values, `View` for a tensor, `OrderedItems` for an OrderedDict, and `Inert` for what
        is no part of a weight, such as bytes.

    Raises:
        RefusedPickle: If it is damaged, or does what a weights file has no need of.
    """
    return _Machine().run(pickled)


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
            is_large = type(argument) is int and argument.bit_length() > _MAX_INT_BITS
            self._stack.append(_LARGE_INT if is_large else argument)
        elif name in _PUSH_CONSTANT:
            self._stack.append(_PUSH_CONSTANT[name])
        elif name in _PUSH_NEW:
            self._stack.append(_PUSH_NEW[name]())
        elif name in _TUPLE_SIZES:
            self._stack.append(tuple(self._pop_many(_TUPLE_SIZES[name])))
        elif name in _METHODS:
            _METHODS[name](self, argument)
        elif name == "PROTO" and argument > _MAX_PROTOCOL:
            raise RefusedPickle(f"it has the unknown protocol {argument}")

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise RefusedPickle("it is damaged (empty stack)")
        return self._stack.pop()

    def _pop_many(self, count: int) -> list[Any]:
        return [self._pop() for _ in range(count)][::-1]

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
            raise RefusedPickle("it is damaged (it appends to something that is not a list)")
        target.extend(values)

    def set_item(self, _: Any) -> None:
        self._update(self._pop_many(2))

    def set_items(self, _: Any) -> None:
        self._update(self._pop_to_mark())

    def _update(self, flat: list[Any]) -> None:
        target = self._top()
        content = target.content if type(target) is OrderedItems else target
        if type(content) is not dict or len(flat) % 2:
            raise RefusedPickle("it is damaged (it puts items into something that is not a dict)")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            # Optimizers number their states. Hashing a forged tuple of tuples takes for ever.
            if type(key) not in (str, int, float):
                raise RefusedPickle("a dict key is neither a string nor a number", TRAINERS_HINT)
            if key in content:
                raise RefusedPickle(f"the dict key {shown(key)} occurs twice")
            content[key] = value

    def add_items(self, _: Any) -> None:
        self._pop_to_mark()
        if self._top() is not A_SET:
            raise RefusedPickle("it is damaged (it adds items to something that is not a set)")

    def frozen_set(self, _: Any) -> None:
        self._pop_to_mark()
        self._stack.append(A_FROZENSET)

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
        after = self._stack[-1] if self._stack and type(self._stack[-1]) is str else None
        self._stack.append(named(module, name, after=after))

    def persistent_id(self, _: Any) -> None:
        match self._pop():
            case (
                "storage",
                GlobalName() as storage_class,
                str(key),
                str(place),
                int(n_elements),
            ) if (
                type(n_elements) is int
                and n_elements >= 0
                and len(key) <= 20
                and key.isascii()
                and key.isdigit()
            ):
                if place == "meta":
                    raise RefusedPickle(
                        f"storage {key} was saved on the device 'meta', without its values",
                        METAS_FILES_HINT,
                    )
                storage = declared(storage_class, key, n_elements, place)
                if storage is not None:
                    self._stack.append(storage)
                    return
        raise RefusedPickle("a storage is declared in an unknown way")

    def reduce(self, _: Any) -> None:
        called, arguments = self._pop_many(2)
        if type(called) is not GlobalName or type(arguments) is not tuple:
            raise RefusedPickle("it calls something that is not a function")
        self._stack.append(rebuilt(called, arguments))

    def build(self, _: Any) -> None:
        target, state = self._pop_many(2)
        if type(target) is not OrderedItems or type(state) is not dict:
            raise RefusedPickle("it sets the state of something that has none")
        # torch.save of a state dict attaches the versions of its modules, of which Llama's have
        # none. Any other attribute could stand in front of the dict's own, such as `items`.
        unknown = [name for name in state if name != "_metadata"]
        if unknown:
            raise RefusedPickle(
                f"it sets the attribute {shown(unknown[0])} of a dict", METAS_FILES_HINT
            )
        self._stack.append(target)


_NO_OPERATION = frozenset({"PROTO", "FRAME"})
_PUSH_ARGUMENT = frozenset(
    {
        "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT",
        "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    }
)  # fmt: skip
_PUSH_CONSTANT: dict[str, Any] = {
    "MARK": _MARK, "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (),
    **INERT_OPCODES,
}  # fmt: skip
_PUSH_NEW: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_TUPLE_SIZES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_METHODS: dict[str, Callable[[_Machine, Any], None]] = {
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
    "ADDITEMS": _Machine.add_items,
    "FROZENSET": _Machine.frozen_set,
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
