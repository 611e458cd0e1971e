"""Attach under a hundred held connections of gRPC clients in Go, Node and Python, and under HTTP/1.1 pools of the same:
how many are counted, how many move, after how long, what is said; and that no request fails. `-s` shows the figures."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from devloop.attach import ALL, AttachError
from devloop.attach.attachment import Attachment
from devloop.protocol import EarlierConnections, earlier_in_words

from . import kit
from .attaching import Engine, Here, engine
from .conftest import Namespace
from .kit import ApiClient, client

pytestmark = pytest.mark.role("attach")

IMAGE = "devloop.test/market:1"
GRPC, HTTP = 9090, 8080
LANGUAGES = {
    "go": (34, ["/opt/market/bin/market", "load", "/plan/plan"]),
    "node": (33, ["node", "/opt/market/node/market.js", "load", "/plan/plan"]),
    "python": (33, ["python3", "/opt/market/python/load.py", "/plan/plan"]),
}
EVERY_MS = 400
"""Of each connection; a hundred of them are what two shared cores carry beside a cluster."""


def plan(kind: str, port: int, number: int) -> list[dict[str, Any]]:
    """Two of them have a stream for good, where there are streams."""
    shared = {"target": f"web:{port}", "held": True, "every": EVERY_MS, "deadline": 10}
    if kind == "http":
        return [{"name": "http", "kind": "http", "connections": number, **shared}]
    return [
        {"name": "one", "kind": "one", "connections": number - 2, **shared},
        {"name": "chat", "kind": "chat", "connections": 2, **shared},
    ]


async def pod(admin: ApiClient, space: str, name: str, command: list[str] | None, **more: Any) -> None:
    labels = {"app": name}
    made = client.V1Container(name="main", image=IMAGE, image_pull_policy="IfNotPresent", command=command, **more)
    made.security_context = client.V1SecurityContext(
        allow_privilege_escalation=False, capabilities=client.V1Capabilities(drop=["ALL"])
    )
    spec = client.V1PodSpec(
        containers=[made],
        termination_grace_period_seconds=0,
        security_context=client.V1PodSecurityContext(
            run_as_non_root=True, run_as_user=1000, seccomp_profile=client.V1SeccompProfile(type="RuntimeDefault")
        ),
    )
    if command is not None:
        made.volume_mounts = [client.V1VolumeMount(name="plan", mount_path="/plan")]
        spec.volumes = [client.V1Volume(name="plan", config_map=client.V1ConfigMapVolumeSource(name=name))]
    document = client.V1Pod(metadata=client.V1ObjectMeta(name=name, labels=labels), spec=spec)
    await client.CoreV1Api(admin).create_namespaced_pod(space, document)


class Clients:
    """The pods that ask, and what they have printed."""

    def __init__(self, admin: ApiClient, space: Namespace) -> None:
        self._core = client.CoreV1Api(admin)
        self._admin, self._space = admin, space.name

    async def start(self, kind: str, port: int) -> None:
        for name, (number, command) in LANGUAGES.items():
            text = json.dumps(plan(kind, port, number))
            made = client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name), data={"plan": text})
            await self._core.create_namespaced_config_map(self._space, made)
            await pod(self._admin, self._space, name, command)

    async def lines(self, name: str) -> list[dict[str, Any]]:
        text = await self._core.read_namespaced_pod_log(name, self._space)
        found = []
        for line in text.splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    async def failed(self, since: float) -> list[str]:
        return [
            f"{name} {each['client']} {each['at'] - since:+.1f} s: {each['error']}"
            for name in LANGUAGES
            for each in await self.lines(name)
            if "error" in each and each["at"] > since
        ]

    async def answered(self, since: float) -> dict[str, Counter[str]]:
        """By language, who has answered how many."""
        found: dict[str, Counter[str]] = {}
        for name in LANGUAGES:
            counts = found[name] = Counter()
            for each in await self.lines(name):
                if "who" in each and each["since"] > since:
                    counts.update({who if who == "here" else "original": n for who, n in each["who"].items()})
        return found


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """HTTP/1.1 as the original's: who answers, and what was asked."""
    try:
        while line := await reader.readline():
            headers = {}
            while (field := await reader.readline()).strip():
                name, _, value = field.decode().partition(":")
                headers[name.lower()] = value.strip()
            length = int(headers.get("content-length", 0))
            await reader.readexactly(length)
            said = {"who": "here", "id": headers.get("x-id"), "method": line.split()[0].decode(), "length": length}
            body = json.dumps(said).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


@asynccontextmanager
async def local() -> AsyncIterator[dict[int, int]]:
    """What runs here: the Service's ports, and where they are answered."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = Path(__file__).parent / "apps" / "python" / "prices.py"
    env = {**os.environ, "WHO": "here", "GRPC": str(port)}
    process = await asyncio.create_subprocess_exec(sys.executable, str(program), env=env)
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:

        async def serves() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return False
            writer.close()
            return True

        await kit.eventually(serves, True)
        yield {GRPC: port, HTTP: server.sockets[0].getsockname()[1]}
    finally:
        server.close()
        process.kill()
        await process.wait()


@asynccontextmanager
async def held(
    admin: ApiClient, space: Namespace, folder: Path, kind: str
) -> AsyncIterator[tuple[Engine, Here, Clients, dict[int, int]]]:
    """An original in Go, a hundred connections to it, a developer, and a local service that answers `here`."""

    async def run(pod: str, container: str, command: Sequence[str]) -> bytes:
        return (await kit.execute(space.developer, space.name, pod, *command)).stdout.encode()

    core = client.CoreV1Api(admin)
    ports = [
        client.V1ServicePort(name="grpc", port=GRPC, app_protocol="grpc"),
        client.V1ServicePort(name="http", port=HTTP, app_protocol="http"),
    ]
    service = client.V1Service(
        metadata=client.V1ObjectMeta(name="web"), spec=client.V1ServiceSpec(selector={"app": "web"}, ports=ports)
    )
    await core.create_namespaced_service(space.name, service)
    env = {"WHO": "original", "GRPC": str(GRPC), "HTTP": str(HTTP)}
    probe = client.V1Probe(tcp_socket=client.V1TCPSocketAction(port=GRPC), period_seconds=1)
    variables = [client.V1EnvVar(name=name, value=value) for name, value in env.items()]
    await pod(admin, space.name, "web", None, env=variables, readiness_probe=probe)
    await kit.pod_ready(admin, space.name, "web")
    clients = Clients(admin, space)
    await clients.start(kind, GRPC if kind == "grpc" else HTTP)

    async def there() -> int:
        tables = ("/proc/net/tcp", "/proc/net/tcp6")
        ran = await kit.execute(space.developer, space.name, "web", "cat", *tables)
        lines = [line.split() for line in ran.stdout.splitlines()]
        ends = tuple(f":{port:04X}" for port in (GRPC, HTTP))
        return sum(len(fields) > 9 and fields[3] == "01" and fields[1].endswith(ends) for fields in lines)

    async def settled() -> bool:
        """All of them, on a machine that was busy with their start: who was not answered in time has begun again."""
        began = time.time()
        for _ in range(4):
            if await there() != 100:
                return False
            await asyncio.sleep(1)
        return not await clients.failed(began)

    await kit.eventually(settled, True, 120)
    async with local() as led, Here() as here, engine(space.developer, folder, "ada", run=run) as ada:
        yield ada, here, clients, led


def said(found: Attachment) -> tuple[str, ...]:
    """As `attach` and `status` say it."""
    return earlier_in_words([EarlierConnections(*each, "original") for each in found.earlier], found.earlier_rate)


async def look(ada: Engine, found: Attachment) -> int:
    """How many lead to the original now."""
    await ada.attachments._earlier.look(found)
    assert found.uncounted == ""
    return sum(number for _, number in found.earlier)


async def attached(ada: Engine, here: Here, led: dict[int, int], **more: Any) -> Attachment:
    wanted = ada.wanted(here, service="web", routes=(ALL,), ports=led, **more)
    found = await ada.attachments.attach(wanted, here)
    await asyncio.wait_for(found.looked.wait(), 30)
    assert found.uncounted == ""

    async def all_there() -> bool:  # one whose call took too long is just connecting anew
        return await look(ada, found) == 100

    await kit.eventually(all_there, True, 60)
    return found


COUNTS = {(name, number) for name, (number, _) in LANGUAGES.items()}


@pytest.mark.parametrize(
    ("kind", "way"), [("grpc", "service"), ("http", "service"), ("grpc", "pods")], ids=["grpc", "http", "grpc-in-pods"]
)
async def test_a_hundred_move_while_they_are_in_use_and_no_request_fails(
    admin: ApiClient, open_namespace: Namespace, tmp_path: Path, kind: str, way: str
) -> None:
    space = open_namespace
    async with held(admin, space, tmp_path, kind) as (ada, here, clients, led):
        found = await attached(ada, here, led, way=way)
        assert set(found.earlier) == COUNTS
        print(f"\n{kind}, {way}: {said(found)[0]}")
        asleep = time.time()
        await asyncio.sleep(2)  # they go on as they were
        before = await clients.answered(asleep)
        assert all(not counts["here"] for counts in before.values())
        began = time.time()
        moved = await ada.attachments.move(found)
        took = time.time() - began
        assert (moved.ended, moved.left, moved.notes) == (100, (), ())
        streams = 6 if kind == "grpc" else 0  # they are not cut, and go on to the original

        async def still() -> bool:
            return await look(ada, found) <= streams

        await kit.eventually(still, True)
        print(f"{kind}, {way}: {moved.ended} moved in {took:.1f} s, all seen gone after {time.time() - began:.1f} s")
        settled = time.time()

        async def here_alike() -> bool:
            return all(counts["here"] for counts in (await clients.answered(settled)).values())

        await kit.eventually(here_alike, True, 60)  # a busy machine's clients ask late
        for name, counts in (await clients.answered(settled)).items():
            print(f"{kind}, {way}: {name}: {dict(counts)} of the {time.time() - settled:.0f} s after")
            assert kind == "grpc" or not counts["original"]
        assert await look(ada, found) == streams
        print(f"{kind}, {way}: {said(found)}")
        await ada.attachments.leave(found)
        assert await clients.failed(asleep) == []


async def test_a_hundred_are_told_where_no_net_admin_is_allowed(
    admin: ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    async with held(admin, namespace, tmp_path, "grpc") as (ada, here, clients, led):
        began = time.time()
        found = await attached(ada, here, led)
        print(f"\ncounted {time.time() - began:.1f} s after attach began: {said(found)[0]}")
        assert set(found.earlier) == COUNTS
        with pytest.raises(AttachError, match="allows no NET_ADMIN in a pod") as refused:
            await ada.attachments.move(found)
        print(f"move: {refused.value.what} {refused.value.hint}")
        await asyncio.sleep(2)
        assert all(not counts["here"] for counts in (await clients.answered(began)).values())
        assert await look(ada, found) == 100
        await ada.attachments.leave(found)
        assert await clients.failed(began) == []
