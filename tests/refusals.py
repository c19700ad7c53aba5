"""Own the question that tests ask of a refusal: whether it tells the facts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from codellama_convert.errors import ConvertError


@contextmanager
def refused(kind: type[ConvertError], *facts: str) -> Iterator[None]:
    """Expect a refusal of a kind that tells these facts, in this order."""
    with pytest.raises(kind) as caught:
        yield
    told = str(caught.value)
    assert re.search(".*".join(map(re.escape, facts)), told), told
