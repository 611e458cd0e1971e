"""Sandboxes that really run: namespaces, processes, the link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from devloop.errors import DevloopError
from devloop.local.process import RUN_VARIABLE, Holders
from devloop.net.check import check
from devloop.remote.life import LiveLink
from devloop.remote.workload import references as kinds
from devloop.remote.workload.model import Object
from devloop.sandbox.sandbox import Sandbox
from tests import needs

DEADLINE = 20.0
SHOP = Path(__file__).parents[3] / "examples" / "shop"
SHOP_IMAGES = {"devloop.test/shop:1": SHOP}


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skips, with the reason, where namespaces can't be made; on CI that is a failure."""
    try:
        asyncio.run(check())
    except DevloopError as error:
        needs.missing(str(error))


def processes_of(run_id: str) -> list[str]:
    """The command lines of processes that carry an engine's run id."""
    found = []
    mark = f"{RUN_VARIABLE}={run_id}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


class Box:
    """A sandbox with what it has said."""

    def __init__(self, sandbox: Sandbox, holders: Holders, data: Path) -> None:
        self.sandbox = sandbox
        self.holders = holders
        self.data = data
        self.lines: list[tuple[str, str]] = []
        self._said = asyncio.Event()
        self._link: LiveLink | None = None

    def log(self, source: str, line: str) -> None:
        self.lines.append((source, line))
        self._said.set()

    async def says(self, text: str) -> str:
        """Wait for a line with this in it; who has said it."""
        async with asyncio.timeout(DEADLINE):
            while True:
                self._said.clear()
                for source, line in self.lines:
                    if text in line:
                        return source
                await self._said.wait()

    async def link(self) -> LiveLink:
        if self._link is None:
            self._link = self.sandbox.link()
            self._link.start()
            await self._link.ready(DEADLINE)
        return self._link

    async def get(self, host: str, port: int, path: str = "/", body: str | None = None) -> str:
        """The whole answer to an HTTP request through the link."""
        reader, writer = await (await self.link()).open(host, port)
        method, content = ("GET", "") if body is None else ("POST", body)
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
            f"Content-Length: {len(content)}\r\n\r\n{content}".encode()
        )
        try:
            return (await reader.read()).decode()
        finally:
            writer.close()
            await writer.wait_closed()

    async def pods(self, prefix: str = "") -> list[Object]:
        found = (await self.sandbox.cluster.listing(kinds.POD)).items
        return [each for each in found if each["metadata"]["name"].startswith(prefix)]

    async def until(self, holds: Callable[[list[Object]], Any], prefix: str = "") -> list[Object]:
        """Wait until something holds for the pods."""
        async with asyncio.timeout(DEADLINE):
            while not holds(found := await self.pods(prefix)):
                await self.sandbox._objects.changed()
        return found

    async def run(self, pod: str, *command: str) -> str:
        """What a command in a pod's first container prints."""
        item = next(iter(await self.pods(pod)))
        name = item["metadata"]["name"]
        ran = await self.sandbox.cluster.run(name, item["spec"]["containers"][0]["name"], command)
        assert ran.code == 0, ran.stderr.decode()
        return ran.stdout.decode().strip()

    def pid(self, pod: str, container: str = "main") -> int:
        """A container's process."""
        command = self.sandbox._pods[pod]._containers[container].command
        assert command is not None
        assert command.pid is not None
        return command.pid

    async def close(self) -> None:
        if self._link is not None:
            await self._link.close()
        await self.sandbox.close()


Start = Callable[..., Any]


@pytest.fixture
async def start(namespaces: None, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts sandboxes, from a folder or from manifests as text; nothing of them may be left in the end."""
    holders = Holders()
    holders.open()
    boxes: list[Box] = []

    async def begin(
        manifests: Path | str, images: dict[str, Path] | None = None, *, wait: bool = True, namespace: str = "shop"
    ) -> Box:
        if isinstance(manifests, str):
            text, manifests = manifests, tmp_path / f"manifests-{len(boxes)}.yaml"
            manifests.write_text(text)
        code = tmp_path / "code"
        code.mkdir(exist_ok=True)
        data = tmp_path / "state" / "sandbox"
        box: Box
        sandbox = Sandbox([manifests], images or {"app": code}, namespace, holders, data, lambda *said: box.log(*said))
        box = Box(sandbox, holders, data)
        boxes.append(box)
        await sandbox.start()
        if wait:
            assert await sandbox.ready(DEADLINE) == ()
        return box

    yield begin
    for box in boxes:
        await box.close()
        assert not box.data.exists()
    await holders.close()
    assert processes_of(holders.run_id) == []
