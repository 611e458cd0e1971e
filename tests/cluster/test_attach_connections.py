"""What becomes of connections at a real cluster: of services that speak first, and of those of who has left."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from devloop.attach import personal

from . import kit
from .attaching import PORT, SERVICE, Here, Load, ask, client_pod, engine, objects_of, run_service
from .conftest import Namespace
from .kit import ApiClient

pytestmark = pytest.mark.role("attach")

STAYS = 40
"""Seconds: longer than a listener that is taken away lets anybody go on."""
GREETED = f"""
import collections, json, socket
heard = collections.Counter()
for _ in range(60):
    with socket.create_connection(("{SERVICE}", {PORT + 1}), 5) as made:
        made.settimeout(3)
        try:
            heard[made.recv(100).decode().strip()] += 1
        except OSError as problem:
            heard[type(problem).__name__] += 1
print(json.dumps(heard))
"""
WEBSOCKET = f"""
import json, socket, time
made = socket.create_connection(("{SERVICE}", {PORT}), 5)
made.settimeout(5)
made.sendall(b"GET / HTTP/1.1\\r\\nHost: api\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
             b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\nSec-WebSocket-Version: 13\\r\\n\\r\\n")
assert made.recv(4096).startswith(b"HTTP/1.1 101")
print("open", flush=True)
heard = []
until = time.time() + SECONDS
while time.time() < until:
    made.sendall(b"x")
    heard.append(made.recv(100).decode())
    time.sleep(0.5)
print(json.dumps([len(heard), sorted(set(heard))]))
"""


async def test_a_service_that_greets_is_heard_on_every_connection(
    admin: ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    await asyncio.gather(run_service(admin, namespace.name, replicas=1), client_pod(admin, namespace.name))
    async with engine(namespace.developer, tmp_path) as ada, Here() as here:
        await ada.attachments.attach(ada.wanted(here, ports={"http": here.port, "tcp-echo": here.tcp_port}), here)
        await kit.eventually(lambda: ask(namespace), "here", 10)
        ran = await kit.execute(namespace.developer, namespace.name, "client", "python3", "-c", GREETED)
        assert json.loads(ran.stdout) == {"hello from here": 60}


async def test_who_is_connected_when_one_leaves_loses_nothing(
    admin: ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    """Keep-alive connections that were made while it was attached, and somebody else's WebSocket."""
    name = namespace.name
    await asyncio.gather(run_service(admin, name), client_pod(admin, name))
    before = await objects_of(admin, name)
    async with engine(namespace.developer, tmp_path) as ada, Here() as here:
        found = await ada.attachments.attach(ada.wanted(here, routes=(personal("ada"),)), here)
        mine = {"headers": {"baggage": "devloop=ada"}}
        keeps = {"rate": 60, "connections": 6, "requests_per_connection": 1_000_000, "seconds": STAYS + 40}
        script = WEBSOCKET.replace("SECONDS", str(STAYS + 8))
        await kit.eventually(lambda: ask(namespace, "-H", "baggage: devloop=ada"), "here", 10)
        loads = [Load(namespace, **keeps, **mine), Load(namespace, **keeps)]
        held = asyncio.create_task(kit.execute(namespace.developer, name, "client", "python3", "-c", script))
        await asyncio.sleep(5)
        await ada.attachments.leave(found)
        await asyncio.sleep(STAYS)
        results = [await each.stop() for each in loads]
        assert [each["failed"] for each in results] == [0, 0], str(results)
        assert "here" in results[0]["counts"] and len(results[0]["counts"]) == 3
        ran = await held
        count, heard = json.loads(ran.stdout.splitlines()[1])
        assert count > STAYS and len(heard) == 1 and heard[0].startswith("api-"), ran
    assert await objects_of(admin, name) == before
