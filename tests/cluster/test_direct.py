"""Connections straight to the agent's pod, at a cluster whose pods this machine reaches, or comes to reach."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from devloop.attach import Phase as AttachPhase
from devloop.remote.link import LinkState, Phase

from ..integration.remote import target
from ..integration.remote.contract import Rig, ended, until
from . import kit
from .attaching import Here, Load, ask, client_pod, engine, objects_of, run_service
from .conftest import Namespace, Target, unavailable
from .kit import ApiClient, client
from .kube.gate import Gate
from .kube.routes import to_pods
from .test_link_contract import FIRST, HOST, ClusterContract, connected, run_target
from .test_link_life import AGENT, agent_uid, nothing_left, says_bye

Route = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def route(cluster: Target) -> Route:
    """`with route():` pods are reached from here."""
    own = cluster.need_own("A route to the pods")
    return partial(to_pods, *own.settings.node_ips)


@pytest.fixture
def routed(route: Route) -> Iterator[None]:
    """Pods are reached from here."""
    try:
        with route():
            yield
    except OSError as problem:
        unavailable(f"no route to the pods: {problem}")


def is_direct(state: LinkState) -> bool:
    return bool(state.direct)


def is_not(state: LinkState) -> bool:
    return not state.direct


@pytest.mark.usefixtures("routed")
class TestDirect(ClusterContract):
    way = "agent"

    async def prepare(self, rig: Rig) -> None:
        await until(rig.link, is_direct)
        by_the_api_server = rig.cut

        async def cut() -> None:
            await by_the_api_server()
            carrier: Any = rig.link._carrier
            carrier.abort("cut")

        rig.cut = cut


@pytest.mark.usefixtures("routed")
@pytest.mark.parametrize("mode", ["refuse", "silent"])
async def test_an_api_server_that_is_away_is_not_missed(
    admin: ApiClient,
    namespace: Namespace,
    gate: Gate,
    behind_gate: Callable[[Path], Path],
    tmp_path: Path,
    mode: Any,
) -> None:
    await run_target(admin, namespace.name)
    async with connected(behind_gate(namespace.developer), tmp_path, "agent") as link:
        await until(link, is_direct)
        states: list[LinkState] = []
        link.subscribe(states.append)
        reader, writer = await link.open(HOST, FIRST + target.ECHO)
        began = time.monotonic()
        with gate.closed(8, mode):
            while time.monotonic() - began < 8:
                writer.write(b"still there")
                assert await reader.readexactly(11) == b"still there"
                asked = time.monotonic()
                assert await says_bye(link)
                assert time.monotonic() - asked < 1
                await asyncio.sleep(0.2)
        assert not [each for each in states if each.phase is not Phase.CONNECTED]
        await ended(writer)
    await nothing_left(admin, namespace.name)


@pytest.mark.usefixtures("routed")
async def test_a_killed_agent_is_made_anew_and_reached_directly_again(
    admin: ApiClient, namespace: Namespace, kill_pod: Callable[[str, str], Awaitable[None]], tmp_path: Path
) -> None:
    await run_target(admin, namespace.name)
    async with connected(namespace.developer, tmp_path, "agent") as link:
        await until(link, is_direct)
        before = link.state.direct, await agent_uid(admin, namespace.name)
        gap = asyncio.Event()
        link.subscribe(lambda state: gap.set() if state.phase is not Phase.CONNECTED else None)
        await kill_pod(namespace.name, AGENT)
        await asyncio.wait_for(gap.wait(), 10)
        assert await says_bye(link)
        await until(link, is_direct)
        assert (link.state.direct, await agent_uid(admin, namespace.name)) != before
    await nothing_left(admin, namespace.name)


async def test_a_network_that_comes_and_goes(
    admin: ApiClient, namespace: Namespace, route: Route, tmp_path: Path
) -> None:
    """As when a VPN is switched on and off: devloop sees that routes have changed, and nobody has to say so."""
    await run_target(admin, namespace.name)
    async with connected(namespace.developer, tmp_path, "agent") as link:
        assert await says_bye(link) and not link.state.direct
        states: list[LinkState] = []
        for _ in range(2):
            with route():
                await until(link, is_direct)
                link.subscribe(states.append)
                assert await says_bye(link)
            began = time.monotonic()
            assert await says_bye(link)
            assert time.monotonic() - began < 6
            await until(link, is_not)
        assert not [each for each in states if each.phase is not Phase.CONNECTED]
    await nothing_left(admin, namespace.name)


@pytest.mark.usefixtures("routed")
async def test_one_who_wants_none_has_none(admin: ApiClient, namespace: Namespace, tmp_path: Path) -> None:
    await run_target(admin, namespace.name)
    async with connected(namespace.developer, tmp_path, direct=False) as link:
        assert await says_bye(link)
        carrier: Any = link._carrier
        assert len(carrier.connections) == 1 and not link.state.direct
        assert await listening(namespace) == []
        async with connected(namespace.other_developer, tmp_path / "ben", "agent") as other:
            await until(other, is_direct)
            assert await listening(namespace) == [":2223"]
        await kit.eventually(partial(listening, namespace), [], 10)


async def test_another_address_that_leads_to_the_agent(
    cluster: Target, admin: ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    """A NodePort, as for a kind cluster whose nodes are reached and whose pods are not."""
    own = cluster.need_own("The node's address")
    await run_target(admin, namespace.name)
    spec = client.V1ServiceSpec(
        type="NodePort",
        selector={"app.kubernetes.io/name": AGENT},
        ports=[client.V1ServicePort(port=2223)],
    )
    service = client.V1Service(metadata=client.V1ObjectMeta(name="devloop-direct"), spec=spec)
    made = await client.CoreV1Api(admin).create_namespaced_service(namespace.name, service)
    address = (own.settings.node_ip, made.spec.ports[0].node_port)
    async with connected(namespace.developer, tmp_path, direct=address) as link:
        # A new pod is behind its Service a moment after it runs; the second attempt is 10 s later.
        await until(link, is_direct, 30)
        assert link.state.direct == f"{address[0]}:{address[1]}"
        assert await says_bye(link)


async def listening(space: Namespace) -> list[str]:
    """Ports that the agent listens on at the pod's own address."""
    ran = await kit.execute(space.developer, space.name, AGENT, "python3", "-c", LISTENING)
    assert ran.code == 0, ran
    return sorted(set(ran.stdout.split()))


LISTENING = """
for name in ("tcp", "tcp6"):
    for line in open(f"/proc/net/{name}").read().splitlines()[1:]:
        address, port = line.split()[1].split(":")
        if line.split()[3] == "0A" and set(address) == {"0"}:
            print(f":{int(port, 16)}")
"""


async def test_an_attachment_goes_straight_here_and_outlives_the_network(
    admin: ApiClient, namespace: Namespace, route: Route, tmp_path: Path
) -> None:
    await asyncio.gather(run_service(admin, namespace.name), client_pod(admin, namespace.name))
    before = await objects_of(admin, namespace.name)
    async with Here() as here, engine(namespace.developer, tmp_path) as ada:
        with route():
            await until(ada.link, is_direct)
            found = await ada.attachments.attach(ada.wanted(here), here)
            session: Any = ada.attachments._session
            carrier: Any = ada.link._carrier
            assert session.carrier is carrier.connections[0] is not carrier.ssh
            load = Load(namespace, rate=100, connections=4)
            await kit.eventually(lambda: ask(namespace), "here", 5)
            await asyncio.sleep(1)
        # The agent gives up who says nothing, as ever; then the attachment comes back by the API server.
        await until(ada.link, is_not)
        await kit.eventually(lambda: ask(namespace), "here", 15)
        result = await load.stop()
        assert result["failed"] == 0, str(result)
        assert found.state.phase is AttachPhase.ATTACHED
        await ada.attachments.leave(found)
    after = await objects_of(admin, namespace.name)
    assert after == before
