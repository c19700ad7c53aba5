"""Own what programs save beside a model's tensors: what is skipped, and which names are refused.

What is skipped becomes a token that names its kind and holds none of its content. Nothing is imported.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Inert:
    """The place of a value that is not a weight, and whose content is not kept.

    Attributes:
        what: Its kind, for a message.
    """

    what: str


# Calls that build a value from plain values and run no code of theirs; torch.load(weights_only=True)
# allows them too. Source: torch/_weights_only_unpickler.py (`_get_allowed_globals`). Protocol 2, which
# torch.save writes, spells sets and bytes as calls; later protocols have opcodes for them.
_BUILTIN_CALLS = {"set": "a set", "frozenset": "a frozenset", "bytes": "bytes", "bytearray": "a bytearray"}  # fmt: skip
INERT_CALLS: dict[tuple[str, str], Inert] = {
    **{
        (module, name): Inert(what)
        for module in ("builtins", "__builtin__")
        for name, what in _BUILTIN_CALLS.items()
    },
    ("_codecs", "encode"): Inert("bytes"),
    ("collections", "Counter"): Inert("a Counter"),
    ("torch", "Size"): Inert("a torch.Size"),
    ("torch", "device"): Inert("a torch.device"),
}
A_SET, A_FROZENSET = Inert("a set (opcode EMPTY_SET)"), Inert("a frozenset (opcode FROZENSET)")
INERT_OPCODES: dict[str, Inert] = {
    "EMPTY_SET": A_SET,
    **{
        name: Inert(f"bytes (opcode {name})")
        for name in ("SHORT_BINBYTES", "BINBYTES", "BINBYTES8")
    },
    "BYTEARRAY8": Inert("a bytearray (opcode BYTEARRAY8)"),
}
# Names that are values by themselves.
INERT_NAMES = frozenset(
    ("torch", name)
    for name in (
        "bfloat16", "float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64",
        "bool", "complex64", "complex128",
    )
)  # fmt: skip

# Objects of the standard library and numpy that training programs save: to build them, code would
# have to run.
_OF_TRAINERS = frozenset(
    {
        ("argparse", "Namespace"),
        ("types", "SimpleNamespace"),
        ("collections", "defaultdict"),
        ("collections", "deque"),
        ("datetime", "datetime"),
        ("datetime", "timedelta"),
        *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        *((module, name) for module in ("numpy.core.multiarray", "numpy._core.multiarray") for name in ("scalar", "_reconstruct")),
    }
)  # fmt: skip
_OF_PYTHON = sys.stdlib_module_names | {"__builtin__", "copy_reg", "posix", "nt"}
_MAX_SHOWN = 80
TRAINERS_HINT = (
    "it is a trainer's file, or malicious: something else lies beside the model's tensors, or around "
    "them. Nothing was executed; if you trust it, load it and save the model's state dict alone"
)


def refusal_of(pair: tuple[str, str], *, after: str | None = None) -> tuple[str, str]:
    """Say why a name is refused, and what to do.

    Args:
        pair: Module and name, as the pickle says.
        after: The text before it: its key, if it is a value of a dict.

    Returns:
        The message and the hint.
    """
    quoted = ".".join(pair)[:_MAX_SHOWN]
    where = f" after {after[:_MAX_SHOWN]!r}" if after else ""
    if pair in _OF_TRAINERS or _is_a_class_of_a_program(pair):
        return f"refers to {quoted!r}{where}, which no weights need", TRAINERS_HINT
    return (
        f"refers to {quoted!r}{where}, which is not allowed in a weights file",
        "the file may be malicious. Nothing was executed",
    )


def _is_a_class_of_a_program(pair: tuple[str, str]) -> bool:
    """Report whether a name looks like a class of a training program or a library of one.

    This changes the wording of the refusal only.
    """
    module, name = pair
    last = name.rpartition(".")[2]
    is_class = last.isidentifier() and last[0].isupper()
    return is_class and bool(module) and module.partition(".")[0] not in _OF_PYTHON
