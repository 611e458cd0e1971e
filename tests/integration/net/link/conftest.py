"""A pod whose router leads through a real link, on asyncio's event loop and on uvloop's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from devloop.net.router import ToLink
from devloop.remote.life import LiveLink
from devloop.remote.sandbox import Forward, SandboxCluster, SandboxLink, SandboxService
from devloop.remote.ssh import ssh_link
from tests.integration.net.conftest import Cluster, Pod
from tests.integration.remote import target
from tests.integration.remote.conftest import target_ports
from tests.integration.remote.openssh import Sshd, sshd

__all__ = ["sshd", "target_ports"]
FIRST = 100
"""The port at 10.96.0.1 that leads to the first of target.py's services."""
OWN = 80
"""The port that leads to `listener`."""


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    with contextlib.suppress(ImportError):
        import uvloop

        factories["uvloop"] = uvloop.new_event_loop
    return factories


@dataclass
class Way:
    """From a pod through a link to target.py's services, at 10.96.0.1 and the ports from FIRST on."""

    pod: Pod
    link: LiveLink
    resets: bool
    """Whether the other end tells a reset from an end. OpenSSH sends EOF for both (channels.c, chan_read_failed)."""


def services(ports: tuple[int, ...], listener: socket.socket) -> dict[int, int]:
    """Port at 10.96.0.1 → port here; nothing listens on the last."""
    return {FIRST + index: port for index, port in enumerate(ports)} | {OWN: listener.getsockname()[1]}


@asynccontextmanager
async def opened(
    cluster: Cluster, link: LiveLink, host: str, ports: dict[int, int], *, resets: bool
) -> AsyncIterator[Way]:
    link.start()
    await link.ready(10)
    for port, there in ports.items():
        cluster.router.targets["10.96.0.1", port] = ToLink(link, host, there)
    try:
        pod = await cluster.pod()
        yield Way(pod, link, resets)
        await pod.proxy.close()
    finally:
        await link.close()


@pytest.fixture
async def sandbox_way(cluster: Cluster, target_ports: tuple[int, ...], listener: socket.socket) -> AsyncIterator[Way]:
    behind = {port: Forward(there) for port, there in services(target_ports, listener).items()}
    link = SandboxLink(SandboxCluster((SandboxService("target", behind),)))
    ports = {port: port for port in (*behind, FIRST + target.REFUSED)}
    async with opened(cluster, link, "target", ports, resets=True) as way:
        yield way


@pytest.fixture
async def ssh_way(
    cluster: Cluster, target_ports: tuple[int, ...], listener: socket.socket, sshd: Sshd
) -> AsyncIterator[Way]:
    link = ssh_link("bastion", config=[sshd.config])
    ports = services(target_ports, listener) | {FIRST + target.REFUSED: 1}
    async with opened(cluster, link, "127.0.0.1", ports, resets=False) as way:
        yield way


@pytest.fixture(params=["sandbox", "ssh"])
def way(request: pytest.FixtureRequest) -> Way:
    found: Way = request.getfixturevalue(f"{request.param}_way")
    return found


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server of this machine's that the test accepts for."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.setblocking(False)
        yield made
