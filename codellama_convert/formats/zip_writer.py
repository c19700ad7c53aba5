"""Own what a zip archive of stored entries holds besides their data, as torch's writer lays it out.

Everything but the CRC-32s follows from names and sizes, so each position is known before any data.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

# Sources: PKWARE APPNOTE.TXT 6.3 sections 4.3.7 to 4.5.3; torch's caffe2/serialize/inline_container.cc
# (`getPadding`) and its third_party/miniz. Their reader has its own table, in `zip_directory`.
_LOCAL = struct.Struct("<4s5H3I2H")
_LISTED = struct.Struct("<4s6H3I5H2I")
_DESCRIPTOR, _WIDE_DESCRIPTOR = struct.Struct("<4s3I"), struct.Struct("<4sI2Q")
_END64, _END64_LOCATOR, _END = (
    struct.Struct("<4sQ2H2I4Q"),
    struct.Struct("<4sIQI"),
    struct.Struct("<4s4H2IH"),
)
_FLAGS = 0x0808  # a descriptor follows the data; the name is UTF-8
_WIDE_FIELD, _PADDING_FIELD = 0x0001, int.from_bytes(b"FB", "little")
_MADE_BY, _VERSION_NEEDED = 0x031E, 45  # of the zip64 end record alone; zero elsewhere
_MAX_16, _MAX_32 = 0xFFFF, 0xFFFFFFFF
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class PlacedEntry:
    """An entry whose place in the archive is known.

    Attributes:
        name: With the root folder.
        n_bytes: Size of its data.
        header_offset: Position of its local header.
    """

    name: bytes
    n_bytes: int
    header_offset: int

    @property
    def start(self) -> int:
        """Position of its data."""
        return self.header_offset + len(self.header())

    @property
    def data_end(self) -> int:
        """Position behind its data."""
        return self.start + self.n_bytes

    @property
    def end(self) -> int:
        """Position behind its descriptor."""
        return self.data_end + len(self.descriptor(0))

    def header(self) -> bytes:
        """Build the local header; sizes and CRC-32 are left to the descriptor.

        Returns:
            Its bytes, padded so that the data begins at a multiple of 64.
        """
        # The packed size is zero there, whatever its size.
        wide = self._wide_field(self.n_bytes, 0)
        unpadded = self.header_offset + _LOCAL.size + len(self.name) + len(wide) + 4
        n_padding = -unpadded % _ALIGNMENT
        extra = wide + struct.pack("<2H", _PADDING_FIELD, n_padding) + b"Z" * n_padding
        fields = b"PK\x03\x04", 0, _FLAGS, 0, 0, 0, 0, 0, 0, len(self.name), len(extra)
        return _LOCAL.pack(*fields) + self.name + extra

    def descriptor(self, crc: int) -> bytes:
        """Build what follows the data.

        Args:
            crc: CRC-32 of the data.

        Returns:
            Its bytes.
        """
        wide = bool(self._wide_field(self.n_bytes, self.n_bytes))
        form = _WIDE_DESCRIPTOR if wide else _DESCRIPTOR
        return form.pack(b"PK\x07\x08", crc, self.n_bytes, self.n_bytes)

    def listed(self, crc: int) -> bytes:
        """Build its record of the central directory.

        Args:
            crc: CRC-32 of the data.

        Returns:
            Its bytes.
        """
        extra = self._wide_field(self.n_bytes, self.n_bytes)
        size, offset = min(self.n_bytes, _MAX_32), min(self.header_offset, _MAX_32)
        fields = b"PK\x01\x02", 0, 0, _FLAGS, 0, 0, 0, crc, size, size, len(self.name), len(extra)
        return _LISTED.pack(*fields, 0, 0, 0, 0, offset) + self.name + extra

    def _wide_field(self, size: int, packed: int) -> bytes:
        """Build the extra field of what 32 bits do not hold; empty where they do."""
        sizes = (size, packed) if self.n_bytes >= _MAX_32 else ()
        offsets = (self.header_offset,) if self.header_offset >= _MAX_32 else ()
        numbers = sizes + offsets
        if not numbers:
            return b""
        return struct.pack(f"<2H{len(numbers)}Q", _WIDE_FIELD, 8 * len(numbers), *numbers)


def end_of_archive(entries: Sequence[PlacedEntry], crcs: Sequence[int]) -> bytes:
    """Build the central directory and the end records, which make an archive of its entries.

    Args:
        entries: In the order of their places; the directory lies behind the last one.
        crcs: CRC-32 of each one's data.

    Returns:
        Their bytes; there is a zip64 end record whether it is needed or not.
    """
    directory = b"".join(entry.listed(crc) for entry, crc in zip(entries, crcs, strict=True))
    position, n_entries, n_bytes = entries[-1].end, len(entries), len(directory)
    behind = position + n_bytes
    counts = n_entries, n_entries, n_bytes, position
    end64 = _END64.pack(
        b"PK\x06\x06", _END64.size - 12, _MADE_BY, _VERSION_NEEDED, 0, 0, *counts
    )  # its size does not count the signature and the size
    locator = _END64_LOCATOR.pack(b"PK\x06\x07", 0, behind, 1)
    narrow = min(n_entries, _MAX_16), min(n_bytes, _MAX_32), min(position, _MAX_32)
    end = _END.pack(b"PK\x05\x06", 0, 0, narrow[0], *narrow, 0)
    return directory + end64 + locator + end
