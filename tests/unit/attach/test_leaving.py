"""Which listeners stay for whom, and for how long."""

from __future__ import annotations

import json
from dataclasses import replace

from devloop.agent.envoy import files
from devloop.agent.leaving import MOST_SECONDS, SETTLE_SECONDS, Leaving
from devloop.agent.plan import PortPlan, ServicePlan

PLAN = ServicePlan("api", (PortPlan(80, 20000, "http", (("10.0.0.1", 8080),)),))
LATER = SETTLE_SECONDS + 1


def by_address(plan: ServicePlan) -> ServicePlan:
    return replace(plan, ports=tuple(replace(each, endpoints=(("10.96.0.9", 80),)) for each in plan.ports))


def listening(made: Leaving, now: float) -> tuple[int, int]:
    """Listeners and clusters of Envoy's."""
    out = files(made.now(now).values(), "/f")
    lds, cds = (len(json.loads(out[f"{kind}.json"])["resources"]) for kind in ("lds", "cds"))
    return lds, cds


def test_a_listener_stays_until_its_last_connection_has_ended_and_its_clusters_longer() -> None:
    made = Leaving(by_address)
    made.leave(PLAN, 0)
    assert not made.due(1)  # somebody may still come
    (plan,) = made.now(1).values()
    assert plan.leaving and plan.ports == PLAN.ports
    assert made.changes(LATER)
    (plan,) = made.now(LATER).values()
    assert plan.ports[0].endpoints == (("10.96.0.9", 80),)  # its pods may be others by now
    assert made.due(LATER) and not made.counted({20000: 1, 20001: 0}, LATER)
    assert listening(made, LATER) == (1, 1)
    assert made.counted({20000: 0}, 2 * LATER)
    assert listening(made, 2 * LATER) == (0, 1)
    assert made and made.changes(4 * LATER)
    assert listening(made, 4 * LATER) == (0, 0) and not made


def test_one_that_never_ends_keeps_nothing_for_ever() -> None:
    made = Leaving(by_address)
    made.leave(PLAN, 0)
    assert not made.counted({20000: 1}, MOST_SECONDS - 1)
    assert made.counted({20000: 1}, MOST_SECONDS + 1)


def test_who_attaches_it_again_takes_its_listener() -> None:
    made = Leaving(by_address)
    made.leave(PLAN, 0)
    assert made.listeners("api") == {80: 20000} and made.endpoints("api", 80) == PLAN.ports[0].endpoints
    made.back({"api"})
    assert not made and made.listeners("api") == {}


def test_a_door_stays_as_long_as_its_pods_listener() -> None:
    made = Leaving(by_address)
    made.leave(replace(PLAN, pod="abc"), 0)
    assert made.pods == {"abc"} and made.listeners("api") == {}
