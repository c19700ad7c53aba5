"""Own what a case of the corpus is: a folder, and the facts that the tool must name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.hostile.rank_bytes import STATE, TINY
from tests.witness.checkpoints import Shape, State, save_checkpoint


@dataclass(frozen=True)
class Case:
    """One checkpoint folder.

    Attributes:
        name: Of the case.
        build: Tampers with a folder that holds a good checkpoint; a result replaces the expected
            model.
        names: What the error must name first: a file's name; None where the case is accepted.
        facts: What the error must contain; where it is accepted, what the notes must.
        options: Of the command line, behind --input_dir and --output_dir.
        bomb: Whether it is made to cost memory or time; runs in a process that is measured.
        armed: Whether its data.pkl runs a command if it is unpickled.
    """

    name: str
    build: Callable[[Path], tuple[State, Shape] | None]
    names: str | None
    facts: tuple[str, ...]
    options: tuple[str, ...]
    bomb: bool
    armed: bool

    @property
    def accepted(self) -> bool:
        """Whether the checkpoint is good."""
        return self.names is None

    def write(self, folder: Path) -> tuple[State, Shape]:
        """Build the folder, and give the model that an accepted one holds."""
        save_checkpoint(folder, TINY, STATE, tokenizer=False)
        return self.build(folder) or (STATE, TINY)


CASES: dict[str, Case] = {}
Build = Callable[[Path], Any]
WEIGHTS_ONLY = ("--skip_tokenizer",)


def refused(
    names: str,
    *facts: str,
    options: Sequence[str] = WEIGHTS_ONLY,
    bomb: bool = False,
    armed: bool = False,
) -> Callable[[Build], Build]:
    """Register a case that must end in one line with these facts."""

    def register(build: Build) -> Build:
        _add(Case(build.__name__, build, names, facts, tuple(options), bomb, armed))
        return build

    return register


def accepted(
    *notes: str, options: Sequence[str] = WEIGHTS_ONLY, bomb: bool = False
) -> Callable[[Build], Build]:
    """Register a case that must be converted bit for bit, and told of with these notes."""

    def register(build: Build) -> Build:
        _add(Case(build.__name__, build, None, notes, tuple(options), bomb, armed=False))
        return build

    return register


def _add(case: Case) -> None:
    assert case.name not in CASES, case.name
    CASES[case.name] = case


def many(names: str, variants: Mapping[str, tuple[Any, ...]], **more: Any) -> Any:
    """Register a refused case for each variant: its argument, then its facts."""

    def register(build: Callable[[Path, Any], Any]) -> Any:
        for variant, (argument, *facts) in variants.items():

            def run(folder: Path, argument: Any = argument) -> None:
                build(folder, argument)

            run.__name__ = f"{build.__name__}-{variant}"
            refused(names, *facts, **more)(run)
        return build

    return register
