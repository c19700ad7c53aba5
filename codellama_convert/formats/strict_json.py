"""Own the strict reading of JSON objects: what two parsers could read as two things is refused."""

from __future__ import annotations

import json
from typing import Any

_MAX_DIGITS = 40  # transformers' "no limit" has 31; int() of a million takes a minute


def parse_object(content: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        content: UTF-8; a byte order mark is passed over.

    Returns:
        The object.

    Raises:
        ValueError: With what a user can be told: it is no JSON, no object, or has a key twice, a
            NaN or infinity, or an integer of absurd length.
    """
    try:
        found = json.loads(
            content.decode("utf-8-sig"),
            parse_constant=_refuse_constant,
            parse_int=_whole_number,
            object_pairs_hook=_unique_keys,
        )
    except RecursionError:
        raise ValueError("is not JSON (nested too deeply)") from None
    except ValueError as problem:
        raise ValueError(f"is not JSON ({str(problem)[:80]})") from problem
    if not isinstance(found, dict):
        raise ValueError("is not a JSON object")  # noqa: TRY004 - of the content, not a caller's
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _whole_number(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    distinct = dict(pairs)
    if len(distinct) != len(pairs):
        raise ValueError("a key occurs twice")
    return distinct


def identical(one: Any, other: Any) -> bool:
    """Return whether two JSON values are the same: 1, 1.0 and true are three values here.

    Args:
        one: The value that was found; may be nested to any depth.
        other: The value that was expected; how deep it is nested bounds the recursion.

    Returns:
        Whether type and value are equal, all the way down.
    """
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(identical(one[key], other[key]) for key in other)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(identical, one, other))
    return bool(one == other)
