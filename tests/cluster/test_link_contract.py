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
from ..integration.remote.contract import LinkContract, Rig, echoes, ended
from . import kit
from .conftest import Namespace
from .kit import ApiClient, client
from .kube.gate import Gate

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
    program = ("python3", "-c", inspect.getsource(target), str(FIRST), "0.0.0.0")
    await kit.run_pod(admin, namespace, HOST, program, readiness_probe=listening)


@asynccontextmanager
async def connected(kubeconfig: Path, folder: Path, way: Way = "auto") -> AsyncIterator[KubernetesLink]:
    """A link as that user, who is a machine of their own."""
    link = KubernetesLink(Kubeconfig(kubeconfig), key_file=folder / "agent_key", way=way)
    link.start()
    try:
        await link.ready(60)
        yield link
    finally:
        await link.close()


class ClusterContract(LinkContract):
    way: Way

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
            yield Rig(
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
        heard, size = hashlib.sha256(), 0
        while data := await reader.read(1 << 18):
            heard.update(data)
            size += len(data)
        expected = hashlib.sha256(b"".join(map(target.block, range(blocks))))
        assert (size, heard.digest()) == (blocks << 16, expected.digest())
        await ended(writer)


class TestAgent(ClusterContract):
    way = "agent"

    async def test_who_moves_much_gets_a_lane(self, rig: Rig) -> None:
        """A port-forward of its own to the agent, in both directions; eight at most, and they go when it is over."""
        carrier: Any = rig.link._carrier
        lanes = carrier.ssh.lanes

        async def one() -> None:
            reader, writer = await rig.open(target.ECHO)
            channel: Any = writer.transport
            text = bytes(range(256)) * 4096 * 16
            sending = asyncio.create_task(send(writer, text))
            heard, here = bytearray(), False
            while len(heard) < len(text):
                heard += await reader.read(1 << 18)
                here = here or (channel.by_lane and channel.lane._offset is not None)
                at_once.append(len(lanes._tasks))
            await sending
            assert heard == text
            by_lane.append(here)
            await ended(writer)

        async def send(writer: asyncio.StreamWriter, text: bytes) -> None:
            for at in range(0, len(text), 1 << 16):
                writer.write(text[at : at + (1 << 16)])
                await writer.drain()

        by_lane: list[bool] = []
        at_once: list[int] = []
        assert await echoes(rig, b"little")
        assert not lanes._tasks
        await one()
        assert by_lane == [True]
        await asyncio.gather(*(one() for _ in range(10)))
        assert sum(by_lane) >= MOST
        assert max(at_once) == MOST
        async with asyncio.timeout(10):
            while lanes._tasks:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


class TestPortForward(ClusterContract):
    way = "portforward"
