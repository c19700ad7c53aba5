"""Own what conversion.json shows besides its values: its own sum, and keys that do not belong there."""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from codellama_convert.errors import shown

_KEYS = frozenset(
    {
        "converter", "crc32", "files", "model", "notes", "options", "original", "source", "tensors",
    }
)  # fmt: skip
_KEYS_OF_ENTRIES = {
    "files": frozenset({"size", "crc32", "sha256"}),
    "source": frozenset({"size", "crc32"}),
    "tensors": frozenset({"file", "dtype", "shape", "size", "crc32", "became_zero", "nonfinite"}),
}
_KEYS_OF_PARTS = frozenset({"dtype", "shape", "crc32", "became_zero", "nonfinite"})
# Deeper in the file the same key is indented further, and no text in it holds a line break.
_OWN_SUM = re.compile(rb'^(  "crc32": ")([0-9a-f]{8})"', re.MULTILINE)


def wrong_sum(raw: bytes) -> Iterator[str]:
    """Say so if any byte of the file was changed: its sum is taken with zeros in the sum's place."""
    found = _OWN_SUM.findall(raw)
    if len(found) != 1:
        yield "has no CRC-32 of its own, so it was not written like this"
        return
    ((_, said),) = found
    crc = zlib.crc32(_OWN_SUM.sub(rb'\g<1>00000000"', raw))
    if said != b"%08x" % crc:
        yield f"was changed after it was written: its CRC-32 is {crc:08x}, not {said.decode()}"


def wrong_keys(content: Mapping[str, Any], *, of_ranks: bool) -> Iterator[str]:
    """Name what a conversion does not write, of whatever version: nobody reads it, nobody checks it."""
    yield from (f"has {shown(key)}, which does not belong there" for key in _extra(content, _KEYS))
    of_tensors = {"tensors": _KEYS_OF_PARTS} if of_ranks else {}
    for part, keys in (_KEYS_OF_ENTRIES | of_tensors).items():
        for name, entry in content[part].items():
            for key in _extra(entry, keys):
                yield f"{part}: {shown(name)} has {shown(key)}, which does not belong there"


def _extra(found: Mapping[str, Any], known: Collection[str]) -> list[str]:
    return sorted(set(found).difference(known))
