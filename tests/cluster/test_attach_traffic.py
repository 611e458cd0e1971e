"""What goes through: protocols, routes, shares, copies; several developers at once; what is told of it."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import pytest

from devloop.attach import ALL, Header, Match, Phase, Route, Wanted, personal

from . import attach_grpc, kit
from .attach_grpc import MESSAGES, STREAM, Greeter
from .attaching import PORT, SERVICE, Here, Load, ask, client_pod, engine, objects_of, run_service
from .conftest import Namespace
from .kit import ApiClient, client

pytestmark = pytest.mark.role("attach")

WEBSOCKET = """
import base64, os, socket, sys
connected = socket.create_connection((sys.argv[1], 8080), 10)
key = base64.b64encode(os.urandom(16)).decode()
extra = "".join(f"{each}\\r\\n" for each in sys.argv[2:])
connected.sendall(f"GET /ws HTTP/1.1\\r\\nHost: api\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
    f"Sec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: {key}\\r\\n{extra}\\r\\n".encode())
head = b""
while b"\\r\\n\\r\\n" not in head:
    head += connected.recv(1)
assert b" 101 " in head, head
for text in (b"one", b"two"):
    connected.sendall(text)
    print(connected.recv(100).decode())
"""
TCP = """
import socket, sys
connected = socket.create_connection((sys.argv[1], 8081), 10)
print(connected.makefile().readline().strip())
connected.sendall(b"ping")
print(connected.recv(100).decode())
connected.shutdown(socket.SHUT_WR)
print(repr(connected.recv(100)))
"""


async def working(core: Any, namespace: str) -> int:
    """How many of the original pods' processes have not ended."""
    found = (await core.list_namespaced_pod(namespace, label_selector=f"app={SERVICE}")).items
    return sum(each.status.phase not in ("Succeeded", "Failed") for each in found)


async def python(space: Namespace, source: str, *arguments: str) -> list[str]:
    ran = await kit.execute(space.developer, space.name, "client", "python3", "-c", source, *arguments)
    assert ran.code == 0, str(ran)
    return ran.stdout.split("\n")[:-1]


async def test_two_developers_share_a_service_and_others_have_the_original(
    admin: ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    await asyncio.gather(run_service(admin, namespace.name), client_pod(admin, namespace.name))
    before = await objects_of(admin, namespace.name)
    async with (
        engine(namespace.developer, tmp_path, "ada") as ada,
        engine(namespace.other_developer, tmp_path, "ben") as ben,
        Here("ada") as here,
        Here("ben") as there,
    ):
        path = Route((Header("x-team", Match("prefix", "blue")),), Match("regex", "/v[12]/.*"), "GET")
        mine = await ada.attachments.attach(ada.wanted(here, routes=(personal("ada"), path)), here)
        bens = await ben.attachments.attach(
            ben.wanted(there, routes=(Route((Header("x-user", Match("regex", "b.n")),)),)), there
        )
        for arguments, url, who in (
            ((), "/", "api-"),
            (("-H", "baggage: a=1,devloop=ada;x=y"), "/", "ada"),
            (("-H", "baggage: devloop=adam"), "/", "api-"),
            (("-H", "x-user: ben"), "/", "ben"),
            (("-H", "x-user: benn"), "/", "api-"),
            (("-H", "x-team: blue-1"), "/v1/a?secret=1", "ada"),
            (("-H", "x-team: blue-1"), "/v3/a", "api-"),
            (("-H", "x-team: blue-1", "-X", "POST"), "/v1/a", "api-"),
        ):
            answer = await ask(namespace, *arguments, path=url)
            assert answer.startswith(who), (arguments, url, answer)

        # What has gone through is told, to both, without a query.
        async def told() -> list[tuple[str, str, int, str, str]]:
            return [
                (each.method, each.path, each.status, each.answered, each.attachment)
                for each in ada.requests
                if each.path.startswith("/v")
            ]

        await kit.eventually(
            told,
            [
                ("GET", "/v1/a", 200, "local", mine.spec.id),
                ("GET", "/v3/a", 200, "original", ""),
                ("POST", "/v1/a", 200, "original", ""),
            ],
            5,
        )
        assert all(0 < each.milliseconds < 5000 for each in ada.requests)
        # Whoever of the two hears of it: each knows whose answer it was, and what was nobody's.
        ids = {mine.spec.id: "ada@laptop", bens.spec.id: "ben@laptop"}
        for heard in (ada, ben):
            assert {each.by for each in heard.requests if each.answered == "local"} == set(ids)
            assert {each.by for each in heard.requests if each.answered == "original"} == {""}
            assert heard.holders == ids
            assert dict(heard.counts["api"]) == {f"/{mine.spec.id}": 2, f"/{bens.spec.id}": 1, "original": 5}
        # One leaves, the other one stays.
        await ada.attachments.leave(mine)
        assert (await ask(namespace, "-H", "baggage: devloop=ada")).startswith("api-")
        await kit.eventually(lambda: ask(namespace, "-H", "x-user: ben"), "ben", 10)
    assert await objects_of(admin, namespace.name) == before


async def test_websockets_and_plain_connections(admin: ApiClient, namespace: Namespace, tmp_path: Path) -> None:
    await asyncio.gather(run_service(admin, namespace.name, replicas=1), client_pod(admin, namespace.name))
    async with engine(namespace.developer, tmp_path) as ada, Here() as here:
        wanted = ada.wanted(here, routes=(personal("ada"),))
        found = await ada.attachments.attach(wanted, here)
        assert await python(namespace, WEBSOCKET, SERVICE, "baggage: devloop=ada") == ["here:one", "here:two"]
        assert (await python(namespace, WEBSOCKET, SERVICE))[1].startswith("api-")
        # A port that nobody has asked for goes through as it was.
        assert (await python(namespace, TCP, SERVICE))[0].startswith("hello from api-")
        await ada.attachments.leave(found)
        ports = {"http": here.port, "tcp-echo": here.tcp_port}
        await ada.attachments.attach(ada.wanted(here, ports=ports), here)
        await kit.eventually(lambda: python(namespace, TCP, SERVICE), ["hello from here", "ping", "b''"], 10)
        # Nobody there: the agent itself finds an original pod for what is no HTTP.
        here.end()
        assert (await python(namespace, TCP, SERVICE))[0].startswith("hello from api-")
        here.set_running(False)
        assert (await python(namespace, TCP, SERVICE))[0].startswith("hello from api-")


async def test_a_protocol_that_nobody_names_is_found_out(
    admin: ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    ports = [
        client.V1ServicePort(name="one", port=PORT, target_port="http"),
        client.V1ServicePort(name="two", port=PORT + 1, target_port=PORT + 1),
    ]
    await asyncio.gather(run_service(admin, namespace.name, replicas=1, ports=ports), client_pod(admin, namespace.name))
    async with engine(namespace.developer, tmp_path) as ada, Here() as here:
        ports_ = {"one": here.port, "two": here.tcp_port}
        found = await ada.attachments.attach(ada.wanted(here, ports=ports_, routes=(personal("ada"),)), here)
        await kit.eventually(lambda: ask(namespace, "-H", "baggage: devloop=ada"), "here", 10)
        assert (await ask(namespace)).startswith("api-")
        # The server speaks first, so nothing is there to be looked at: no route by a header can have it.
        assert (await python(namespace, TCP, SERVICE))[0].startswith("hello from api-")
        await ada.attachments.leave(found)
        await ada.attachments.attach(ada.wanted(here, ports=ports_), here)
        await kit.eventually(lambda: python(namespace, TCP, SERVICE), ["hello from here", "ping", "b''"], 10)
        await kit.eventually(lambda: ask(namespace), "here", 10)


GREETER = (
    inspect.getsource(attach_grpc)
    + """
async def main():
    server = await asyncio.start_server(Greeter("original").serve, "0.0.0.0", 8080)
    await server.serve_forever()
asyncio.run(main())
"""
)


async def test_grpc_and_http2(admin: ApiClient, namespace: Namespace, tmp_path: Path) -> None:
    await grpc_and_http2(admin, namespace, tmp_path, "service")


async def grpc_and_http2(
    admin: ApiClient, namespace: Namespace, tmp_path: Path, way: Literal["service", "pods"]
) -> None:
    """Calls go to different ends, each with its trailers; by the Service's address, or in its pod."""
    name = namespace.name
    ports = [client.V1ServicePort(name="grpc", port=PORT)]
    spec = client.V1ServiceSpec(selector={"app": "grpc"}, ports=ports)
    service = client.V1Service(metadata=client.V1ObjectMeta(name="grpc"), spec=spec)
    await client.CoreV1Api(admin).create_namespaced_service(name, service)
    start = ("python3", "-c", GREETER)
    probe = client.V1Probe(tcp_socket=client.V1TCPSocketAction(port=PORT), period_seconds=1)
    await asyncio.gather(kit.run_pod(admin, name, "grpc", start, readiness_probe=probe), client_pod(admin, name))
    greeter = Greeter("here")
    server = await asyncio.start_server(greeter.serve, "127.0.0.1", 0)
    async with engine(namespace.developer, tmp_path) as ada, Here() as here:

        async def call(*arguments: str, text: str = "abc") -> tuple[str, str]:
            """The message and the trailer's status, of a call made by a real HTTP/2 client."""
            shell = (
                f"printf '\\0\\0\\0\\0\\3{text}' | curl -svN --http2-prior-knowledge --max-time 40 --data-binary @- "
                "-H 'content-type: application/grpc' -H 'te: trailers' \"$@\" http://grpc:8080/greeter/Hello"
            )
            ran = await kit.execute(namespace.developer, name, "client", "sh", "-c", shell, "sh", *arguments)
            trailer = [each for each in ran.stderr.splitlines() if "grpc-status" in each]
            return ran.stdout.replace("\0", "").lstrip("\x04\x08"), trailer[-1].strip("< \r") if trailer else ran.stderr

        async def stream(*arguments: str) -> tuple[int, set[str], str]:
            """Of a stream: how many messages came, whose, and how it has ended."""
            text, status = await call(*arguments, text=STREAM)
            said = [each for each in text.replace("\x04", "\n").replace("\x08", "\n").split("\n") if each]
            return len(said), set(said), status

        async def original() -> tuple[str, str]:
            return await call()

        await kit.eventually(original, ("original", "grpc-status: 0"), 20)
        own = {"grpc": server.sockets[0].getsockname()[1]}
        wanted = Wanted("intercept", "grpc", own, (personal("ada"),), way=way)
        found = await ada.attachments.attach(wanted, here)
        assert await call() == ("original", "grpc-status: 0")
        assert await call("-H", "baggage: devloop=ada") == ("here", "grpc-status: 0")
        assert greeter.calls == [b"\0\0\0\0\3abc"]
        # Streams that are under way when somebody leaves go on where they are.
        streams = [asyncio.create_task(stream(*each)) for each in ((), ("-H", "baggage: devloop=ada"))]
        await kit.eventually(lambda: counted(greeter.streams), 1, 20)
        await ada.attachments.leave(found)
        assert await call("-H", "baggage: devloop=ada") == ("original", "grpc-status: 0")
        assert len(greeter.streams) == 1, "it is still under way"
        assert await asyncio.gather(*streams) == [(MESSAGES, {name}, "grpc-status: 0") for name in ("original", "here")]
        await ada.attachments.attach(Wanted("intercept", "grpc", own, way=way), here)
        await kit.eventually(call, ("here", "grpc-status: 0"), 10)
        # A reload: what comes meanwhile waits for the next process.
        here.reloading.clear()
        server.close()
        for writer in list(greeter.writers):
            writer.close()
        waiting = asyncio.create_task(call())
        following = Greeter("next")
        server = await asyncio.start_server(following.serve, "127.0.0.1", own["grpc"])
        here.reloading.set()
        assert await waiting == ("next", "grpc-status: 0")
        greeter = following
        # Nobody listens: nothing of the call was given to anybody, so the original may have it, though it is a POST.
        server.close()
        for writer in list(greeter.writers):
            writer.close()
        assert await call() == ("original", "grpc-status: 0")
        here.set_running(False)
        assert await call() == ("original", "grpc-status: 0")


async def counted(found: Collection[Any]) -> int:
    return len(found)


async def test_a_canary_of_ten_percent(admin: ApiClient, namespace: Namespace, tmp_path: Path) -> None:
    await asyncio.gather(run_service(admin, namespace.name), client_pod(admin, namespace.name))
    async with engine(namespace.developer, tmp_path) as ada, Here() as here:
        await ada.attachments.attach(ada.wanted(here, routes=(Route(share=10),)), here)
        await kit.eventually(lambda: ask(namespace), "here", 20)
        result = await Load(namespace, rate=400, connections=16, requests=5000, seconds=120).done()
        assert result["failed"] == 0, str(result)
        assert result["answered"] == 5000
        share = result["counts"]["here"] / result["answered"]
        # Five standard deviations: wrong once in two million runs.
        error = 5 * (0.1 * 0.9 / result["answered"]) ** 0.5
        assert abs(share - 0.1) < error, str(result)


async def test_a_wiretap_gets_copies_and_nobody_gets_its_answers(
    admin: ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    await asyncio.gather(run_service(admin, namespace.name), client_pod(admin, namespace.name))
    before = await objects_of(admin, namespace.name)
    async with engine(namespace.developer, tmp_path) as ada, Here() as here:
        found = await ada.attachments.attach(ada.wanted(here, kind="wiretap", routes=(ALL,)), here)
        for number in range(5):
            answer = await ask(namespace, "-X", "POST", "-d", f"body {number}", path=f"/copied/{number}")
            assert answer.startswith("api-")

        async def seen() -> list[tuple[str, str, bytes]]:
            return sorted((method, path, body) for method, path, _, body in here.seen)

        await kit.eventually(seen, [("POST", f"/copied/{n}", f"body {n}".encode()) for n in range(5)], 5)
        assert {headers["host"] for _, _, headers, _ in here.seen} == {f"{SERVICE}:{PORT}"}
        # A copy that nobody takes is nobody's loss, and goes to no original pod a second time.
        here.end()
        assert (await ask(namespace)).startswith("api-")
        await ada.attachments.leave(found)
    assert await objects_of(admin, namespace.name) == before


async def test_a_replaced_workload_rests_and_comes_back(admin: ApiClient, namespace: Namespace, tmp_path: Path) -> None:
    await asyncio.gather(run_service(admin, namespace.name), client_pod(admin, namespace.name))
    autoscaling, policy = client.AutoscalingV2Api(admin), client.PolicyV1Api(admin)
    scaler = {
        "metadata": {"name": "api"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": SERVICE},
            "minReplicas": 2,
            "maxReplicas": 4,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}},
                }
            ],
        },
    }
    await autoscaling.create_namespaced_horizontal_pod_autoscaler(namespace.name, scaler)
    before = await objects_of(admin, namespace.name)
    core, apps = client.CoreV1Api(admin), client.AppsV1Api(admin)

    async def pods() -> int:
        return await working(core, namespace.name)

    async with engine(namespace.developer, tmp_path, lease_seconds=6) as ada, Here() as here:
        budget = {
            "metadata": {"name": "api"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": SERVICE}}},
        }
        await policy.create_namespaced_pod_disruption_budget(namespace.name, budget)
        wanted = ada.wanted(here, kind="replace", workload=f"deployment/{SERVICE}")
        try:
            await ada.attachments.attach(wanted, here)
            raise AssertionError("a budget was passed over")
        except Exception as problem:
            assert "PodDisruptionBudget api wants 1 of its pods available" in str(problem)
        await policy.delete_namespaced_pod_disruption_budget("api", namespace.name)
        found = await ada.attachments.attach(wanted, here)
        # When it returns, nobody works beside the local service.
        assert await pods() == 0
        await kit.eventually(lambda: ask(namespace), "here", 10)
        assert "autoscaler api rests" in found.state.notes[0]
        assert found.state.phase is Phase.ATTACHED
        load = Load(namespace, rate=50, connections=2)
        await asyncio.sleep(1)
        await ada.attachments.leave(found)
        await asyncio.sleep(1)
        result = await load.stop()
        assert result["failed"] == 0, str(result)
        assert await objects_of(admin, namespace.name) == before
        # And by the agent alone, when its holder is gone.
        await ada.attachments.attach(wanted, here)
        assert await pods() == 0
        ada.crash()

        async def size() -> Any:
            return (await apps.read_namespaced_deployment(SERVICE, namespace.name)).spec.replicas

        await kit.eventually(size, 2, 15)

        async def same() -> bool:
            return json.dumps(await objects_of(admin, namespace.name)) == json.dumps(before)

        await kit.eventually(same, True, 15)


async def test_a_queue_has_one_consumer_at_a_time(admin: ApiClient, namespace: Namespace, tmp_path: Path) -> None:
    """`replace` without a Service: it returns when the last pod has ended, and leaving starts none before us."""
    await run_service(admin, namespace.name, replicas=1)
    async with engine(namespace.developer, tmp_path) as ada, Here() as here:
        wanted = Wanted("replace", workload=f"deployment/{SERVICE}")
        found = await ada.attachments.attach(wanted, here)
        assert await working(client.CoreV1Api(admin), namespace.name) == 0
        assert found.state.phase is Phase.ATTACHED
        await ada.attachments.leave(found)
        deployment = await client.AppsV1Api(admin).read_namespaced_deployment(SERVICE, namespace.name)
        assert deployment.spec.replicas == 1
