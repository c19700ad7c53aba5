"""Mistakes that are planted in the program: each must be found within some number of cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Plant:
    """A mistake.

    Attributes:
        spoil: Patches the package, in a child that was just forked.
        within: Cases that find it at the latest, whatever the seed.
    """

    spoil: Callable[[], None]
    within: int


def _index_among_the_others() -> None:
    from codellama_convert import publish

    publish._ENTRANCES = ()


PLANTS = {"index-not-last": Plant(_index_among_the_others, within=100)}
