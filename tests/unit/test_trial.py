"""The trial's own reckoning: which event a failure is counted to, and in which order events come."""

from __future__ import annotations

from itertools import islice
from typing import Any

from tests.cluster.trial import floors
from tests.cluster.trial.figures import Claim, Event, Row, by_kind, table, tabulate
from tests.cluster.trial.floors import Floor, above
from tests.cluster.trial.schedule import ATTACHABLE, HELD, KINDS, LONG, Step, schedule

PLANS = {
    "web new": {"service": "web", "kind": "http"},
    "web held": {"service": "web", "kind": "http", "held": True},
    "web socket": {"service": "web", "kind": "ws", "held": True},
}


def failure(at: float, **more: Any) -> dict[str, Any]:
    return {
        "client": "web new",
        "at": at,
        "took": 0.0,
        "kind": "failed",
        "error": "refused",
        "opened": at,
        "calls": 0,
        **more,
    }


def answers(since: float, client: str, **who: int) -> dict[str, Any]:
    return {"client": client, "since": since, "until": since + 0.5, "ok": sum(who.values()), "who": who, "slow": 0.0}


def rows(*lines: dict[str, Any], claims: tuple[Claim, ...] = ()) -> list[Row]:
    events = [Event("start", 100.0), Event("attach web", 110.0), Event("leave web", 120.0)]
    return tabulate(events, claims, lines, PLANS)


def test_a_failure_belongs_to_the_event_that_came_before_it() -> None:
    found = rows(failure(99.0), failure(105.0), failure(110.1), failure(125.0))
    assert [each.count("failed") for each in found] == [1, 1, 1], "what was before everything is nobody's"
    (held,) = rows(failure(125.0, opened=115.0))[2].failures
    assert held.origin == "attach web"


def test_what_was_under_way_when_something_happened_belongs_to_that() -> None:
    cut = failure(119.5, took=0.6)
    stuck = failure(119.5, took=10.0, kind="stuck")
    found = rows(cut, stuck)
    assert (found[2].count("failed"), found[1].count("stuck")) == (1, 1)


def test_answers_from_the_wrong_side_are_counted_between_events_alone() -> None:
    here = Claim("web", True, 111.0, 119.0)
    away = {"web-1": 3}
    lines = [answers(at, client, **away) for at in (111.2, 115, 118.8) for client in ("web new", "web held")]
    found = rows(*lines, answers(115, "web new", **{"local-ada": 9}), claims=(here,))
    assert dict(found[1].astray) == {"web new": 3}
    assert dict(found[1].past) == {"web held": 3}
    back = rows(answers(125, "web held", **{"local-ada": 2}), claims=(Claim("web", False, 121.0, 130.0),))
    assert dict(back[2].astray) == {"web held": 2}, "after leaving, nothing comes here, by whatever connection"


def test_what_goes_past_has_to_be_said() -> None:
    lines = [answers(115, client, **{"web-1": 3}) for client in ("web held", "web socket")]

    def unsaid(**more: Any) -> dict[str, int]:
        return dict(rows(*lines, claims=(Claim("web", True, 111.0, 119.0, **more),))[1].unsaid)

    assert unsaid(said=2) == unsaid(said=None) == {}
    assert unsaid(said=0) == {"web held": 3, "web socket": 3}
    assert unsaid(said=2, moved=True) == {"web held": 3}, "a WebSocket goes on where it is"
    assert above(rows(*lines, claims=(Claim("web", True, 111.0, 119.0, said=2),))) == []
    assert len(above(rows(*lines, claims=(Claim("web", True, 111.0, 119.0, said=0),)))) == 1


def test_what_is_above_its_floor_is_said(monkeypatch: Any) -> None:
    assert above(rows()) == []
    monkeypatch.setattr(floors, "FLOORS", {"leave": {"failed": Floor(1, "why", clients=("web",))}})
    assert above(rows(failure(125.0))) == []
    assert len(above(rows(failure(125.0), failure(126.0)))) == 1
    assert len(above(rows(failure(125.0, client="checkout")))) == 1, "it is not for that client"
    assert len(above(rows(failure(125.0, kind="wrong")))) == 1
    assert len(above(rows(failure(115.0)))) == 1


def test_a_floor_for_each_connection_grows_with_those_that_were_there(monkeypatch: Any) -> None:
    monkeypatch.setattr(floors, "FLOORS", {"leave": {"failed": Floor(1, "why", each=True)}})
    assert above(rows(*(failure(125.0, opened=opened) for opened in (105.0, 106.0, 122.0)))) == []
    assert len(above(rows(*(failure(125.0, opened=opened) for opened in (105.0, 105.0, 122.0))))) == 1
    assert len(above(rows(*(failure(125.0, opened=opened) for opened in (121.0, 122.0))))) == 1


def test_every_floor_has_a_reason_and_an_event_that_there_is() -> None:
    for kind, floors_of in floors.FLOORS.items():
        assert kind in {*KINDS, *LONG, "attach", "start", "end"}
        for floor in floors_of.values():
            assert floor.most > 0
            assert floor.reason


def test_the_table_has_every_event_and_every_kind_of_failure() -> None:
    found = rows(failure(125.0), failure(126.0, error="an empty 503"), answers(125, "web new", web=7))
    text = table(found)
    assert all(each in text for each in ("start", "attach web", "leave web", "an empty 503"))
    assert by_kind(found)["leave"] == {
        "times": 1,
        "requests": 7,
        "failed": 2,
        "stuck": 0,
        "wrong": 0,
        "astray": 0,
        "past": 0,
        "unsaid": 0,
    }


def test_a_seed_gives_one_order_in_which_everything_is_possible() -> None:
    orders = set()
    for seed in range(50):
        steps = list(islice(schedule(seed, long=True), 120))
        assert steps == list(islice(schedule(seed, long=True), 120))
        orders.add(tuple(steps))
        attached: set[str] = set()
        for step in steps:
            match step:
                case Step("attach", service):
                    assert service in set(ATTACHABLE) - attached
                    attached.add(service)
                case Step(kind, service) if kind in HELD:
                    assert service in attached
                case Step("two-developers", service):
                    assert service not in attached
                case Step("agent-killed" | "engine-killed" | "engine-gone"):
                    assert attached
            if step.kind == "leave":
                attached.discard(step.service)
            if step.kind == "engine-gone":
                attached.clear()
        assert {each.kind for each in steps[:60]} == {*KINDS, *LONG, "attach"}
    assert len(orders) == 50
