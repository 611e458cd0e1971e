"""A queue's consumer under `replace`: no message is processed twice, and none is lost."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from devloop.attach import Wanted

from . import kit
from .attaching import Here, engine
from .conftest import Namespace
from .kit import ApiClient, client

pytestmark = pytest.mark.role("attach")

MESSAGES = 600
CONSUMER = r"""
import os, signal, socket, time
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
queue = socket.create_connection(("queue", 6379))
answers = queue.makefile("rb")

def ask(*words):
    queue.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(each), each) for each in words))
    line = answers.readline().strip()
    if line[:1] == b"$":
        return None if line == b"$-1" else answers.read(int(line[1:]) + 2)[:-2]
    return line

while not stopped:
    found = ask(b"LPOP", b"orders")
    if found is None:
        time.sleep(0.01)
        continue
    time.sleep(0.02)
    ask(b"RPUSH", b"done", b"pod " + found)
"""


class Queue:
    """A few words of Redis' protocol."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, *words: str) -> Any:
        self.writer.write(
            f"*{len(words)}\r\n".encode() + b"".join(f"${len(each)}\r\n{each}\r\n".encode() for each in words)
        )
        return await self._answer()

    async def _answer(self) -> Any:
        line = (await self.reader.readline()).strip()
        match line[:1]:
            case b"$":
                return None if line == b"$-1" else (await self.reader.readexactly(int(line[1:]) + 2))[:-2].decode()
            case b"*":
                return [await self._answer() for _ in range(int(line[1:]))]
            case _:
                return line.decode()


async def consume(queue: Queue, stopped: asyncio.Event) -> None:
    """The same as the pod's, here."""
    while not stopped.is_set():
        found = await queue.ask("LPOP", "orders")
        if found is None:
            await asyncio.sleep(0.01)
            continue
        await queue.ask("RPUSH", "done", f"here {found}")


async def test_every_message_is_processed_once(admin: ApiClient, namespace: Namespace, tmp_path: Path) -> None:
    name, core, apps = namespace.name, client.CoreV1Api(admin), client.AppsV1Api(admin)
    spec = client.V1ServiceSpec(selector={"app": "queue"}, ports=[client.V1ServicePort(port=6379)])
    await core.create_namespaced_service(name, client.V1Service(metadata=client.V1ObjectMeta(name="queue"), spec=spec))
    start = ("redis-server", "--save", "", "--protected-mode", "no", "--dir", "/tmp")
    await kit.run_pod(
        admin,
        name,
        "queue",
        start,
        readiness_probe=client.V1Probe(tcp_socket=client.V1TCPSocketAction(port=6379), period_seconds=1),
    )
    labels = {"app": "worker"}
    container = client.V1Container(
        name="main", image=kit.BASE, command=["python3", "-c", CONSUMER], security_context=kit.RESTRICTED
    )
    template = client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels=labels), spec=client.V1PodSpec(containers=[container])
    )
    deployment = client.V1Deployment(
        metadata=client.V1ObjectMeta(name="worker"),
        spec=client.V1DeploymentSpec(
            replicas=2, selector=client.V1LabelSelector(match_labels=labels), template=template
        ),
    )
    await apps.create_namespaced_deployment(name, deployment)
    async with engine(namespace.developer, tmp_path) as ada, Here() as here:
        queue, mine = [Queue(*(await ada.link.open("queue", 6379))) for _ in range(2)]

        async def produce() -> None:
            for number in range(MESSAGES):
                await queue.ask("RPUSH", "orders", str(number))
                await asyncio.sleep(0.02)

        producing = asyncio.create_task(produce())
        await asyncio.sleep(2)
        found = await ada.attachments.attach(Wanted("replace", workload="deployment/worker"), here)
        stopped = asyncio.Event()
        consuming = asyncio.create_task(consume(mine, stopped))
        await asyncio.sleep(3)
        stopped.set()
        await consuming
        await ada.attachments.leave(found)
        await producing
        left = Queue(*(await ada.link.open("queue", 6379)))

        async def length() -> str:
            return str(await left.ask("LLEN", "done"))

        await kit.eventually(length, f":{MESSAGES}", 60)
        done = [each.split() for each in await left.ask("LRANGE", "done", "0", "-1")]
        assert sorted(int(number) for _, number in done) == list(range(MESSAGES))
        assert {who for who, _ in done} == {"pod", "here"}
        for each in (queue, mine, left):
            with contextlib.suppress(OSError):
                each.writer.close()
