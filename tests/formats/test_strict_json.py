"""JSON is read in one way only: what two readers could take for two things is refused."""

from __future__ import annotations

import pytest

from codellama_convert.errors import one_line, shown
from codellama_convert.formats.strict_json import identical, parse_object

DEEP: list = []
for _ in range(100_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"{}", {}),
        (b'\xef\xbb\xbf {"a": 1}\n', {"a": 1}),
        (b'{"a": 1e3, "b": -0.0, "c": [true, null]}', {"a": 1000.0, "b": -0.0, "c": [True, None]}),
        (b'{"a": ' + b"9" * 40 + b"}", {"a": 10**40 - 1}),
        (b'{"a": {"b": 1}, "b": {"a": 1}}', {"a": {"b": 1}, "b": {"a": 1}}),
        ('{"ü": "▁"}'.encode(), {"ü": "▁"}),
    ],
)
def test_plain_objects_are_read(content, found):
    assert identical(parse_object(content), found)


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"a": 1} {}', "not JSON"),
        (b'{"a": 1', "not JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1, "a": 1}', "twice"),
        (b'{"x": {"a": 1, "\\u0061": 2}}', "twice"),
        (b'{"a": ' + b"9" * 41 + b"}", "41 digits"),
        (b'{"a": ' + b"[" * 100_000, "deeply"),
        (b'{"a": "\xff"}', "utf-8"),
        (b"\xff\xfe{\0}\0", "utf-8"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(content, fact):
    with pytest.raises(ValueError, match=fact) as caught:
        parse_object(content)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True), (0, False), (1, 1.0), ("1", 1), (None, False), ([1], (1,)), ([1], [1, 1]),
        ({"a": 1}, {"a": 1.0}), ({"a": 1}, {"a": 1, "b": None}), ([[True]], [[1]]), (DEEP, [[]]),
    ],
)  # fmt: skip
def test_what_python_takes_for_equal_is_told_apart(one, other):
    assert not identical(one, other)
    assert not identical(other, one) or one is DEEP
    assert identical(other, other)


def test_what_came_from_outside_is_shown_in_one_bounded_line():
    assert shown("a\nb") == r"'a\nb'"
    assert shown("x" * 78) == repr("x" * 78)
    assert shown("x" * 79) == "'" + "x" * 79 + "..."
    assert shown(DEEP) == "a deeply nested list"
    assert one_line("a\x1b[2J\nb\udcff ü▁") == r"a\x1b[2J\nb\xff ü▁"
