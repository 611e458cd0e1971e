"""A service that gets another network, as its holder has ended: what connects to it meanwhile waits for the new one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from devloop.engine import worlds
from devloop.engine.here import Here
from devloop.errors import DevloopError
from devloop.net.publish import Gate
from devloop.net.router import OffError
from tests.unit.core.playbook import service
from tests.waiting import until


class Publisher(SimpleNamespace):
    """`LocalNetwork.publisher`, as far as it is asked here."""


class Network:
    """A `LocalNetwork`; `closing` is what its end waits for."""

    def __init__(self) -> None:
        self.lost = False
        self.publisher = Publisher()
        self.gate: Gate | None = None
        self.closing = asyncio.Event()

    def set_gate(self, gate: Gate) -> None:
        self.gate = gate


class World:
    """A `World`, which takes its time to be closed."""

    def __init__(self, name: str, network: Network, folder: Path, data: Path) -> None:
        self.network = network
        self.ready = True
        self.closed = False

    async def open(self, *_: object) -> None:
        pass

    async def close(self) -> None:
        await self.network.closing.wait()
        self.closed = True


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> list[Network]:
    monkeypatch.setattr(worlds, "World", World)
    return []


@pytest.fixture
def here(networks: list[Network], tmp_path: Path) -> Here:
    async def nothing(*_: object) -> Any:
        return None

    async def opens(_: object) -> Network:
        networks.append(Network())
        return networks[-1]

    async def parts() -> Any:
        return side.parts

    outside = SimpleNamespace(
        notice=lambda *_: None, services=lambda: None, opened=lambda _: None, served=lambda _: None
    )
    outside.failed = lambda _, what, hint: pytest.fail(f"{what} {hint}")
    link = SimpleNamespace(start=lambda: None, ready=nothing, resolver=nothing)
    there = SimpleNamespace(open=opens, runs=lambda *_: None, starts=lambda *_: None, named=lambda *_: None)
    made = SimpleNamespace(networks=there, folder=SimpleNamespace(path=tmp_path), link=link, clusters={})
    specs = {"api": service("api", hold=200_000_000)}
    side: Any = SimpleNamespace(
        parts=made,
        _remote=SimpleNamespace(allowed_hosts=()),
        project=SimpleNamespace(services=specs),
        until_prepared=parts,
        until_standing=lambda _: nothing(),
        copies=tmp_path,
        connects=True,
    )
    found = Here(cast(Any, side), cast(Any, outside))

    async def source(_: object) -> tuple[Any, object]:
        return made, SimpleNamespace()

    found._source = source  # type: ignore[method-assign,assignment]
    return found


async def test_who_connects_while_it_gets_another_network_waits_for_that(here: Here, networks: list[Network]) -> None:
    here.set_gate("api", ready=False, coming=True, here=True)
    here.open_world("api")
    first = await here.ports("api")
    assert first is networks[0].publisher
    networks[0].lost = True
    waiting = asyncio.create_task(here.ports("api"))  # as it was here before, it is waited for all the same
    await asyncio.sleep(0)
    assert not waiting.done()
    here.open_world("api")
    assert await waiting is networks[1].publisher
    # The old one is not closed yet: what is told by its end that it has moved finds the new one.
    assert not networks[0].closing.is_set()
    assert await here.ports("api") is networks[1].publisher
    assert networks[1].gate is Gate.HELD
    networks[0].closing.set()
    await until(lambda: here._opening["api"].done())


async def test_one_that_does_not_come_is_refused(here: Here) -> None:
    with pytest.raises(DevloopError, match="api is not running"):
        await here.ports("api")
    here.set_gate("api", ready=False, coming=False, here=False)
    with pytest.raises(OffError):  # at once, and where it is by now is asked again
        await here.ports("api")
