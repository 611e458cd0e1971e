"""Positions of keys and values in every form that TOML has."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devloop.config.locate import Positions

from .corpus import toml

TEXT = '''\
a.b."c d" = 1
"é" = ["x", "é", { in = true }]  # é
[x."y".z]
k = { p = [1, [2, 3]], 'r.s' = """
multi""", t.u = 5 }
[x]
late = 1
[[arr.t]]
n = 1
[[arr.t]]
n = 2
m = [
  "one", # comment
  "two",
]
[arr.t.sub]
s = 1
[ x . "w" ]
'''


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        (("a",), (1, 1), (1, 1)),
        (("a", "b"), (1, 3), (1, 3)),
        (("a", "b", "c d"), (1, 5), (1, 13)),
        (("é",), (2, 1), (2, 7)),
        (("é", 1), (2, 13), (2, 13)),
        (("é", "é"), (2, 13), (2, 13)),
        (("é", 2, "in"), (2, 20), (2, 25)),
        (("x",), (6, 2), (6, 2)),
        (("x", "y"), (3, 4), (3, 4)),
        (("x", "y", "z"), (3, 8), (3, 8)),
        (("x", "y", "z", "k"), (4, 1), (4, 5)),
        (("x", "y", "z", "k", "p", 1, 0), (4, 16), (4, 16)),
        (("x", "y", "z", "k", "r.s"), (4, 24), (4, 32)),
        (("x", "y", "z", "k", "t", "u"), (5, 13), (5, 17)),
        (("x", "late"), (7, 1), (7, 8)),
        (("arr", "t", 0, "n"), (9, 1), (9, 5)),
        (("arr", "t", 1, "n"), (11, 1), (11, 5)),
        (("arr", "t", 1, "m", 1), (14, 3), (14, 3)),
        (("arr", "t", 1, "m", "two"), (14, 3), (14, 3)),
        (("arr", "t", 1, "sub", "s"), (17, 1), (17, 5)),
        (("x", "w"), (18, 7), (18, 7)),
    ],
)
def test_keys_and_values(path: tuple[str | int, ...], key: tuple[int, int], value: tuple[int, int]) -> None:
    positions = Positions(TEXT)
    assert positions.find(path, "key") == key
    assert positions.find(path, "value") == value


def test_what_is_not_there_is_where_it_would_be() -> None:
    positions = Positions(TEXT)
    assert positions.find(("x", "late", "deeper")) == (7, 8)
    assert positions.find(("x", "nope"), "key") == (6, 2)
    assert positions.find(("nope",)) == (1, 1)
    assert Positions("").find(("a",)) == (1, 1)


def test_a_text_inside_a_value() -> None:
    positions = Positions("a = '${B}'\nb = 'é ${A} $${B} ${B} ${B}'\n")
    assert positions.find(("b",), needle="${B") == (2, 19)
    assert positions.find(("b",), needle="${C") == (2, 5)


def test_a_file_with_syntax_errors_does_no_harm() -> None:
    assert Positions("[a]\nb = 1\nc = = 3\nd = 4\n").find(("a", "b")) == (2, 5)


_keys = st.text("ab.\"' é#=[]\\", min_size=0, max_size=4)
_values = st.recursive(
    st.integers(-5, 5) | st.booleans() | st.text("ab\"'\\\n#é[]{}=", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=3),
    max_leaves=8,
)


def _leaves(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[tuple[str | int, ...], Any]]:
    if isinstance(value, dict):
        return [leaf for k, v in value.items() for leaf in _leaves(v, (*path, k))]
    if isinstance(value, list):
        return [leaf for i, v in enumerate(value) for leaf in _leaves(v, (*path, i))]
    return [(path, value)]


@pytest.mark.slow
@given(st.dictionaries(_keys, _values, max_size=3), st.dictionaries(_keys, _values, max_size=3))
def test_the_text_at_every_position_is_the_value(top: dict[str, Any], table: dict[str, Any]) -> None:
    lines = [f"{toml(k)} = {toml(v)}" for k, v in top.items()]
    lines += ['["the table"]', *(f"{toml(k)} = {toml(v)}" for k, v in table.items())]
    text = "\n".join(lines)
    assert tomllib.loads(text) == {**top, "the table": table}
    positions = Positions(text)
    for path, value in _leaves({**top, "the table": table}):
        if path:
            line, column = positions.find(path)
            assert lines[line - 1][column - 1 :].startswith(toml(value)), path
