"""Own sizes in words: "5GB" in, "5.0 GB" out; decimal, as the ecosystem's own options are."""

from __future__ import annotations

import re

_DECIMAL = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BINARY = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_size(text: str) -> int:
    """Read a size such as "5GB", "200MB", "1.5GiB" or "4096".

    Args:
        text: A number and a unit; without one it is bytes.

    Returns:
        Bytes.

    Raises:
        ValueError: If it is not a size, or not positive.
    """
    match = re.fullmatch(r"([0-9]{1,30}(?:\.[0-9]{1,30})?)\s*([A-Za-z]*)", text.strip())
    factor = (_DECIMAL | _BINARY).get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is not a size; write it like 5GB, 200MB or 1GiB")
    n_bytes = int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor
    if n_bytes <= 0:
        raise ValueError(f"{text!r} is not positive")
    return n_bytes


def format_size(n_bytes: int) -> str:
    """Write a number of bytes with three digits or more.

    Args:
        n_bytes: Bytes.

    Returns:
        Such as "13.5 GB"; decimal units.
    """
    for unit in ("TB", "GB", "MB", "kB"):
        factor = _DECIMAL[unit.upper()]
        if n_bytes >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes} B"
