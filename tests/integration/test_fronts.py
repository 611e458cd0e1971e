"""The ports of localhost that lead to services: whose they are, and when."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from subprocess import PIPE

import pytest

from devloop.engine.fronts import Fronts
from devloop.local.ports import holder_of
from devloop.net.router import HostLoopback
from devloop.relay import Target
from devloop.state import LOCK
from tests.ports import free_port
from tests.unit.core.playbook import service


class Rig:
    def __init__(self) -> None:
        self.notices: list[str] = []
        self.port = free_port()
        self.told: list[tuple[str, str]] = []
        self.fronts = Fronts(self.route, self.notice)
        names = ("a", "b")
        self.fronts.update({name: service(name, ports={"http": self.port} if name == "a" else {}) for name in names})

    def notice(self, level: str, text: str, hint: str) -> None:
        self.notices.append(text)
        self.told.append((level, hint))

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


async def test_nobody_is_told_to_end_devloop_for_a_port_of_its_own(rig: Rig) -> None:
    """As in most projects of microservices: all of them listen on 8080, each in its own network."""
    rig.fronts.update({name: service(name, ports={"http": rig.port}) for name in ("a", "b")})
    (text,) = rig.notices
    assert (
        text
        == f"port {rig.port} is taken by a of this project, so b is at localhost:{rig.fronts.published('b')['http']}"
    )
    ((level, hint),) = rig.told
    assert level == "info" and "kill" not in hint


HOLD = r"""
import fcntl, os, socket, sys
lock = open(sys.argv[1], "w+") if sys.argv[1] else None
if lock:
    lock.write(f"{os.getpid()}\n{sys.argv[2]}\n"), lock.flush()
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", [True, False])
def test_who_holds_a_port_is_told_as_what_it_is_to_devloop(tmp_path: Path, engine: bool) -> None:
    lock, file = tmp_path / ".devloop" / LOCK, tmp_path / "devloop.toml"
    lock.parent.mkdir()
    environ = os.environ if engine else {**os.environ, "DEVLOOP_PROJECT": "shop", "DEVLOOP_SERVICE": "api"}
    command = [sys.executable, "-c", HOLD, str(lock) if engine else "", str(file)]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True, env=dict(environ)) as process:
        assert process.stdin is not None and process.stdout is not None
        who, hint = holder_of(int(process.stdout.readline()))
        process.stdin.close()
    if engine:
        assert who == f"devloop for {tmp_path} (pid {process.pid})"
        assert hint == f"`devloop -f {file} down` ends that project, or change the port"
    else:
        assert who == f"api of devloop's project shop (pid {process.pid})"
        assert hint == "`devloop toggle api off` there, or change the port"
    assert "kill" not in hint


def test_a_port_of_this_process_is_devloop_s_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert holder_of(server.getsockname()[1]) == ("devloop itself", "change the port")
