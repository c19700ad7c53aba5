"""The table of released models against itself; tests/model/test_recognise.py holds its rows against Meta's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from codellama_convert.choices import MODEL_SIZES
from codellama_convert.model.releases import RELEASES, Release


def sizes_of_several_shapes(releases: Iterable[Release]) -> list[str]:
    shapes: dict[str, set[object]] = {}
    for release in releases:
        shapes.setdefault(release.size, set()).add(release.shape)
    return [size for size, found in shapes.items() if len(found) > 1]


def test_every_size_can_be_asked_for() -> None:
    """The command line spells the sizes without the table, which it does not load for its help."""
    sizes = {release.size for release in RELEASES}
    assert sizes < set(MODEL_SIZES)
    assert set(MODEL_SIZES) - sizes == {"7Bf", "13Bf", "70Bf"}


def test_every_size_has_one_shape():
    """`--model_size` is compared with one shape: of two, the later row would win unseen."""
    assert sizes_of_several_shapes(RELEASES) == []
    first = RELEASES[0]
    assert first.size == "7B"
    other = replace(first, shape=replace(first.shape, num_hidden_layers=33))
    assert sizes_of_several_shapes([*RELEASES, other]) == ["7B"]
    assert sizes_of_several_shapes([*RELEASES, replace(other, size="9B")]) == []
