"""A real engine in this process, on real processes, seen through its control socket."""

from __future__ import annotations

import asyncio
import os
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from devloop.control.client import ControlClient
from devloop.engine.engine import Engine, load_project
from devloop.local.process import Holders
from devloop.protocol import LogBatch, Loop, Notice, ServiceStatus, Snapshot, State
from devloop.state import StateFolder

DEADLINE = 20.0
"""Seconds until a test gives up waiting for an event: far above what any takes, on a busy machine too."""


class Project:
    """A project folder, and what is seen of its engine while one runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / "devloop.toml"
        self.client: ControlClient
        self.engine: Engine
        self.services: dict[str, ServiceStatus] = {}
        self.snapshot: Snapshot
        self.loops: list[Loop] = []
        self.notices: list[Notice] = []
        self.lines: list[tuple[str, str]] = []
        self._news = asyncio.Condition()

    def write(self, name: str, text: str) -> Path:
        """Write a file of the project, as an editor without frills does."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    def config(self, text: str) -> None:
        self.write("devloop.toml", text)

    @asynccontextmanager
    async def up(self, *services: str, environ: dict[str, str] | None = None) -> AsyncIterator[Project]:
        """Run an engine of this project. Shuts it down at the end, and leaves nothing."""
        variables = {**os.environ, **(environ or {})}
        self.loops.clear()
        self.notices.clear()
        self.lines.clear()
        loaded = load_project(self.file, variables, services)
        holders = Holders()
        holders.open()
        self.engine = Engine(loaded, StateFolder(self.root), variables, holders)
        ready = asyncio.Event()
        running = asyncio.create_task(self.engine.run(list(services) or None, ready.set))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            waiting.cancel()
            running.result()
        reading: asyncio.Task[None] | None = None
        try:
            self.client = await ControlClient.connect(StateFolder(self.root).socket)
            await self.client.subscribe("*", 1000)
            reading = asyncio.create_task(self._read())
            yield self
        finally:
            self.engine.shut_down()
            await asyncio.wait_for(running, DEADLINE)
            if reading is not None:
                await reading
                await self.client.close()

    async def _read(self) -> None:
        async for event in self.client.events():
            match event:
                case Snapshot():
                    self.snapshot = event
                    self.services = {s.name: s for s in event.services}
                    self.notices = list(event.notices)
                case ServiceStatus():
                    self.services[event.name] = event
                case Loop():
                    self.loops.append(event)
                case Notice():
                    self.notices.append(event)
                case LogBatch():
                    self.lines += [(line.service, line.text) for line in event.lines]
            async with self._news:
                self._news.notify_all()

    async def until(self, condition: Callable[[], Any], what: str = "") -> None:
        """Wait until it holds; looked at after each event from the engine."""
        try:
            async with asyncio.timeout(DEADLINE), self._news:
                await self._news.wait_for(condition)
        except TimeoutError:
            states = {s.name: (s.state.value, s.reason) for s in self.services.values()}
            pytest.fail(f"never so: {what or condition}; {states}; {self.notices}; {self.lines[-20:]}")

    async def until_state(self, service: str, state: State) -> ServiceStatus:
        await self.until(
            lambda: service in self.services and self.services[service].state is state, f"{service} {state}"
        )
        return self.services[service]

    async def until_line(self, service: str, text: str, count: int = 1) -> None:
        def seen() -> bool:
            return sum(name == service and text in line for name, line in self.lines) >= count

        await self.until(seen, f"{count} x {text!r} in the log of {service}")

    async def until_loops(self, count: int, service: str = "api", cause: str = "change") -> list[Loop]:
        def found() -> list[Loop]:
            return [loop for loop in self.loops if loop.service == service and loop.cause == cause]

        await self.until(lambda: len(found()) >= count, f"{count} loops of {service} for a {cause}")
        return found()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def processes_with(mark: str) -> list[psutil.Process]:
    """Processes of this user whose command line or environment holds the mark, but for this one."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid():
                continue
            if mark in " ".join(process.cmdline()) or mark in str(process.environ().values()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_gone(mark: str, seconds: float = DEADLINE) -> None:
    """Wait until no process has the mark any more."""
    gone, alive = psutil.wait_procs(processes_with(mark), timeout=seconds)
    del gone
    alive += processes_with(mark)
    assert not alive, [p.cmdline() for p in alive]
