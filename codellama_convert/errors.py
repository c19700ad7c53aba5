"""Own every problem that a user can act on.

ConvertError
├── CheckpointError    an input file is missing, damaged, hostile or of another kind
│   └── LayoutError    the tensors found are not the ones that the model needs
├── ConfigError        params.json or config.json, or an option that contradicts it
├── TokenizerError     tokenizer.model, or its use
├── CastError          a value that the wanted dtype cannot hold
├── OutputError        the output folder cannot be written
├── VerifyError        the output differs from the source
├── WorkerError        a worker of an executor died, or its run is over
└── Interrupted        a signal asked us to stop
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

# Room for the longest path of a system, and what is said of it.
_MAX_LINE = 6000
_CUT = " [...] "
# Of one machine and one moment: it has too much open or too little memory, or its mount is stale.
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)


def one_line(text: str) -> str:
    """Write a text as one line that does no more than print, whatever names it quotes.

    All that reaches a terminal or a file as text passes here: a name must not forge a second line,
    move the cursor, reorder what stands beside it, or fail to print because it is not UTF-8.

    Args:
        text: Our words, with names, values and system messages from outside.

    Returns:
        The text with everything escaped that is not printable (controls, format characters such as
        bidirectional overrides, line separators, bytes of names that are not UTF-8), without its
        middle where it is very long.
    """
    line = "".join(c if c.isprintable() else _escaped(c) for c in text)
    if len(line) <= _MAX_LINE:
        return line
    kept = (_MAX_LINE - len(_CUT)) // 2
    return f"{line[:kept]}{_CUT}{line[-kept:]}"


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as Python spells it in names
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def shown(value: object, limit: int = 80) -> str:
    """Write a value that came from outside for a message, whatever its size and depth."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    except ValueError:  # an int of more digits than Python writes
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= limit else f"{text[:limit]}..."


def listed(names: Sequence[str], limit: int = 8) -> str:
    """Write names for a message, the first ones where they are many."""
    text = ", ".join(names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"


def and_others(names: Sequence[str]) -> str:
    """Say after the first name of several how many there are besides; nothing where it is alone."""
    n_others = len(names) - 1
    if n_others == 0:
        return ""
    return f" (and {n_others} {'other' if n_others == 1 else 'others'})"


class ConvertError(Exception):
    """A problem with what we were given, told in one line: what, where, what to do.

    It can be sent from one process to another, and is the same there but for its `__cause__`.

    Attributes:
        message: What happened, with the tensor and both values where there are any.
        path: The file or folder it happened in.
        hint: What the user can do about it.
    """

    _can_resume = False
    _may_pass = False

    def __init__(
        self, message: str, *, path: str | os.PathLike[str] | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.hint = hint

    @property
    def can_resume(self) -> bool:
        """Whether what is whole so far is worth keeping: the same command may get to its end.

        It may after a signal, on a disk that was full, or when the source can be read again; not
        where the source is damaged or a value cannot be cast.
        """
        return self._can_resume or isinstance(self.__cause__, OSError)

    @property
    def may_pass(self) -> bool:
        """Whether another machine, or the same one a moment later, may not have the problem."""
        cause = self.__cause__
        return self._may_pass or (isinstance(cause, OSError) and cause.errno in _PASSING)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions are made again from their arguments, which lack what is given by keyword; and
        # pools put another cause in the place of the one that says whether a run can be resumed.
        state = {**self.__dict__, "_can_resume": self.can_resume, "_may_pass": self.may_pass}
        return _made_again, (type(self), self.args), state

    def __str__(self) -> str:
        where = f"{os.fspath(self.path)}: " if self.path is not None else ""
        what_to_do = f"; {self.hint}" if self.hint else ""
        return one_line(f"{where}{self.message}{what_to_do}")


def _made_again(kind: type[ConvertError], arguments: tuple[object, ...]) -> ConvertError:
    return kind.__new__(kind, *arguments)


class CheckpointError(ConvertError):
    """An input file is missing, damaged, hostile or of another kind."""


class LayoutError(CheckpointError):
    """The tensors found are not the ones that the model needs."""


class ConfigError(ConvertError):
    """params.json or config.json, or an option that contradicts it."""


class TokenizerError(ConvertError):
    """tokenizer.model is damaged or of another kind, or is used for what it cannot do."""


class CastError(ConvertError):
    """A value that the wanted dtype cannot hold."""


class OutputError(ConvertError):
    """The output folder cannot be written."""

    _can_resume = True


class VerifyError(ConvertError):
    """The output differs from its source."""


class WorkerError(ConvertError):
    """A worker of an executor died, or works for a run that is over; what is whole is kept."""

    _can_resume = True


class Interrupted(ConvertError):  # noqa: N818 - not an error, but it ends the run the same way
    """A signal asked us to stop; what is staged is kept.

    Attributes:
        signal_number: The signal; the exit status is 128 + it.
    """

    _can_resume = True

    def __init__(self, message: str, *, signal_number: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.signal_number = signal_number
