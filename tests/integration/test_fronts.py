"""The ports of localhost that lead to services: whose they are, and when."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import closing

import pytest

from devloop.engine.fronts import Fronts
from devloop.net.router import HostLoopback
from devloop.relay import Target
from tests.ports import free_port
from tests.unit.core.playbook import service


class Rig:
    def __init__(self) -> None:
        self.notices: list[str] = []
        self.port = free_port()
        self.fronts = Fronts(self.route, lambda level, text, hint: self.notices.append(text))
        names = ("a", "b")
        self.fronts.update({name: service(name, ports={"http": self.port} if name == "a" else {}) for name in names})

    async def route(self, name: str, port: int) -> Target:
        return HostLoopback(port)

    def free(self) -> bool:
        with closing(socket.socket()) as probe:
            try:
                probe.bind(("127.0.0.1", self.port))
            except OSError:
                return False
            return True


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    yield made
    await made.fronts.close()


async def test_in_a_namespace_the_port_is_always_the_engines(rig: Rig) -> None:
    assert rig.fronts.published("a") == {"http": rig.port}
    assert not rig.free()
    rig.fronts.set_here("a", here=True)
    assert not rig.free()
    assert rig.fronts.published("a") == {"http": rig.port}


async def test_on_the_host_the_port_is_the_services_while_it_is_here(rig: Rig) -> None:
    rig.fronts.on_host = True
    assert rig.fronts.set_here("a", here=True)
    assert not rig.fronts.set_here("a", here=True)
    assert rig.free()
    assert rig.fronts.published("a") == {"http": rig.port} and rig.fronts.reachable("a") == {}
    with socket.create_server(("127.0.0.1", rig.port)):
        assert rig.fronts.reachable("a") == {"http": rig.port}
    assert rig.fronts.set_here("a", here=False)
    assert not rig.free()
    assert rig.fronts.reachable("a") == {"http": rig.port}


async def test_who_is_here_has_the_port_that_another_one_has_elsewhere(rig: Rig) -> None:
    rig.fronts.on_host = True
    rig.fronts.update({name: service(name, ports={"http": rig.port}) for name in ("a", "b")})
    assert rig.fronts.published("a") == {"http": rig.port}
    other = rig.fronts.published("b")["http"]
    assert other != rig.port
    rig.fronts.set_here("b", here=True)
    assert rig.free()
    assert rig.fronts.published("b") == {"http": rig.port}
    assert rig.fronts.published("a")["http"] not in (rig.port, 0)
    assert any("a service of this project" in each for each in rig.notices)


async def test_a_port_that_is_not_declared_any_more_is_let_go(rig: Rig) -> None:
    rig.fronts.update({"a": service("a")})
    assert rig.free()
    assert rig.fronts.published("a") == {}


async def test_what_was_decided_too_late_is_made_good(rig: Rig) -> None:
    """That there are no namespaces is known only once a service is about to start."""
    rig.fronts.set_here("a", here=True)
    rig.fronts.on_host = True
    rig.fronts.update({"a": service("a", ports={"http": rig.port})})
    assert rig.free()
