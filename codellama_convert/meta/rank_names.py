"""Own the names that ranks go by: Meta's, and those that other programs give them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from codellama_convert.errors import CheckpointError, listed
from codellama_convert.meta.unfinished import unfinished_downloads

_META_NAME = re.compile(r"consolidated\.([0-9]{2})\.pth")
_WEIGHTS_SUFFIXES = (".pth", ".pt")
# "000.pth" (pytorch-tpu/llama), "consolidated.0.pth", "consolidated.00-of-02.model.pth" (FairScale).
_NUMBERED = re.compile(
    r"(?P<stem>.*?)(?P<number>[0-9]{1,5})(?:-of-(?P<total>[0-9]{1,5}))?(?P<end>(?:\.model)?\.pth?)",
    re.IGNORECASE,
)
# Numbers that count time: torchtune writes meta_model_N.pt after epoch N, each of them whole.
_COUNTS_TIME = re.compile(r"epoch|step|iter|ckpt|checkpoint|meta_model", re.IGNORECASE)
# Stems of which one file alone is part of a series, and not a name that ends in a digit.
_OF_RANKS = re.compile(r"(?:consolidated|rank|shard|mp_rank|part)?[._-]?", re.IGNORECASE)
# What trainers save beside the weights.
_NO_WEIGHTS = re.compile(
    r"(?:optim|sched|scaler|rng_state|random_state|training_args|recipe_state|adapter)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class RankNames:
    """The files of a folder that are taken as ranks.

    Attributes:
        names: In the order of the ranks; empty where nothing looks like weights.
        notes: What was taken although it is not named as Meta names it, and what was passed over.
    """

    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Numbered:
    """One file of a series: all that is equal in the others, its number, and its own name."""

    series: tuple[str, str, str]
    number: int
    name: str


def is_meta_name(name: str) -> bool:
    """Return whether Meta's releases name a rank so."""
    return _META_NAME.fullmatch(name) is not None


def is_of_weights(name: str) -> bool:
    """Return whether torch programs name files of weights so."""
    return name.lower().endswith(_WEIGHTS_SUFFIXES) and not _NO_WEIGHTS.match(name)


def choose_ranks(folder: Path, names: Sequence[str]) -> RankNames:
    """Choose the files that are the ranks: Meta's names first, else the only ones there can be.

    Args:
        folder: Where they lie, for messages.
        names: Its files, sorted.

    Returns:
        The choice.

    Raises:
        CheckpointError: If a rank is missing in the middle, or there are several choices.
    """
    # Without leading zeros, only the eleventh rank and those behind it are named as Meta's are.
    is_unpadded = "consolidated.0.pth" in names and "consolidated.00.pth" not in names
    if any(map(is_meta_name, names)) and not is_unpadded:
        return _meta_ranks(folder, names)
    candidates = _candidates(names)
    if len(candidates) > 1:
        raise CheckpointError(
            "holds no consolidated.NN.pth, but several files that may be the weights "
            f"({listed([one for candidate in candidates for one in candidate])})",
            path=folder,
            hint="leave only the right one here, or only the files of one series",
        )
    if not candidates:
        return RankNames(())
    (chosen,) = candidates
    numbered = [one for name in chosen if (one := _numbered(name)) is not None]
    if len(chosen) > 1 or (numbered and _is_part(numbered[0])):
        numbered.sort(key=lambda one: one.number)
        _refuse_gaps(folder, numbered)
        _refuse_unfinished_rank(folder, chosen, names)
        chosen = tuple(one.name for one in numbered)
    return RankNames(chosen, (_taken(chosen), *_ignored(names, chosen)))


def _meta_ranks(folder: Path, names: Sequence[str]) -> RankNames:
    ranks = tuple(name for name in names if is_meta_name(name))
    numbers = [int(name.split(".")[1]) for name in ranks]
    missing = sorted(set(range(max(numbers) + 1)).difference(numbers))
    if missing:
        # A renamed or unfinished one says where the missing rank is.
        alike = [name for name in names if ".pth" in name.lower() and name not in ranks]
        raise _missing(folder, f"consolidated.{missing[0]:02d}.pth", [*ranks, *alike], names)
    _refuse_unfinished_rank(folder, ranks, names)
    return RankNames(ranks, _ignored(names, ranks))


def _candidates(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Group what may be weights: a series is one candidate, any other file one of its own."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in filter(is_of_weights, names):
        one = _numbered(name)
        groups.setdefault((name,) if one is None else one.series, []).append(name)
    return [tuple(group) for group in groups.values()]


def _numbered(name: str) -> _Numbered | None:
    match = _NUMBERED.fullmatch(name)
    if match is None or _COUNTS_TIME.search(match["stem"]):
        return None
    series = (match["stem"].lower(), match["total"] or "", match["end"].lower())
    return _Numbered(series, int(match["number"]), name)


def _is_part(one: _Numbered) -> bool:
    stem, total, _ = one.series
    return total != "" or _OF_RANKS.fullmatch(stem) is not None


def _refuse_gaps(folder: Path, ranks: Sequence[_Numbered]) -> None:
    """Refuse a series with a gap, too short for the total that it states, or with a number twice."""
    numbers = [one.number for one in ranks]
    for one, other in pairwise(ranks):
        if one.number == other.number:
            raise CheckpointError(
                f"holds {one.name} and {other.name}: two files for rank {one.number}",
                path=folder,
                hint="leave only the right one here",
            )
    total = int(ranks[0].series[1] or max(numbers) + 1)
    first = 1 if ranks[0].series[1] and 0 not in numbers and total in numbers else 0
    wanted = range(first, first + total)
    beyond = next((one for one in ranks if one.number not in wanted), None)
    if beyond is not None:
        raise CheckpointError(
            f"holds {beyond.name}, numbered beyond the {total} that its name states",
            path=folder,
            hint="leave only the files of one series here",
        )
    missing = next((number for number in wanted if number not in numbers), None)
    if missing is not None:
        names = [one.name for one in ranks]
        raise _missing(folder, _sibling(ranks[0], missing), names, names)


def _refuse_unfinished_rank(folder: Path, ranks: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a series that one more rank would continue, of which the download is unfinished."""
    series = {one.series for name in ranks if (one := _numbered(name)) is not None}
    for part in unfinished_downloads(names):
        name = part.rpartition(".")[0]
        one = _numbered(name)
        if one is not None and one.series in series and name not in ranks:
            raise _missing(folder, name, ranks, names)


def _sibling(one: _Numbered, number: int) -> str:
    """Return the name that another rank of the series has."""
    match = _NUMBERED.fullmatch(one.name)
    assert match is not None
    digits = f"{number:0{len(match['number'])}d}"
    return one.name[: match.start("number")] + digits + one.name[match.end("number") :]


def _missing(
    folder: Path, name: str, found: Sequence[str], names: Sequence[str]
) -> CheckpointError:
    parts = [part for part in unfinished_downloads(names) if part.startswith(name)]
    if parts:
        return CheckpointError(
            f"{name} is missing, but {parts[0]} is its unfinished download",
            path=folder,
            hint="finish the download",
        )
    return CheckpointError(
        f"{name} is missing; found: {listed(found)}",
        path=folder,
        hint="download it, or rename it back",
    )


def _taken(chosen: Sequence[str]) -> str:
    if len(chosen) == 1:
        return f"no consolidated.NN.pth is there, so {chosen[0]} was used as the weights"
    return (
        f"no consolidated.NN.pth is there, so {chosen[0]} to {chosen[-1]} were used as "
        f"{len(chosen)} ranks"
    )


def _ignored(names: Iterable[str], chosen: Sequence[str]) -> tuple[str, ...]:
    """Say which files of torch's kinds were passed over."""
    others = [
        name
        for name in names
        if name not in chosen and (".pth" in name.lower() or name.lower().endswith(".pt"))
    ]
    return (f"ignored {', '.join(others)}",) if others else ()
