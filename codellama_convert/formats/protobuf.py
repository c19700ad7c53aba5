"""Own the wire format of protocol buffers; know nothing of what a message means."""

from __future__ import annotations

from collections.abc import Iterator

# Wire types. Source: protobuf.dev/programming-guides/encoding.
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """The bytes are not the protocol buffer that they should be."""


def _varint(raw: bytes, offset: int, end: int) -> tuple[int, int]:
    value = shift = 0
    for position in range(offset, min(offset + 10, end)):
        byte = raw[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + 1
        shift += 7
    raise WireError(f"the number at byte {offset} does not end")


def fields(raw: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Walk one message: (field number, wire type, varint value, first byte, byte after it)."""
    offset = start
    while offset < end:
        tag_at = offset
        tag, offset = _varint(raw, offset, end)
        number, wire = tag >> 3, tag & 7
        value = 0
        first = offset
        if wire == VARINT:
            value, offset = _varint(raw, offset, end)
        elif wire == LENGTH:
            size, first = _varint(raw, offset, end)
            offset = first + size
        elif wire in (FIXED32, FIXED64):
            offset += 4 if wire == FIXED32 else 8
        else:
            raise WireError(f"wire type {wire} at byte {tag_at}")
        if number == 0:
            raise WireError(f"field number 0 at byte {tag_at}")
        if offset > end:
            raise WireError(f"the field at byte {tag_at} runs {offset - end} bytes past the end")
        yield number, wire, value, first, offset
