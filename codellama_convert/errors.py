"""Own every problem that a user can act on; know nothing of how it is found or printed.

ConvertError
├── CheckpointError    an input file is missing, damaged, hostile or of another kind
│   └── LayoutError    the tensors found are not the ones that the model needs
├── ConfigError        params.json, or an option that contradicts it
├── TokenizerError     tokenizer.model, or its use
├── CastError          a value that the wanted dtype cannot hold
├── OutputError        the output folder cannot be written
├── VerifyError        the output differs from the source
└── Interrupted        a signal asked us to stop
"""

from __future__ import annotations

import os


def one_line(text: str) -> str:
    """Escape what does not print: a hostile name must not forge a second line or a terminal escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: object, limit: int = 80) -> str:
    """Write a value that came from outside for a message, whatever its size and depth."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    except ValueError:  # an int of more digits than Python writes
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= limit else f"{text[:limit]}..."


class ConvertError(Exception):
    """A problem with what we were given, told in one line: what, where, what to do.

    Attributes:
        message: What happened, with the tensor and both values where there are any.
        path: The file or folder it happened in.
        hint: What the user can do about it.
    """

    def __init__(
        self, message: str, *, path: str | os.PathLike[str] | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.hint = hint

    def __str__(self) -> str:
        where = f"{os.fspath(self.path)}: " if self.path is not None else ""
        what_to_do = f"; {self.hint}" if self.hint else ""
        return one_line(f"{where}{self.message}{what_to_do}")


class CheckpointError(ConvertError):
    """An input file is missing, damaged, hostile or of another kind."""


class LayoutError(CheckpointError):
    """The tensors found are not the ones that the model needs."""


class ConfigError(ConvertError):
    """params.json, or an option that contradicts it."""


class TokenizerError(ConvertError):
    """tokenizer.model is damaged or of another kind, or is used for what it cannot do."""


class CastError(ConvertError):
    """A value that the wanted dtype cannot hold."""


class OutputError(ConvertError):
    """The output folder cannot be written."""


class VerifyError(ConvertError):
    """The output differs from its source."""


class Interrupted(ConvertError):  # noqa: N818 - not an error, but it ends the run the same way
    """A signal asked us to stop; what is staged is kept.

    Attributes:
        signal_number: The signal; the exit status is 128 + it.
    """

    def __init__(self, message: str, *, signal_number: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.signal_number = signal_number
