"""The connections to the engine: one for its state and for requests, one more for the logs on view.

Logs have a connection of their own because changing what is shown is then a matter of hanging up: no line of
the former choice can arrive late, and the state never waits behind a flood of lines. Only what is on view is
asked for, so a service that floods its log costs nothing unless someone looks at it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devloop.agent.tasks import background
from devloop.control.client import ControlClient
from devloop.errors import DevloopError, EngineError, UnansweredError, UsageError
from devloop.protocol import LogBatch, Loop, Mounted, RequestRecord, Snapshot, TerminalOutput, Variable
from tui.board import Board, Event

HEARTBEAT = 1.0
"""Seconds between two questions whether the engine is there."""
PATIENCE = 2.0
"""Seconds without an answer from which on the screen says so, and nothing on it counts any more."""
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

    def __init__(
        self, socket: Path, *, clock: Callable[[], int] = time.time_ns, start: Callable[[], None] | None = None
    ) -> None:
        self.socket = socket
        self.start = start
        """Starts an engine, blocking; None if this client can't."""
        self.board = Board()
        self.connected = False
        self.lost = False
        """The engine was there, and has hung up."""
        self.silence = 0.0
        """Seconds for which it owes an answer."""
        self.hidden = False
        """Its socket is no longer where clients look for it: only who is connected reaches it."""
        self._asked: list[str] = []
        self._late: list[str] = []
        self._clock = clock
        self._heard_at = clock()
        self._client: ControlClient | None = None
        self._ping: asyncio.Task[None] | None = None
        self._owed = False
        """It was asked since it was heard last."""
        self._missing = 0

    async def events(self) -> AsyncIterator[Event]:
        """Connect and yield each event after the board has taken it in. Ends when the engine hangs up.

        Raises EngineError if no engine listens.
        """
        async with await ControlClient.connect(self.socket) as client:
            self._client = client
            self._heard()
            try:
                await client.subscribe()
                self.board.begin()
                self.connected, self.lost = True, False
                async for event in client.events():
                    self._heard()
                    if isinstance(event, TerminalOutput):
                        continue  # a terminal has a connection of its own
                    self.board.apply(event)
                    yield event
            finally:
                self.lost = self.lost or self.connected
                self._client, self.connected, self.silence, self.hidden = None, False, 0.0, False

    # Whether it is there

    def clock(self) -> int:
        """Unix time in nanoseconds; it stands still while the engine is gone or does not answer.

        So nothing on screen goes on counting for which nobody can vouch.
        """
        return self._heard_at if self.lost or self.silent else self._clock()

    @property
    def silent(self) -> bool:
        """Whether the engine is connected and does not answer."""
        return self.silence >= PATIENCE

    @property
    def waiting(self) -> list[str]:
        """What the engine was asked to do and has not answered, in words."""
        return [*self._late, *self._asked]

    def beat(self) -> None:
        """Ask whether the engine is there; to be called once in HEARTBEAT seconds.

        Beats are counted rather than time: a screen that was itself stopped does not blame the engine for it.
        """
        client = self._client
        if client is None:
            return
        if self._owed:
            self.silence += HEARTBEAT
        self._owed = True
        if self._ping is None or self._ping.done():
            self._ping = background(self._ask(client), name="heartbeat")
        self._missing = 0 if self.socket.exists() else self._missing + 1
        self.hidden = self._missing > 1

    async def _ask(self, client: ControlClient) -> None:
        with contextlib.suppress(EngineError):  # it hung up, which whoever reads events knows; or owes the answer
            with contextlib.suppress(UsageError):  # an older engine, which answers all the same
                await client.call("ping")
            self._heard()

    def _heard(self) -> None:
        self.silence, self._heard_at, self._owed = 0.0, self._clock(), False
        self._late.clear()

    async def logs(self, services: Sequence[str] | None) -> AsyncIterator[LogBatch]:
        """The last lines of these services (None: all), then new ones as they come."""
        async with await ControlClient.connect(self.socket) as client:
            await client.subscribe(logs="*" if services is None else list(services), tail=LOG_TAIL)
            async for event in client.events():
                if isinstance(event, LogBatch):
                    yield event

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One request. Raises what the engine answers, or EngineError if it is gone.

        While it does not answer, a question is asked again. What it was asked to do is not: that reaches it once, and
        the answer is then empty.
        """
        while (client := self._client) is not None:
            words = _words(method, params)
            self._asked += [words] if words else []
            try:
                return await client.call(method, **params)
            except UnansweredError:
                if words:
                    self._late.append(words)
                    return {}
            finally:
                if words:
                    self._asked.remove(words)
        raise EngineError("the engine is gone", where=str(self.socket), hint="start it with `devloop up`")

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
        """Attach a service; None is what devloop.toml says. What it holds otherwise the engine gives back."""
        await self.call("attach", service=service, kind=kind, routes=routes, take_over=take_over)


def _words(method: str, params: Mapping[str, Any]) -> str:
    """restart api, stop db: what was asked for; empty for what only looks."""
    if method in ("env", "world", "loops", "requests", "status", "logs"):
        return ""
    names = params.get("services") or [params[key] for key in ("service",) if key in params]
    return " ".join([method.replace("_", " "), ", ".join(names)]).strip()
