"""Mistakes that are planted in the program: each must be found within some number of cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plant:
    """A mistake.

    Attributes:
        spoil: Patches the package, in a child that was just forked.
        within: In so many cases it is found, from the first seed on.
    """

    spoil: Callable[[], None]
    within: int


def _index_among_the_others() -> None:
    """Move what loaders begin with into place among the other files."""
    from codellama_convert import publish

    vars(publish)["_ENTRANCES"] = ()


def _cumulative_sums() -> None:
    """Record for each file what was read for all so far, and let a record replace the others."""
    from codellama_convert import rank_reader
    from codellama_convert.rank_reader import RankReader
    from codellama_convert.source_sums import new_ledgers, sums_in

    keep = RankReader.keep

    def take_all_sums(self: RankReader) -> Any:
        sums = sums_in(self._read)
        self._read = new_ledgers(self.index, self._pass_of)
        keep(self, sums)
        return sums_in(self._known)

    def replace(self: RankReader, sums: Any) -> None:
        self._known = new_ledgers(self.index, self._pass_of)
        keep(self, sums)

    vars(rank_reader)["fits"] = lambda *_: True
    for name, method in (("take_sums", take_all_sums), ("keep", replace)):
        setattr(RankReader, name, method)


def _unread_ranks() -> None:
    """Keep what was read of a rank without sums, whatever lies there now."""
    from codellama_convert.rank_reader import RankReader

    def believe(self: RankReader, *_: Any) -> bool:
        return True

    RankReader.confirms = believe


PLANTS = {
    "cumulative-sums": Plant(_cumulative_sums, within=100),
    "index-not-last": Plant(_index_among_the_others, within=100),
    "unread-ranks": Plant(_unread_ranks, within=200),
}
