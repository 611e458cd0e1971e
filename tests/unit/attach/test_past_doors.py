"""From what a door sees to what the engine knows: how many connections lead past it, and what they carry."""

from __future__ import annotations

import asyncio
import json
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from devloop.agent import diag, door, doors
from devloop.agent.diag import Connection
from devloop.agent.request_rate import Compared
from devloop.attach.attachments import Attachments
from devloop.attach.earlier import Past

from .test_doors_agent import member, way


def led(number: int, client: str, packets: int | None) -> Connection:
    counted = None if packets is None else (packets, packets)
    return Connection(socket.AF_INET, b"%d" % number, 8080, client, 5000, False, 0, 0, counted, "10.0.0.1")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the kernel says, and when."""
    found = SimpleNamespace(connections=[], at=100.0)
    monkeypatch.setattr(diag, "opened", lambda: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(diag, "connections", lambda *_, taken_over: found.connections)
    monkeypatch.setattr("devloop.agent.door.time", SimpleNamespace(monotonic=lambda: found.at))
    return found


async def test_a_door_compares_with_what_it_was_asked_before(seen: SimpleNamespace) -> None:
    made = door.Door(("10.0.0.9", 19999), "t", "u0", "devloop_x", ["10.0.0.254"])
    # The agent's, the kubelet's and the pod's own are none that somebody has from before.
    others = [led(7, each, 10**6) for each in ("10.0.0.9", "10.0.0.254", "10.0.0.1", "127.0.0.1")]
    seen.connections = [led(1, "10.0.0.6", 10), led(2, "10.0.0.7", 20), *others]
    asked = frozenset({8080})
    clients = {"10.0.0.6": 1, "10.0.0.7": 1}
    assert made._earlier(asked) == {"clients": clients, "compared": None}
    seen.at, seen.connections = 102.0, [led(1, "10.0.0.6", 14), led(2, "10.0.0.7", 40)]
    assert made._earlier(frozenset({9090}))["compared"] is None  # of other ports
    answer = made._earlier(asked)
    assert answer == {"clients": clients, "compared": [12.0, 2, 2]}
    assert json.loads(json.dumps(answer)) == answer
    seen.at, seen.connections = 104.0, [led(1, "10.0.0.6", None), led(2, "10.0.0.7", None)]
    assert made._earlier(asked)["compared"] == [0.0, 0, 2], "an old kernel's are not known"


@pytest.mark.parametrize("compared", [[12.0, 2, 2], None, "nothing", [float("nan"), 2, 2]])
async def test_the_agent_hands_on_what_can_be_read(compared: Any) -> None:
    made, (ada,), _ = way(member("ada"))
    found = doors.Door("u0", "10.0.0.1", asyncio.StreamReader(), cast(Any, None))

    async def said(**_: Any) -> dict[str, Any]:
        return {"clients": {"10.0.0.6": 2}, "compared": compared}

    found._ask = said  # type: ignore[method-assign]
    made._doors.known["u0"] = found
    told = await made.earlier(ada)
    assert told == {
        "pods": {"u0": {"10.0.0.6": 2}},
        "compared": {"u0": [12.0, 2, 2]} if compared == [12.0, 2, 2] else {},
    }


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ({"compared": {"u0": [12.0, 2, 2]}}, Compared(12.0, 2, 2)),
        ({"compared": {"u1": [12.0, 2, 2]}}, None),
        ({"compared": {"u0": ["?"]}}, None),
        ({}, None),  # an older agent
    ],
)
async def test_the_engine_reads_an_older_agents_answer_too(answer: dict[str, Any], wanted: Compared | None) -> None:
    async def ask(**_: Any) -> dict[str, Any]:
        return {"pods": {"u0": {"10.0.0.6": 2}}, **answer}

    async def desk() -> Any:
        return SimpleNamespace(ask=ask)

    made = Attachments.__new__(Attachments)
    made.api = cast(Any, SimpleNamespace(where="here"))
    made._desk = desk  # type: ignore[method-assign]
    assert await made._past_doors("a") == {"u0": Past({"10.0.0.6": 2}, wanted)}
