"""The connections to the engine: one for its state and for requests, one more for the logs on view.

Logs have a connection of their own because changing what is shown is then a matter of hanging up: no line of
the former choice can arrive late, and the state never waits behind a flood of lines. Only what is on view is
asked for, so a service that floods its log costs nothing unless someone looks at it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devloop.control.client import ControlClient
from devloop.errors import DevloopError, EngineError
from devloop.protocol import LogBatch, Loop, Mounted, RequestRecord, Snapshot, TerminalOutput, Variable
from tui import attachments
from tui.board import Board, Event

PAINT_INTERVAL = 0.05
"""Seconds between two paints: however fast events come, the screen is drawn at most 20 times a second."""
LOG_TAIL = 2_000
"""Lines asked for when a log is opened."""
HISTORY = 200
"""Loops asked for when a service's history is opened."""
REQUESTS = 500
"""Requests asked for when those of a service are opened."""


@dataclass(frozen=True, slots=True)
class World:
    """What a local service has of its workload, besides variables."""

    workload: str
    mounts: tuple[Mounted, ...]
    notes: tuple[str, ...]
    """How its environment and files differ from its pod's."""


class Session:
    """One TUI's view of one engine. `board` is always what the engine said last."""

    def __init__(self, socket: Path, *, clock: Callable[[], int] = time.time_ns) -> None:
        self.socket = socket
        self.clock = clock
        self.board = Board()
        self.connected = False
        self._client: ControlClient | None = None

    async def events(self) -> AsyncIterator[Event]:
        """Connect and yield each event after the board has taken it in. Ends when the engine hangs up.

        Raises EngineError if no engine listens.
        """
        async with await ControlClient.connect(self.socket) as client:
            await client.subscribe()
            self._client, self.connected = client, True
            try:
                async for event in client.events():
                    if isinstance(event, TerminalOutput):
                        continue  # a terminal has a connection of its own
                    self.board.apply(event)
                    yield event
            finally:
                self._client, self.connected = None, False

    async def logs(self, services: Sequence[str] | None) -> AsyncIterator[LogBatch]:
        """The last lines of these services (None: all), then new ones as they come."""
        async with await ControlClient.connect(self.socket) as client:
            await client.subscribe(logs="*" if services is None else list(services), tail=LOG_TAIL)
            async for event in client.events():
                if isinstance(event, LogBatch):
                    yield event

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One request. Raises what the engine answers, or EngineError if it is gone."""
        if self._client is None:
            raise EngineError("the engine is gone", where=str(self.socket), hint="start it with `devloop up`")
        return await self._client.call(method, **params)

    async def environment(self, service: str, *, reveal: bool) -> list[Variable]:
        """A service's variables. Secret values are masked by the engine unless revealed."""
        answer = await self.call("env", service=service, reveal=reveal)
        return [Variable.from_json(item) for item in answer["variables"]]

    async def world(self, service: str) -> World:
        """What a local service has of its workload."""
        answer = await self.call("world", service=service)
        mounts = tuple(Mounted.from_json(item) for item in answer["mounts"])
        return World(answer["workload"], mounts, tuple(answer["notes"]))

    async def history(self, service: str) -> list[Loop]:
        """A service's loops, oldest first: from the engine's store, or else what has been seen here."""
        try:
            answer = await self.call("loops", service=service, limit=HISTORY)
            self.board.remember([Loop.from_json(item) for item in answer["loops"]])
        except EngineError:
            pass  # it is gone: what has been seen is still worth a look
        except DevloopError:
            answer = await self.call("status")  # an older engine has no such method; its last loops it has
            self.board.remember([s.last_loop for s in Snapshot.from_json(answer).services if s.last_loop is not None])
        return self.board.loops_of(service)

    async def requests(self, service: str) -> None:
        """Ask for the requests that went through a service's attachments lately; the board has them then."""
        answer = await self.call("requests", service=service, limit=REQUESTS)
        self.board.remember_requests(service, [RequestRecord.from_json(item) for item in answer["requests"]])

    async def attach(
        self, service: str, kind: str | None = None, routes: str | None = None, *, take_over: bool = False
    ) -> None:
        """Attach a service; None is what devloop.toml says. What it holds otherwise is given back first."""
        status = self.board.services.get(service)
        if kind is not None and status is not None and attachments.holds(status):
            await self.call("leave", service=service)
        await self.call("attach", service=service, kind=kind, routes=routes, take_over=take_over)
