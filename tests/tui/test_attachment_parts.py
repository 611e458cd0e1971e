"""How attachments and requests are put into words: the parts that know no screen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devloop.protocol import AttachmentStatus, RemoteStatus, RequestBatch, RequestRecord, ServiceStatus, State
from devloop.testing import shop, traffic
from tui import attachments, formats
from tui.board import REQUESTS_KEPT, Board
from tui.widgets.service_table import fit_columns

CLUSTER = RemoteStatus("kubernetes", "agent", "dev/shop", "connected", 0)
HELD = AttachmentStatus("intercept", "api", "attached", 0, ("all requests",), local_rate=1.4, original_rate=12.2)
API = ServiceStatus("api", "local", State.READY, "", 0, modes=("local", "remote"), workload="deployment/api")
GET = RequestRecord("api", 1000, "GET", "/", 200, 10, "local")


def holding(*found: AttachmentStatus) -> ServiceStatus:
    return replace(API, attachments=found)


def test_phases_and_answers_differ_in_shape() -> None:
    assert len({look.glyph for look in attachments.PHASES.values()}) == len(attachments.PHASES)
    answers = {look.glyph for look in attachments.ANSWERED.values()} | {attachments.FAILED_OVER.glyph}
    assert len(answers) == len(attachments.ANSWERED) + 1


def test_every_phase_of_the_engine_has_a_look() -> None:
    from devloop.attach import Phase

    assert set(attachments.PHASES) == {str(phase) for phase in Phase}


@pytest.mark.parametrize(
    ("changes", "width", "text"),
    [
        ({}, 19, "● int 1.4+12/s"),
        ({}, 13, "● int 1.4+12"),
        ({}, 8, "● int"),
        ({}, 3, "●"),
        ({"local_rate": 0.0, "original_rate": 0.0}, 13, "● intercept"),
        ({"kind": "wiretap"}, 13, "● tap 14/s"),
        ({"kind": "replace", "local_rate": 0.0, "original_rate": 0.0}, 13, "● replace"),
        ({"phase": "failed open"}, 19, "↯ int failed open"),
        ({"phase": "failed open"}, 13, "↯ failed open"),
        ({"phase": "attaching", "kind": "replace"}, 13, "◌ attaching"),
        ({"phase": "contested"}, 17, "⚑ int contested"),
        ({"phase": "refused"}, 13, "✗ int refused"),
        ({"phase": "dreaming"}, 13, "◌ dreaming"),
    ],
)
def test_marks(changes: dict[str, object], width: int, text: str) -> None:
    assert attachments.mark(holding(replace(HELD, **changes)), width) == text  # type: ignore[arg-type]


@given(
    st.sampled_from([*attachments.PHASES, "dreaming"]),
    st.sampled_from(["intercept", "replace", "wiretap", "x"]),
    st.floats(0, 99_999),
    st.floats(0, 99_999),
    st.integers(1, 19),
)
def test_marks_fit(phase: str, kind: str, here: float, there: float, width: int) -> None:
    found = AttachmentStatus(kind, "api", phase, 0, local_rate=here, original_rate=there)
    assert len(attachments.mark(holding(found), width)) <= width


def test_of_several_the_one_that_needs_a_person_is_told() -> None:
    refused = replace(HELD, phase="refused", target="api-admin")
    assert attachments.telling(holding(HELD, refused)) is refused
    assert attachments.telling(holding(HELD, replace(HELD, phase="left"))) is HELD
    assert attachments.telling(API) is None
    assert attachments.mark(API, 13) == ""


def test_what_is_held_and_what_can_be_attached() -> None:
    assert attachments.holds(holding(HELD))
    assert attachments.holds(holding(replace(HELD, phase="failed open")))
    assert not any(attachments.holds(holding(replace(HELD, phase=phase))) for phase in ("refused", "contested"))
    assert attachments.attachable(API, CLUSTER)
    assert not attachments.attachable(API, None)
    assert not attachments.attachable(API, replace(CLUSTER, kind="ssh"))
    assert not attachments.attachable(replace(API, mode="remote"), CLUSTER)
    assert not attachments.attachable(replace(API, workload="", modes=("local", "off")), CLUSTER)


@pytest.mark.parametrize(
    ("route", "words"),
    [
        ("all requests", "all requests"),
        ("10 % of all requests", "10 % of all requests"),
        ("baggage:devloop=ada", "baggage has devloop=ada"),
        ("x-user=ada", "x-user is ada"),
        ("x-user=ada and path^=/v2 and method=GET", "x-user is ada and path begins with /v2 and method is GET"),
        ("path~/v[12]/.*", "path matches /v[12]/.*"),
        ("2.5 % of those", "2.5 % of those with those"),
        ("25 % of path=/a", "25 % of those with path is /a"),
        ("something new", "something new"),
    ],
)
def test_routes_in_words(route: str, words: str) -> None:
    assert attachments.route_words(route) == words


def test_the_words_are_those_of_the_engines_routes() -> None:
    from devloop.agent.spec import ALL, Header, Match, Route, personal

    several = Route((Header("X-User", Match("prefix", "a")),), Match("exact", "/v2"), "POST", 5.0)
    assert [attachments.route_words(str(route)) for route in (ALL, personal("ada"), several)] == [
        "all requests",
        "baggage has devloop=ada",
        "5 % of those with x-user begins with a and path is /v2 and method is POST",
    ]


@pytest.mark.parametrize(
    ("per_second", "text"),
    [(0, "0"), (0.4, "0.4"), (3.0, "3"), (9.96, "10"), (340, "340"), (999.6, "1.0k"), (1240, "1.2k"), (34_200, "34k")],
)
def test_rates(per_second: float, text: str) -> None:
    assert formats.rate(per_second) == text


def test_a_table_has_a_column_for_traffic_where_there_can_be_any() -> None:
    services = shop.snapshot(shop.fixed_clock).services
    for width in (60, 80, 120):
        assert "traffic" in [column.key for column in fit_columns(width, services, traffic=True)]
        assert "traffic" not in [column.key for column in fit_columns(width, services)]


@given(st.integers(20, 250))
def test_columns_fit_any_width_with_traffic(width: int) -> None:
    columns = fit_columns(width, shop.snapshot(shop.fixed_clock).services, traffic=True)
    if width >= 40:
        assert sum(column.width + 1 for column in columns) + 2 <= width


def test_requests_are_known_once_however_they_come() -> None:
    first, second, third, fourth = (replace(GET, at=1000 * n, path=f"/{n}") for n in range(1, 5))
    board = Board()
    board.apply(RequestBatch((second,)))  # an event, before the answer of what was before
    board.remember_requests("api", [first, second, third])
    board.apply(RequestBatch((third, fourth)))  # `third` was under way when the answer was
    assert board.requests_of("api") == [first, second, third, fourth]
    board.apply(RequestBatch((fourth,)))  # the same once more: two requests can be alike
    assert len(board.requests_of("api")) == 5
    board.apply(RequestBatch((replace(GET, service="web"),)))
    assert [each.service for each in board.requests_of("web")] == ["web"]


def test_requests_are_bounded_and_in_the_order_in_which_they_were_over() -> None:
    board = Board()
    slow = replace(GET, at=0, duration=10_000)
    board.remember_requests("api", [replace(GET, at=5), slow])
    assert board.requests_of("api")[-1] is slow
    board.apply(RequestBatch(tuple(replace(GET, at=20_000 + n) for n in range(REQUESTS_KEPT + 5))))
    assert len(board.requests_of("api")) == REQUESTS_KEPT


def test_the_shop_has_a_request_of_each_kind() -> None:
    requests = traffic.requests(shop.fixed_clock)
    assert {each.answered for each in requests} == set(attachments.ANSWERED) - {"other"}
    assert any(each.failed_over for each in requests)


def test_another_holders_answer_is_no_failure_and_not_ours() -> None:
    assert attachments.answered_by(replace(GET, answered="other", by="ben@studio")) == attachments.ANSWERED["other"]
    assert attachments.rates(replace(HELD, other_rate=3.0, failed_rate=0.2)) == (
        "1.4/s here, 12/s original, 3/s others, 0.2/s failed"
    )
