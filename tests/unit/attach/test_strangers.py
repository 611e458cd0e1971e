"""Who has connected and said nothing: how many, how long, and that nobody is locked out by them."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from devloop.agent import doors, envoy, runner
from devloop.agent.doors import Doors
from devloop.agent.strangers import Strangers
from tests.ports import free_port


class Arrivals:
    """What `close` was called for."""

    def __init__(self) -> None:
        self.closed: list[str] = []

    def close(self, name: str) -> Callable[[], None]:
        return lambda: self.closed.append(name)


async def test_the_oldest_of_an_address_makes_room_for_the_next() -> None:
    arrivals, strangers = Arrivals(), Strangers(total=10, each=2, seconds=60)
    for name in ("a", "b", "c"):
        strangers.arrived("10.0.0.1", arrivals.close(name))
    strangers.arrived("10.0.0.2", arrivals.close("other"))
    assert arrivals.closed == ["a"]
    assert len(strangers) == 3


async def test_the_address_that_has_most_makes_room_for_the_others() -> None:
    arrivals, strangers = Arrivals(), Strangers(total=4, each=3, seconds=60)
    for number in range(3):
        strangers.arrived("10.0.0.1", arrivals.close(f"many {number}"))
    strangers.arrived("10.0.0.2", arrivals.close("one"))
    strangers.arrived("10.0.0.3", arrivals.close("two"))
    assert arrivals.closed == ["many 0"]
    assert len(strangers) == 4


async def test_each_has_its_time_and_who_is_known_keeps_the_connection() -> None:
    arrivals, strangers = Arrivals(), Strangers(total=4, each=4, seconds=0.01)
    gone = asyncio.Event()
    with strangers.arrived("10.0.0.1", arrivals.close("known")):
        pass
    strangers.arrived("10.0.0.1", gone.set)
    async with asyncio.timeout(5):
        await gone.wait()
    assert not arrivals.closed
    assert len(strangers) == 0


@pytest.mark.parametrize(
    "said", [b"", b"no JSON\n", b"[]\n", b'{"door": "x", "token": "bad"}\n', b"[" * 60_000 + b"\n", b"x" * 200_000]
)
async def test_who_does_not_know_the_token_is_closed_at_once(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    """Also one that reads nothing: 300 sockets with a bad token stayed open until the agent had no descriptors left."""
    monkeypatch.setattr(doors, "PORT", free_port())
    monkeypatch.setattr(doors, "ANSWER_SECONDS", 0.05)
    made = Doors(lambda _: (), lambda: None)
    await made.listen()
    try:
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", doors.PORT)
            writer.write(said)
            async with asyncio.timeout(5):
                with pytest.raises(ConnectionError) if b"x" * 999 in said else _nothing():
                    assert await reader.read() == b""
            writer.close()
        assert len(made._strangers) == 0
    finally:
        await made.close()


class _nothing:  # noqa: N801 - as contextlib.nullcontext, for a reset that may come or not
    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, *_: Any) -> bool:
        return kind is not None and issubclass(kind, ConnectionError)


async def test_doors_get_in_past_a_crowd_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "PORT", free_port())
    came = asyncio.Event()
    made = Doors(lambda _: ("127.0.0.1",), came.set)
    await made.listen()
    crowd = [socket.create_connection(("127.0.0.1", doors.PORT)) for _ in range(60)]
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", doors.PORT)
        writer.write(json.dumps({"door": "uid", "token": made.token}).encode() + b"\n")
        async with asyncio.timeout(5):
            await came.wait()
        assert set(made.known) == {"uid"}
        assert len(made._strangers) <= doors.STRANGERS_EACH
        writer.close()
    finally:
        for each in crowd:
            each.close()
        await made.close()


def test_envoy_is_told_what_it_may_hold(tmp_path: Path) -> None:
    made = envoy.bootstrap(str(tmp_path))["overload_manager"]
    assert {each["name"].rpartition(".")[2] for each in made["resource_monitors"]} == {
        "fixed_heap",
        "global_downstream_max_connections",
        "injected_resource",
    }
    assert runner.HEAP_BYTES < runner.DATA_BYTES < 400 << 20, "its container has 448 MiB"
