from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from devloop.agent.overlap import conflicts, overlap
from devloop.agent.patterns import Effort, matches
from devloop.agent.spec import ALL, Header, How, Match, Route, Spec, SpecError, personal


def header(name: str, value: str, how: How = "exact") -> Header:
    return Header(name, Match(how, value))


def path(value: str, how: How = "prefix", **more: Any) -> Route:
    return Route(path=Match(how, value), **more)


X_ADA, X_BEN = Route((header("x-user", "ada"),)), Route((header("X-User", "ben"),))


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        (ALL, ALL, True),
        (ALL, X_ADA, True),
        (X_ADA, X_BEN, False),
        (X_ADA, Route((header("x-user", "a", "prefix"),)), True),
        (X_ADA, Route((header("x-user", "b", "prefix"),)), False),
        (X_ADA, Route((header("x-user", "a.*", "regex"),)), True),
        (X_ADA, Route((header("x-user", "b.*", "regex"),)), False),
        # Two regular expressions are not compared.
        (Route((header("x", "a", "regex"),)), Route((header("x", "b", "regex"),)), True),
        # What can't be told is taken to meet.
        (X_ADA, Route((header("x-user", "(?i)b.*", "regex"),)), True),
        # Each asks for a header of its own.
        (X_ADA, Route((header("x-team", "blue"),)), False),
        (X_ADA, personal("ben"), False),
        (personal("ada"), personal("ben"), False),
        (personal("ada"), personal("ada"), True),
        # One is a part of the other.
        (X_ADA, Route((header("x-user", "ada"), header("x-team", "blue"))), True),
        (path("/a"), path("/b"), False),
        (path("/a"), path("/a/b"), True),
        (path("/a/b", "exact"), path("/a"), True),
        (path("/b", "exact"), path("/a"), False),
        # A path is in every request, so it doesn't keep a header's route apart.
        (path("/a"), X_ADA, True),
        (Route(method="GET"), Route(method="POST"), False),
        (Route(method="GET"), path("/a"), True),
        # Shares lie side by side, and take what whole routes leave.
        (Route(share=10), Route(share=90), False),
        (Route(share=10), Route(share=91), True),
        (Route(share=10), X_ADA, False),
        (Route(share=10), ALL, True),
    ],
)
def test_which_routes_get_into_each_others_way(one: Route, other: Route, clash: bool) -> None:
    assert overlap(one, other) is clash
    assert overlap(other, one) is clash


def spec(user: str, **more: Any) -> Spec:
    fields: dict[str, Any] = {"service": "api", "ports": {80: 1}, "since": f"2026-11-21T11:00:0{len(user)}Z"}
    return Spec(user, user, "host", more.pop("kind", "intercept"), **{**fields, **more})


def test_who_holds_it_is_told_the_oldest_first() -> None:
    others = [spec("cydia"), spec("ada"), spec("ben", routes=(X_BEN,))]
    assert [each.user for each in conflicts(spec("me"), others)] == ["ada", "ben", "cydia"]
    assert conflicts(spec("me", service="web"), others) == []
    assert conflicts(spec("me", ports={81: 1}), others) == []
    assert conflicts(replace(others[1], since="later"), [others[1]]) == []


def test_more_than_all_in_shares_is_refused() -> None:
    others = [spec("ada", routes=(Route(share=60),)), spec("ben", routes=(Route(share=40),))]
    assert [each.user for each in conflicts(spec("me", routes=(Route(share=41),)), others)] == ["ada"]


def test_a_copy_takes_nothing_from_anybody() -> None:
    assert conflicts(spec("me", kind="wiretap"), [spec("ada")]) == []
    assert conflicts(spec("me"), [spec("ada", kind="wiretap")]) == []
    taps = [spec("ada", kind="wiretap", routes=(path("/a"),))]
    assert conflicts(spec("me", kind="wiretap", routes=(path("/a"),)), taps) == []
    assert conflicts(spec("me", kind="wiretap", routes=(path("/a/b"),)), taps) == taps


def test_a_workload_is_replaced_once() -> None:
    worker = {"service": "", "ports": {}, "workload": "deployment/worker", "kind": "replace"}
    assert conflicts(spec("me", **worker), [spec("ada", **worker)])
    assert not conflicts(spec("me", **worker), [spec("ada", **{**worker, "workload": "deployment/other"})])


def test_a_spec_is_read_as_it_was_written() -> None:
    route = Route((header("x", "a.*", "regex"), personal("a,b=c").headers[0]), Match("prefix", "/x"), "GET", 12.5)
    whole = spec("ada", routes=(route, ALL), fail="closed", hold=3.0)
    assert Spec.read(whole.document()) == whole


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        {},
        {"id": "../../etc"},
        {"kind": "steal"},
        {"routes": [{"share": 0}]},
        {"routes": [{"path": {"prefix": "x"}}]},
        {"routes": [{"headers": [{"name": "a b", "exact": "x"}]}]},
        {"routes": [{"path": {"regex": "("}}]},
    ],
)
def test_what_is_no_attachment_is_said_so(wrong: dict[str, Any] | None) -> None:
    document = {**spec("ada").document(), **wrong} if wrong else wrong
    with pytest.raises(SpecError):
        Spec.read(document)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"(\w+\s?)*;", "a" * 60),
        ("(a|aa)+$", "a" * 60 + "b"),
        ("(a?){40}a{40}", "a" * 39),
        ("(.*)*x", "a" * 60),
        ("((((a{0,30}){30}){30}){30})", "a"),
        ("(a{1000}){1000}", "a"),
        ("(" * 1000 + ")" * 1000, "a"),
        ("(((){1000}){1000}){1000}", "a"),
        ("(.*.*.*.*.*.*.*.*){90}z", "a" * 8000),
    ],
    ids=range(9),
)
def test_a_pattern_of_somebody_elses_takes_no_time(pattern: str, text: str) -> None:
    """Python would take years for most of these; what is counted here are steps, of which there are so many."""
    effort = Effort()
    assert matches(pattern, text, effort) is not True
    assert effort.steps > -20_000


def test_all_patterns_of_an_attachment_together_take_no_time() -> None:
    """Two that have as much of it as there may be: what is not told any more counts as meeting."""
    hard = tuple(Route((Header(f"x-{n}", Match("regex", r"(\w+\s?)*;")),)) for n in range(200))
    texts = tuple(Route((Header(f"x-{n}", Match("exact", "a" * 250)),)) for n in range(200))
    assert conflicts(spec("me", routes=texts), [spec("ada", routes=hard)])


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        ("a{2,3}", "aaaa", False),
        ("a{2,3}", "aaa", True),
        ("x|^ada$", "ada", True),
        ("(?:a|b)+c?", "ababc", True),
        (r"[^a-c\d]+", "xyz", True),
        (r"[^a-c\d]+", "x1", False),
        (r"\d+-\w{3}", "12-abc", True),
        (r"a\.b", "a.b", True),
        (r"a\.b", "axb", False),
        ("", "", True),
        (".*", "a\nb", False),
        ("a$", "a\n", False),
        (r"\w", "ü", False),  # RE2's are of ASCII
        # Not told.
        ("(?i)a", "A", None),
        ("a**", "a", None),
        (r"\bada\b", "ada", None),
        ("[[:alpha:]]", "a", None),
        (r"\pL", "a", None),
        ("(a", "a", None),
        ("a)", "a", None),
    ],
)
def test_what_a_pattern_matches_as_re2_does(pattern: str, text: str, fits: bool | None) -> None:
    assert matches(pattern, text) is fits


@pytest.mark.parametrize("pattern", ["(" * 900, "a{99999999999999999999}", "a" * 1025], ids=range(3))
def test_a_pattern_without_end_is_refused(pattern: str) -> None:
    with pytest.raises(SpecError, match="regular expression"):
        Match("regex", pattern)
