"""Whose requests are whose: two holders of one Service, two Services of one workload, and failures."""

from __future__ import annotations

from typing import Any, cast

import pytest

from devloop.agent.records import Request
from devloop.agent.spec import Spec
from devloop.attach.attachment import Attachment
from devloop.attach.seam import Wanted
from devloop.engine.attaching import Attaching
from devloop.protocol import RequestRecord

WHO = {"mine": "ada@laptop", "other": "ada@laptop", "ben": "ben@studio"}


class Link:
    class api:  # noqa: N801 (as the link has it)
        namespace = "shop"


@pytest.fixture
def heard() -> list[RequestRecord]:
    return []


@pytest.fixture
def it(heard: list[RequestRecord]) -> Attaching:
    nothing: Any = lambda *_: None  # noqa: E731
    return Attaching(cast(Any, Link()), "x", None, nothing, nothing, nothing, nothing, heard.extend, nothing, nothing)


def hold(it: Attaching, service: str, target: str, name: str) -> None:
    spec = Spec(name, "ada", "laptop", "intercept", "now", target, {80: 1})
    it._of[service][target] = Attachment(spec, Wanted("intercept", target), cast(Any, None), lambda _: None)


def request(service: str = "api", by: str = "", answered: Any = "", **more: Any) -> Request:
    answered = answered or ("local" if by else "original")
    attachment = more.pop("attachment", by)
    return Request(service, 80, "GET", "/", 200, 1.0, answered, attachment, 1.0, "HTTP/1.1", "", by, **more)


def rates(it: Attaching, service: str) -> dict[str, tuple[float, ...]]:
    return {
        each.target: (each.local_rate, each.original_rate, each.other_rate, each.failed_rate)
        for each in it.statuses(service)
    }


def test_another_holders_answer_is_not_ours(it: Attaching, heard: list[RequestRecord]) -> None:
    hold(it, "api", "api", "mine")
    late = request(attachment="ben")
    it._heard(
        [request(by="mine"), request(by="ben"), request(), late, request(attachment="mine")],
        {"api": {"/mine": 5, "/ben": 10, "original": 20, "nobody": 15}},
        WHO,
    )
    assert [(each.answered, each.by, each.failed_over) for each in heard] == [
        ("local", "", False),
        ("other", "ben@studio", False),
        ("original", "", False),
        ("original", "", False),  # it was ben's that failed over
        ("original", "", True),
    ]
    assert rates(it, "api") == {"api": (1.0, 4.0, 2.0, 3.0)}


def test_two_services_of_one_workload_are_counted_apart(it: Attaching, heard: list[RequestRecord]) -> None:
    hold(it, "api", "api", "mine")
    hold(it, "api", "public", "other")
    it._heard([request(by="mine"), request("public")], {"api": {"/mine": 5}, "public": {"original": 10}}, WHO)
    assert [(each.target, each.answered) for each in heard] == [("api", "local"), ("public", "original")]
    assert rates(it, "api") == {"api": (1.0, 0.0, 0.0, 0.0), "public": (0.0, 2.0, 0.0, 0.0)}


def test_two_services_of_a_project_that_share_a_service_each_hear_of_it(
    it: Attaching, heard: list[RequestRecord]
) -> None:
    hold(it, "v1", "api", "mine")
    hold(it, "v2", "api", "other")
    it._heard([request(by="mine")], {"api": {"/mine": 5}}, WHO)
    assert [(each.service, each.answered, each.by) for each in heard] == [
        ("v1", "local", ""),
        ("v2", "other", "ada@laptop"),
    ]
    assert rates(it, "v1") == {"api": (1.0, 0.0, 0.0, 0.0)}
    assert rates(it, "v2") == {"api": (0.0, 0.0, 1.0, 0.0)}


@pytest.mark.parametrize(
    ("more", "outcome", "blame"),
    [
        ({}, "200", ""),
        ({"status": 404}, "404", "client"),
        ({"status": 503}, "503", "server"),
        ({"status": 0}, "", "server"),
        ({"status": 0, "method": "TCP"}, "", ""),
        ({"status": 0, "method": "TCP", "answered": "nobody"}, "", "server"),
        ({"answered": "nobody"}, "200", "server"),
        ({"grpc": 0}, "OK", ""),
        ({"grpc": 5}, "NOT_FOUND", "client"),
        ({"grpc": 14}, "UNAVAILABLE", "server"),
        ({"grpc": 99}, "grpc 99", "server"),
    ],
)
def test_how_it_ended_in_a_word(more: dict[str, Any], outcome: str, blame: str) -> None:
    fields = {"method": "GET", "path": "/", "status": 200, "duration": 1, "answered": "local", **more}
    found = RequestRecord("api", 0, **fields)
    assert (found.outcome, found.blame) == (outcome, blame)
    assert RequestRecord.from_json(found.to_json()) == found
