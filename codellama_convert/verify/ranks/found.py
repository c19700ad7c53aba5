"""Own what was found of ranks while their weights were compared with the source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from codellama_convert.plan.tiles import TensorPlan
from codellama_convert.verify.against_record import Measured
from codellama_convert.verify.folder_reader import StoredOutput
from codellama_convert.verify.ranks.folder import Ranks, stored_in


@dataclass(frozen=True, slots=True)
class Found:
    """What was found out about both sides.

    Attributes:
        ranks: Those that were read.
        tensors: All weights that there must be.
        measured: Of the source's files, and of each weight.
    """

    ranks: Ranks
    tensors: tuple[TensorPlan, ...]
    measured: Measured

    def crcs(self, number: int) -> dict[str, int]:
        """List the sums of the weights of a rank that are right."""
        return {
            name: one.crcs[number]
            for name, one in self.measured.tensors.items()
            if one.difference is None and number in one.crcs
        }

    def weights(self, number: int) -> Mapping[str, StoredOutput]:
        """Say where the weights of a rank lie, right or not."""
        stored = stored_in(self.ranks[number])
        return {name: one for name, one in stored.items() if name in self.measured.tensors}
