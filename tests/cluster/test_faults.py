"""Each fault does what it says, and only that; otherwise what is tested with it would prove nothing."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
import yaml

from . import kit
from .conftest import Namespace, Target
from .kit import ApiClient, client
from .kube.gate import Gate
from .kube.link import Link

ECHO = """
import socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
Server(("127.0.0.1", 8080), Echo).serve_forever()
"""
LOST = (OSError, aiohttp.ClientError, TimeoutError, AssertionError)


async def run_echo(admin: ApiClient, namespace: Namespace) -> None:
    """An echo server on a pod's loopback: what a port-forward reaches."""
    listening = client.V1Probe(
        _exec=client.V1ExecAction(command=["sh", "-c", "ss -Hltn 'sport = 8080' | grep -q ."]),
        period_seconds=1,
    )
    await kit.run_pod(admin, namespace.name, "echo", ("python3", "-c", ECHO), readiness_probe=listening)


async def echoes(stream: kit.Forwarded, text: bytes = b"still here", seconds: float = 10) -> bool:
    async with asyncio.timeout(seconds):
        await stream.send(text)
        heard = b""
        while len(heard) < len(text) and (data := await stream.receive()):
            heard += data
    return heard == text


async def nothing_heard(stream: kit.Forwarded, text: bytes, seconds: float) -> asyncio.Task[bytes]:
    """Send, and hear nothing for so long; returns what goes on listening."""
    await stream.send(text)
    waiting = asyncio.create_task(stream.receive())
    heard, _ = await asyncio.wait({waiting}, timeout=seconds)
    assert not heard
    return waiting


async def answers(kubeconfig: Path, seconds: float = 5) -> bool:
    """A connection of its own reaches the API server.

    With blocking sockets: a handshake that is cancelled half way leaves a transport open in asyncio.
    """
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # whether, not who

    def get() -> bool:
        server = urlsplit(yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["server"])
        connection = http.client.HTTPSConnection(str(server.hostname), server.port, timeout=seconds, context=context)
        try:
            connection.request("GET", "/version")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    return await asyncio.to_thread(get)


@pytest.mark.parametrize("mode", ["refuse", "silent"])
async def test_the_api_server_is_cut_for_as_long_as_asked(
    admin: ApiClient,
    namespace: Namespace,
    gate: Gate,
    behind_gate: Callable[[Path], Path],
    mode: str,
) -> None:
    await run_echo(admin, namespace)
    through = behind_gate(namespace.developer)
    async with kit.forward(through, namespace.name, "echo", 8080) as stream:
        assert await echoes(stream)
        seconds = 5.0
        started = time.monotonic()
        with gate.closed(seconds, "refuse" if mode == "refuse" else "silent"):
            # What was open: reset, or silent with what is sent meanwhile kept.
            if mode == "refuse":
                with pytest.raises(LOST):
                    assert await echoes(stream)
            else:
                waiting = await nothing_heard(stream, b"meanwhile", 0.3)
            # What is new: refused at once, or never answered.
            asked = time.monotonic()
            assert not await answers(through, seconds=2.0)
            if mode == "refuse":
                assert time.monotonic() - asked < 1.9
            else:
                assert time.monotonic() - asked >= 2.0
            # Somebody else's connections are not touched.
            assert await answers(namespace.other_developer)
            await kit.eventually(lambda: answers(through), True)
            assert time.monotonic() - started >= seconds
        if mode == "silent":
            # The connection itself was never closed: it goes on where it was.
            assert (await asyncio.wait_for(waiting, 10)) == b"meanwhile"
            assert await echoes(stream)


async def test_severed_connections_are_gone_and_new_ones_are_taken(
    admin: ApiClient, namespace: Namespace, gate: Gate, behind_gate: Callable[[Path], Path]
) -> None:
    await run_echo(admin, namespace)
    through = behind_gate(namespace.developer)
    async with kit.forward(through, namespace.name, "echo", 8080) as stream:
        assert await echoes(stream)
        gate.sever()
        with pytest.raises(LOST):
            assert await echoes(stream)
    async with kit.forward(through, namespace.name, "echo", 8080) as stream:
        assert await echoes(stream)


async def test_a_killed_pod_is_gone_with_its_connections(
    admin: ApiClient, namespace: Namespace, kill_pod: Callable[[str, str], Awaitable[None]]
) -> None:
    await run_echo(admin, namespace)
    async with kit.forward(namespace.developer, namespace.name, "echo", 8080) as stream:
        assert await echoes(stream)
        await kill_pod(namespace.name, "echo")

        async def broken() -> bool:
            try:
                return not await echoes(stream)
            except LOST:
                return True

        await kit.eventually(broken, True)
    with pytest.raises(client.ApiException) as missing:
        await client.CoreV1Api(admin).read_namespaced_pod("echo", namespace.name)
    assert missing.value.status == 404


async def test_a_restarted_kubelet_breaks_streams_and_keeps_pods(
    cluster: Target, admin: ApiClient, namespace: Namespace, restart_kubelet: Callable[[], None]
) -> None:
    own = cluster.need_own("Restarting the kubelet")
    await run_echo(admin, namespace)
    core = client.CoreV1Api(admin)
    before = await core.read_namespaced_pod("echo", namespace.name)
    kubelet = own.sandbox.running()["kubelet"]
    async with kit.forward(namespace.developer, namespace.name, "echo", 8080) as stream:
        assert await echoes(stream)
        await asyncio.to_thread(restart_kubelet)
        with pytest.raises(LOST):
            assert await echoes(stream)
    assert own.sandbox.running()["kubelet"] != kubelet
    async with kit.forward(namespace.developer, namespace.name, "echo", 8080) as stream:
        assert await echoes(stream)
    after = await core.read_namespaced_pod("echo", namespace.name)
    (was,), (now,) = before.status.container_statuses, after.status.container_statuses
    assert now.container_id == was.container_id
    assert now.restart_count == 0


async def fastest(kubeconfig: Path) -> float:
    """The shortest round trip of ten requests over one connection, in seconds."""
    async with kit.connect(kubeconfig) as api:
        version = client.VersionApi(api)
        taken = []
        for _ in range(10):
            started = time.monotonic()
            await version.get_code()
            taken.append(time.monotonic() - started)
    return min(taken)


async def test_the_slow_link_adds_its_delay_and_the_cable_stays_fast(
    namespace: Namespace, link: Link, over_link: Callable[[Path], Path]
) -> None:
    over = over_link(namespace.developer)
    perfect = await fastest(over)
    link.set(delay=0.025)
    slow = await fastest(over)
    assert 0.050 <= slow < 0.050 + perfect + 0.030
    assert await fastest(namespace.developer) < 0.025
    link.set()
    assert await fastest(over) < 0.025


def packets(*prefix: str, device: str, way: str) -> int:
    """How many packets a device has received ("rx") or sent ("tx")."""
    said = subprocess.run(
        [*prefix, "ip", "-json", "-statistics", "link", "show", device],
        capture_output=True,
        text=True,
        check=True,
    )
    count: int = json.loads(said.stdout)[0]["stats64"][way]["packets"]
    return count


async def test_the_slow_link_loses_what_it_is_told_to(
    cluster: Target, namespace: Namespace, link: Link, over_link: Callable[[Path], Path]
) -> None:
    own = cluster.need_own("A slow link")

    def delivered() -> int:
        return packets(*own.sandbox.inside(), device=link.device, way="rx")

    async def counts(at_least: int = 0) -> tuple[int, int]:
        """How many packets have gone in and come out, once both numbers stand still."""
        previous, now = (-1, -1), (packets(device=link.device, way="tx"), delivered())
        while now != previous or now[0] < at_least:
            await asyncio.sleep(0.05)
            previous, now = now, (packets(device=link.device, way="tx"), delivered())
        return now

    async def lose(share: float, count: int) -> int:
        """Send so many datagrams; how many do not arrive."""
        link.set(loss=share)
        sent, arrived = await counts()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            for number in range(count):
                datagrams.sendto(b"lost?", (link.settings.link_ips[1], 9 + number % 1000))
                if number % 20 == 0:
                    await asyncio.sleep(0)
        sent_now, arrived_now = await counts(at_least=sent + count)
        return (sent_now - sent) - (arrived_now - arrived)

    assert await lose(0.0, 500) == 0
    # 20 % of 2,000, within five standard deviations (18).
    assert abs(await lose(0.2, 2000) - 400) <= 90
    # TCP delivers all the same, only later.
    assert await answers(over_link(namespace.developer), seconds=30)


async def test_a_cut_link_is_silent_and_a_mended_one_goes_on(
    admin: ApiClient, namespace: Namespace, link: Link, over_link: Callable[[Path], Path]
) -> None:
    await run_echo(admin, namespace)
    over = over_link(namespace.developer)
    async with kit.forward(over, namespace.name, "echo", 8080) as stream:
        assert await echoes(stream)
        link.cut()
        waiting = await nothing_heard(stream, b"meanwhile", 0.3)
        assert not await answers(over, seconds=0.5)
        assert await answers(namespace.developer)
        link.mend()
        # TCP sends again what was lost.
        assert (await asyncio.wait_for(waiting, 10)) == b"meanwhile"
        assert await echoes(stream)


async def test_the_slow_link_keeps_its_rate(
    admin: ApiClient, namespace: Namespace, link: Link, over_link: Callable[[Path], Path]
) -> None:
    await run_echo(admin, namespace)
    size = 1 << 20
    async with kit.forward(over_link(namespace.developer), namespace.name, "echo", 8080) as stream:

        async def seconds() -> float:
            started = time.monotonic()
            sending = asyncio.create_task(send(stream, size))
            heard = 0
            while heard < size:
                heard += len(await stream.receive())
            await sending
            return time.monotonic() - started

        unlimited = await seconds()
        link.set(megabit=20)
        # 1 MiB at 20 megabit/s takes 0.42 s each way, and both ways go on at the same time.
        assert 0.4 < await seconds() < 4
        assert unlimited < 0.4


async def send(stream: kit.Forwarded, size: int) -> None:
    block = bytes(1 << 14)
    for _ in range(size // len(block)):
        await stream.send(block)
