"""The links' contract at a real cluster, with a developer's rights: by the agent, and by plain port-forwards."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from devloop.remote.kubernetes.agent import KubernetesLink, Way
from devloop.remote.kubernetes.kubeconfig import Kubeconfig
from devloop.remote.lanes import MOST

from ..integration.remote import target
from ..integration.remote.contract import LinkContract, Rig, all_of_it, echoes, ended
from . import kit
from .conftest import Namespace
from .kit import ApiClient, client
from .kube.gate import Gate

pytestmark = pytest.mark.role("link")

FIRST = 9000
HOST = "target"


async def run_target(admin: ApiClient, namespace: str) -> None:
    """A pod with the contract's services, and a Service in front of it."""
    ports = [*range(FIRST, FIRST + target.SERVICES), FIRST + target.REFUSED]
    service = client.V1Service(
        metadata=client.V1ObjectMeta(name=HOST),
        spec=client.V1ServiceSpec(
            selector={"app": HOST}, ports=[client.V1ServicePort(name=f"p{each}", port=each) for each in ports]
        ),
    )
    await client.CoreV1Api(admin).create_namespaced_service(namespace, service)
    listening = client.V1Probe(
        _exec=client.V1ExecAction(command=["sh", "-c", f"ss -Hltn 'sport = {FIRST}' | grep -q ."]),
        period_seconds=1,
    )
    program = ("python3", "-c", inspect.getsource(target), str(FIRST), "")
    await kit.run_pod(admin, namespace, HOST, program, readiness_probe=listening)


@asynccontextmanager
async def connected(
    kubeconfig: Path, folder: Path, way: Way = "auto", *, direct: bool | tuple[str, int] = True
) -> AsyncIterator[KubernetesLink]:
    """A link as that user, who is a machine of their own."""
    link = KubernetesLink(Kubeconfig(kubeconfig), key_file=folder / "agent_key", way=way, direct=direct)
    link.start()
    try:
        await link.ready(60)
        yield link
    finally:
        await link.close()


class ClusterContract(LinkContract):
    way: Way

    async def prepare(self, rig: Rig) -> None:
        """Whatever else has to be before a test begins."""

    @pytest.fixture
    async def rig(
        self,
        admin: ApiClient,
        namespace: Namespace,
        gate: Gate,
        behind_gate: Callable[[Path], Path],
        tmp_path: Path,
    ) -> AsyncIterator[Rig]:
        await run_target(admin, namespace.name)

        async def cut() -> None:
            # For half a second: a port-forward that may be opened anew at once leaves no gap to be seen.
            gate.refuse()
            mending = threading.Timer(0.5, gate.open)
            mending.start()
            timers.append(mending)

        timers: list[threading.Timer] = []
        plain = self.way == "portforward"

        ports = tuple(range(FIRST, FIRST + target.SERVICES))
        async with connected(behind_gate(namespace.developer), tmp_path, self.way) as link:
            made = Rig(
                link,
                HOST,
                ports,
                FIRST + target.REFUSED,
                "nobody",
                cut,
                late_refusal=plain,
                half_close=not plain,
                lingering=2.5 if plain else 0.02,
            )
            await self.prepare(made)
            yield made
        for each in timers:
            await asyncio.to_thread(each.join)

    async def test_a_client_that_does_not_read_for_long_loses_nothing(self, rig: Rig) -> None:
        """Longer than it takes to find that a connection is dead; others go on, and so does this one then."""
        blocks = 64 * 16
        reader, writer = await rig.open(target.SOURCE)
        writer.write(b"%d\n" % blocks)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        began = time.monotonic()
        while time.monotonic() - began < 9:
            assert await echoes(rig, b"others")
            await asyncio.sleep(0.5)
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        expected = hashlib.sha256(b"".join(map(target.block, range(blocks))))
        assert await all_of_it(reader) == (blocks << 16, expected.hexdigest())
        await ended(writer)


class TestAgent(ClusterContract):
    way = "agent"

    async def test_who_moves_much_gets_a_lane(self, rig: Rig) -> None:
        """A port-forward of its own to the agent, in both directions; eight at most, and they go when it is over."""
        carrier: Any = rig.link._carrier
        lanes = carrier.ssh.lanes
        stop = asyncio.Event()
        channels: list[Any] = []

        async def one() -> None:
            reader, writer = await rig.open(target.ECHO)
            channels.append(writer.transport)
            sending = asyncio.create_task(send(writer))
            heard = hashlib.sha256()
            while data := await reader.read(1 << 18):
                heard.update(data)
            assert heard.digest() == await sending
            await ended(writer)

        async def send(writer: asyncio.StreamWriter) -> bytes:
            said, number = hashlib.sha256(), 0
            while not stop.is_set():
                data, number = target.block(number), number + 1
                said.update(data)
                writer.write(data)
                await writer.drain()
            writer.write_eof()
            return said.digest()

        assert await echoes(rig, b"little")
        assert not lanes._tasks
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for _ in range(MOST + 2):
                group.create_task(one())
            while sum(each.by_lane and each.lane._offset is not None for each in channels) < MOST:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert len(lanes._tasks) == MOST
            stop.set()
        async with asyncio.timeout(10):
            while lanes._tasks:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


class TestPortForward(ClusterContract):
    way = "portforward"
