from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devloop.scaffold.draft import Draft, comment, literal, render, service_name, string, toml

# Everything but surrogates, which TOML's UTF-8 can't hold.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXT)
def test_any_string_comes_back_as_it_was(text: str) -> None:
    assert tomllib.loads(f"x = {string(text)}")["x"] == text


@given(st.dictionaries(TEXT, st.lists(TEXT | st.integers(-(2**60), 2**60) | st.booleans())))
def test_any_value_comes_back_as_it_was(value: dict[str, list[str | int | bool]]) -> None:
    assert tomllib.loads(f"x = {toml(value)}")["x"] == value


@given(TEXT)
def test_a_comment_stays_a_comment(text: str) -> None:
    assert tomllib.loads("\n".join(comment(text))) == {}


def test_strings_are_written_the_way_that_reads_best() -> None:
    assert string("plain") == '"plain"'
    assert string('say "hi"') == "'say \"hi\"'"
    assert string("it's") == '"it\'s"'
    assert string("a\tb\x00") == '"a\\tb\\u0000"'


def test_dollars_meant_for_the_service_are_kept_from_devloop() -> None:
    assert literal("run -p $PORT") == "run -p $PORT"
    assert literal("run -p ${PORT:-80} $X") == "run -p $${PORT:-80} $$X"
    assert literal("kill $$") == "kill $$$$"


@pytest.mark.parametrize(
    ("name", "made"),
    [("web", "web"), ("Web_API.v2", "web-api-v2"), ("__", "service"), ("x" * 80, "x" * 63), ("-a-", "a")],
)
def test_service_names(name: str, made: str) -> None:
    assert service_name(name) == made


def test_names_that_fall_together_are_kept_apart_and_references_follow() -> None:
    drafts = [
        Draft("web_api", {"command": "a"}),
        Draft("web-api", {"command": "b", "depends_on": {"web_api": "ready", "gone": "ready"}}),
    ]
    services = tomllib.loads(render("p", "", drafts))["services"]
    assert services["web-api"]["command"] == "a"
    assert services["web-api-2"] == {"command": "b", "depends_on": ["web-api"]}


def test_long_tables_are_spread_over_lines() -> None:
    env = {f"NAME_{n}": "value " * 3 for n in range(10)}
    text = render("p", "", [Draft("a", {"command": "x", "env": env, "depends_on": {}})])
    assert tomllib.loads(text)["services"]["a"] == {"command": "x", "env": env}
    assert max(map(len, text.splitlines())) <= 100
