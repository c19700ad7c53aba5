"""Own what a user may ask of a run: how the output folder is treated, and what is done besides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codellama_convert.arguments import FLAG, FUNCTION, check_fields, or_none
from codellama_convert.choices import TOKENIZER_ONLY
from codellama_convert.errors import ConfigError
from codellama_convert.plan.options import Options, refuse_contradictions
from codellama_convert.storage.watch import Watch

if TYPE_CHECKING:
    from codellama_convert.plan.ranks.options import ReverseOptions


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How the output folder is treated, and what is done besides writing.

    Attributes:
        overwrite: Whether a model that it holds may be replaced.
        restart: Whether staged work is dropped.
        sha256: Whether conversion.json gets the SHA-256 of every file, at one more reading.
        model_card: Whether the output gets a README.md about the model.
        check_source: Called before any weight is read, when nothing stands in the way of writing, and
            with what it is to report its work to, which may stop it; it returns notes. None
            compares the ranks with Meta's list where the job's options ask for it.
        check_staged: Called with the staged folder before anything is published, or with the output
            folder where all was done before; and with what it is to report its work to, which may
            stop it.

    Raises:
        ConfigError: With the field's name, its value, and what is allowed.
    """

    overwrite: bool = False
    restart: bool = False
    sha256: bool = False
    model_card: bool = False
    check_source: Callable[[Any, Watch], tuple[str, ...]] | None = None
    check_staged: Callable[[Any, Path, Watch], None] | None = None

    def __post_init__(self) -> None:
        check_fields(self, _RULES)


_RULES = {
    "overwrite": FLAG,
    "restart": FLAG,
    "sha256": FLAG,
    "model_card": FLAG,
    "check_source": or_none(FUNCTION),
    "check_staged": or_none(FUNCTION),
}


def refuse_unused(options: Options | ReverseOptions, run_options: RunOptions) -> None:
    """Refuse to ask for what such a conversion does not write.

    Raises:
        ConfigError: If one of the options would be ignored.
    """
    if not isinstance(options, Options):
        if run_options.model_card:
            raise ConfigError(
                "model_card describes a Hugging Face folder, and ranks are written",
                hint="leave it out",
            )
        return
    alone = options.model_size == TOKENIZER_ONLY
    refuse_contradictions(
        (alone and run_options.model_card, "model_size tokenizer_only", "model_card")
    )
