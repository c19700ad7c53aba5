"""Own files as PyTorch 1.13 saves them, put together by hand; know nothing of the package.

What the pickle says has not changed since, so torch itself writes it here. The archive around it has:
its records, their order and every field are spelled here, after what PyTorch 1.13.1 wrote.

Source:
    pytorch v1.13.1 caffe2/serialize/inline_container.cc, `PyTorchStreamWriter`, and
    third_party/miniz-2.1.0, `mz_zip_writer_add_mem_ex_v2`.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch

_ALIGNMENT = 64
_FLAGS = 0x0808  # the name is UTF-8, and the sums stand behind the data


def save_as_old_torch(
    state: Mapping[str, torch.Tensor], path: Path, root: str | None = None
) -> None:
    """Save a dict of tensors as `torch.save(state, path)` of PyTorch 1.13 does.

    Args:
        state: Less than 4 GB.
        path: The file.
        root: The folder inside of the archive; by default the name of the file without its suffix.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with zipfile.ZipFile(buffer) as archive:
        read = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    data = sorted(name for name in read if name.startswith("data/"))  # data/10 before data/2
    records = {name: read[name] for name in ("data.pkl", *data)} | {"version": b"3\n"}
    path.write_bytes(_archive({f"{root or path.stem}/{n}": one for n, one in records.items()}))


def resave_as_old_torch(folder: Path) -> Path:
    """Save each rank of a checkpoint again, with the same storages."""
    for path in sorted(folder.glob("*.pth")):
        save_as_old_torch(torch.load(path, weights_only=True), path)
    return folder


def _archive(records: Mapping[str, bytes]) -> bytes:
    """Put records into a zip archive whose data begins at multiples of 64."""
    file, directory = bytearray(), bytearray()
    needed_to_date = struct.pack("<5H", 0, _FLAGS, 0, 0, 0)
    for name, content in records.items():
        raw, offset = name.encode(), len(file)
        padding = -(offset + 30 + len(raw) + 4) % _ALIGNMENT
        file += b"PK\3\4" + needed_to_date + bytes(12) + struct.pack("<2H", len(raw), padding + 4)
        file += raw + b"FB" + struct.pack("<H", padding) + b"Z" * padding
        sums = struct.pack("<3I", zlib.crc32(content), len(content), len(content))
        file += content + b"PK\7\x08" + sums
        directory += b"PK\1\2" + bytes(2) + needed_to_date + sums
        directory += struct.pack("<5H2I", len(raw), 0, 0, 0, 0, 0, offset) + raw
    n, start, n_bytes = len(records), len(file), len(directory)
    file += directory
    file += b"PK\6\6" + struct.pack("<Q2H2I4Q", 44, 0x031E, 45, 0, 0, n, n, n_bytes, start)
    file += b"PK\6\7" + struct.pack("<IQI", 0, start + n_bytes, 1)
    file += b"PK\5\6" + struct.pack("<4H2IH", 0, 0, n, n, n_bytes, start, 0)
    return bytes(file)
