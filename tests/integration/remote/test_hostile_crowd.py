"""A crowd of hostile clients at the agent's ports while a developer's requests come: none of those fails, and memory
has bounds. `tests/cluster/test_hostile_crowd.py` does it at a cluster, for longer and at every port."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from devloop.agent.runner import DATA_BYTES
from tests import hostile, needs

from .envoy_here import HERE, Local, a_rig, serving

pytestmark = pytest.mark.slow
SECONDS = float(os.environ.get("DEVLOOP_HOSTILE_SECONDS", "4"))
CLIENTS = 100
RATE = 50


async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A local service as people have it: it takes what is HTTP/1, and ends with what is not."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
            await reader.readexactly(length)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError):
        pass


async def asks(port: int, until: float, failed: list[str]) -> int:
    """Requests at a rate, over one connection that is made anew when it ends; how many were answered."""
    answered, slot = 0, time.monotonic()
    reader = writer = None
    while time.monotonic() < until:
        slot += 10 / RATE
        await asyncio.sleep(max(0.0, slot - time.monotonic()))
        try:
            async with asyncio.timeout(10):
                if writer is None or reader is None:
                    reader, writer = await asyncio.open_connection(HERE, port)
                writer.write(b"GET / HTTP/1.1\r\nHost: api\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(2)
                if not head.startswith(b"HTTP/1.1 200"):
                    raise ConnectionError(head.splitlines()[0].decode())
            answered += 1
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as problem:
            failed.append(repr(problem))
            reader = writer = None
    if writer is not None:
        writer.close()
    return answered


async def test_requests_are_answered_while_a_crowd_is_at_every_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with needs.open_files(4 * CLIENTS + 500):
        async with (
            serving(answers) as local,
            serving(answers) as original,
            a_rig(monkeypatch, original, "http", beside=True) as rig,
        ):
            await rig.attach(Local(local))
            assert rig.beside is not None and rig.agent is not None
            [envoy] = rig.beside.envoys()
            ports = [rig.options["port"], rig._leads_to()]
            targets = [(HERE, ports[0], "other"), (HERE, ports[1], "http")]
            plan = {"targets": targets, "clients": CLIENTS, "seconds": SECONDS, "frames": 50}
            crowd = await asyncio.create_subprocess_exec(
                sys.executable, str(Path(hostile.__file__)), json.dumps(plan), stdout=subprocess.PIPE
            )
            failed: list[str] = []
            until = time.monotonic() + SECONDS
            answered = sum(await asyncio.gather(*(asks(rig.proxy.port, until, failed) for _ in range(10))))
            said, _ = await crowd.communicate()
            ended = json.loads(said)
            memory = psutil.Process(envoy).memory_info().rss >> 20
            print(f"{answered} answered, {len(failed)} failed; {ended}; Envoy has {memory} MiB")
            assert not failed and answered > RATE * SECONDS / 2
            assert rig.beside.envoys() == [envoy], "it has not ended meanwhile"
            assert memory << 20 < DATA_BYTES
            for port in ports:
                assert sum(ended[str(port)].values()) >= CLIENTS
                assert ended[str(port)].get("ended"), "nobody is kept for as long as they like"
