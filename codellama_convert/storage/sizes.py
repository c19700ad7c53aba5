"""Own sizes in words: "5GB" in, "5.0 GB" out; decimal, as the ecosystem's own options are."""

from __future__ import annotations

import re

_DECIMAL = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SIZE = re.compile(r"([0-9]{1,30}(?:\.[0-9]{1,30})?(?:[eE]\+?[0-9]{1,2})?)\s*([A-Za-z]*)")
# Fewer bytes than a safetensors header has, where no unit says that bytes are meant.
_TOO_FEW = 1000


def parse_size(text: str) -> int:
    """Read a size such as "5GB", "5G", "200MB", "1.5GiB", "5e9" or "4096".

    Args:
        text: A number and a unit; without one it is bytes.

    Returns:
        Bytes.

    Raises:
        ValueError: If it is not a size, not positive, or so small that the unit was forgotten.
    """
    match = _SIZE.fullmatch(text.strip())
    factor = (_DECIMAL | _BINARY).get(match[2].upper().removesuffix("B")) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is not a size; write it like 5GB, 200MB or 1GiB")
    number, unit = match.groups()
    n_bytes = _in_units_of(factor, number)
    if n_bytes <= 0:
        raise ValueError(f"{text!r} is not positive")
    if n_bytes < _TOO_FEW and not unit:
        raise ValueError(f"{number} bytes? write {number}GB, {number}MB or {number}B")
    return n_bytes


def _in_units_of(factor: int, number: str) -> int:
    """Multiply exactly, and round down: fractions and decimals would take 1 MB of memory."""
    digits, _, exponent = number.lower().partition("e")
    whole, _, tail = digits.partition(".")
    n_bytes: int = int(whole + tail) * 10 ** int(exponent or 0) * factor // 10 ** len(tail)
    return n_bytes


def format_size(n_bytes: int) -> str:
    """Write a number of bytes with three digits or more.

    Args:
        n_bytes: Bytes.

    Returns:
        Such as "13.5 GB"; decimal units.
    """
    for unit in ("T", "G", "M", "k"):
        factor = _DECIMAL[unit.upper()]
        if n_bytes >= factor:
            return f"{n_bytes / factor:.1f} {unit}B"
    return f"{n_bytes} B"
