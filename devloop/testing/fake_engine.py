"""An engine without processes: a scripted `Backend` behind a real control socket.

    async with FakeEngine(shop.snapshot(clock)).serving(path) as engine:
        engine.update("api", state=State.FAILED, reason="exit code 1")

Every request is recorded in `calls` and answered as the engine would, at once and always alike. With a
fixed clock nothing in it depends on when it runs. `python -m devloop.testing.fake_engine SOCKET` serves a
lively one, to look at a client with.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from devloop.control.server import Backend, ControlServer, _Subscriber
from devloop.errors import DevloopError, UsageError
from devloop.protocol import (
    METHODS,
    AttachmentStatus,
    Cause,
    LogLine,
    Loop,
    Mounted,
    Notice,
    Outcome,
    RemoteStatus,
    RequestBatch,
    RequestRecord,
    ServiceStatus,
    Snapshot,
    State,
    StopProgress,
    Variable,
)

Published = ServiceStatus | Loop | Notice | RemoteStatus | RequestBatch | StopProgress

RUNNING = frozenset({State.WAITING, State.BUILDING, State.STARTING, State.READY, State.BACKOFF})
"""States from which a shutdown has something to end."""
PERSONAL = "baggage:devloop=ada"
"""The route of the developer whose engine this is."""


class FakeLogs:
    """One bounded ring for all services; a `devloop.control.server.LogSource`."""

    def __init__(self, capacity: int = 20_000) -> None:
        self._lines: deque[LogLine] = deque(maxlen=capacity)
        self._count = 0

    @property
    def cursor(self) -> int:
        """The number of lines ever logged."""
        return self._count

    def extend(self, lines: Sequence[LogLine]) -> None:
        """Add lines, oldest first."""
        self._lines.extend(lines)
        self._count += len(lines)

    def tail(self, services: Sequence[str] | None, lines: int) -> list[LogLine]:
        """The last lines of these services (None: all), oldest first."""
        chosen = (line for line in reversed(self._lines) if services is None or line.service in services)
        return list(islice(chosen, lines))[::-1]

    def partials(self, services: Sequence[str] | None, revision: int) -> tuple[list[LogLine], int]:
        """None: every line here has its end."""
        return [], revision

    def follow(self, services: Sequence[str] | None) -> FakeFollower:
        """Who gets every line from now on."""
        return FakeFollower(self, services)

    def since(self, services: Sequence[str] | None, cursor: int, limit: int) -> tuple[list[LogLine], int, int]:
        """The newest `limit` lines after `cursor`, the new cursor, and how many were passed over."""
        fresh = min(self._count - cursor, len(self._lines))
        chosen = [
            line
            for line in islice(self._lines, len(self._lines) - fresh, None)
            if services is None or line.service in services
        ]
        dropped = max(0, len(chosen) - limit)
        return chosen[dropped:], self._count, dropped


class FakeOutput:
    """All that a service ever printed; a `devloop.control.terminals.Output`."""

    def __init__(self) -> None:
        self.data = b""

    @property
    def end(self) -> int:
        """The position after the newest byte."""
        return len(self.data)

    def since(self, position: int, limit: int) -> tuple[bytes, int, int]:
        """At most `limit` bytes from a position on, the position after them, and how many before them are lost."""
        found = self.data[position : position + limit]
        return found, position + len(found), 0


class FakeTerminal:
    """Remembers what is typed; a `devloop.control.terminals.Terminal`."""

    def __init__(self, tty: bool) -> None:
        self.tty = tty
        self.output = FakeOutput()
        self.runs, self.began = 1, 0
        self.typed = b""
        self.interrupts = 0
        self.size: tuple[int, int] | None = None
        self.clients: set[object] = set()
        self.on_typed: Callable[[bytes], None] | None = None
        """Called with what was typed."""

    async def type(self, data: bytes) -> None:
        """Remember it."""
        self.typed += data
        if self.on_typed is not None:
            self.on_typed(data)

    def interrupt(self) -> None:
        """Count it."""
        self.interrupts += 1

    def resize(self, client: object | None, columns: int, rows: int) -> None:
        """Remember the size, and who has it open."""
        self.size = columns, rows
        if client is not None:
            self.clients.add(client)

    def leave(self, client: object) -> None:
        """It is gone."""
        self.clients.discard(client)


class FakeFollower:
    """A `devloop.control.server.Follower` of a FakeLogs."""

    def __init__(self, logs: FakeLogs, services: Sequence[str] | None) -> None:
        self._logs = logs
        self._services = services
        self._cursor = logs.cursor

    @property
    def pending(self) -> bool:
        """Whether there is something to read."""
        return self._cursor < self._logs.cursor

    def read(self, limit: int) -> tuple[list[tuple[str, int, str, str]], int]:
        """A chunk for each line, all of them."""
        lines, self._cursor, dropped = self._logs.since(self._services, self._cursor, self._logs.cursor)
        return [(line.service, line.at, line.stream, line.text) for line in lines], dropped

    def close(self) -> None:
        """Nothing is held for it."""


class _Server(ControlServer):
    """One that can be stopped, as by SIGSTOP: the socket is open, and nothing is answered."""

    def __init__(self, path: Path, backend: Backend) -> None:
        super().__init__(path, backend)
        self.going = asyncio.Event()
        self.going.set()

    async def _answer(self, subscriber: _Subscriber, line: bytes) -> None:
        await self.going.wait()
        await super()._answer(subscriber, line)


class FakeEngine:
    """A `devloop.control.server.Backend` whose state is what a test says it is."""

    def __init__(self, snapshot: Snapshot, *, clock: Callable[[], int] = time.time_ns) -> None:
        self.clock = clock
        self.calls: list[tuple[str, dict[str, Any]]] = []
        """(method, parameters) of each request but `subscribe`, in order."""
        self.failures: dict[str, DevloopError] = {}
        """Method → what it raises from now on."""
        self.environment: dict[str, tuple[Variable, ...]] = {}
        """Service → what `env` answers."""
        self.mounts: dict[str, tuple[Mounted, ...]] = {}
        """Service → the files that `world` answers; its workload and notes are the status's."""
        self.loops: dict[str, list[Loop]] = {}
        """Service → what `loops` answers, oldest first."""
        self.requests: dict[str, list[RequestRecord]] = {}
        """Service → what `requests` answers, oldest first."""
        self.terminals: dict[str, FakeTerminal] = {}
        """Service → its terminal, once somebody has asked for it."""
        self.on_attach: Callable[[str], None] | None = None
        """Called on `attach` with a service, which is attaching then. Without it, it is attached at once."""
        self.on_shutdown: Callable[[], None] | None = None
        """Called on `shutdown`, after the first progress is told. Without it, nothing dies by itself."""
        self.on_reconnect: Callable[[], None] | None = None
        """Called on `reconnect`. Without it, a connection that is not there comes back at once."""
        self._base = snapshot
        self._services = {status.name: status for status in snapshot.services}
        self._notices = list(snapshot.notices)
        self._logs = FakeLogs()
        self._server: _Server | None = None
        self._held: list[Published] = []
        """What was to be told while it was stopped."""
        self._numbers = 1000
        for status in snapshot.services:
            if status.last_loop is not None:
                self.loops[status.name] = [status.last_loop]

    @contextlib.asynccontextmanager
    async def serving(self, path: Path) -> AsyncIterator[FakeEngine]:
        """Listen on a Unix socket for the length of the block."""
        self._server = _Server(path, self)
        await self._server.start()
        try:
            yield self
        finally:
            await self.hang_up()

    async def hang_up(self) -> None:
        """Close the socket and every connection, as an engine does that ends."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.close()

    def suspend(self) -> None:
        """Answer nothing and tell nothing, as an engine does that is stopped (SIGSTOP)."""
        assert self._server is not None
        self._server.going.clear()

    def resume(self) -> None:
        """Go on: what was asked and was to be told meanwhile comes now."""
        assert self._server is not None
        self._server.going.set()
        held, self._held = self._held, []
        for event in held:
            self._server.publish(event)

    # What a ControlServer asks of it

    @property
    def logs(self) -> FakeLogs:
        """The log ring."""
        return self._logs

    def terminal(self, service: str) -> FakeTerminal:
        """A service's terminal; one that is asked for is there."""
        if service not in self._services:
            raise UsageError(f"there is no service {service!r}")
        return self.terminals.setdefault(service, FakeTerminal(self._services[service].tty))

    def print_raw(self, service: str, data: bytes) -> None:
        """Have a service's process print these bytes, for who has its terminal open."""
        self.terminal(service).output.data += data
        if self._server is not None:
            self._server.terminal_arrived(service)

    def snapshot(self) -> Snapshot:
        """The whole state now."""
        return replace(self._base, services=tuple(self._services.values()), notices=tuple(self._notices))

    async def call(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out a request. Raises UsageError for a method or a service that is not there."""
        self.calls.append((method, dict(params)))
        if method in self.failures:
            raise self.failures[method]
        if method not in METHODS:
            raise UsageError(f"no method {method!r}", where="control socket")
        names: list[str] = params.get("services") or []
        match method:
            case "status":
                return self.snapshot().to_json()
            case "toggle":
                return {"mode": self._toggle(params["service"], params.get("mode"))}
            case "start" | "restart" | "build":
                for name in names:
                    self._run_loop(name)
            case "stop":
                for name in names:
                    self.update(name, state=State.STOPPED, reason="", pid=None)
            case "logs":
                lines = self._logs.tail(params.get("services"), params.get("tail", 100))
                return {"lines": [line.to_json() for line in lines]}
            case "env":
                return {"variables": self._variables(params["service"], bool(params.get("reveal")))}
            case "world":
                return self._world(params["service"])
            case "attach":
                self._attach(params["service"], params.get("kind"), params.get("routes"))
            case "leave":
                self.status(params["service"])
                self.update(params["service"], attachments=())
            case "move":
                ended = sum(each.count for each in self.status(params["service"]).earlier)
                self.update(params["service"], earlier=())
                return {"ended": ended, "left": []}
            case "requests":
                told = self.requests.get(params["service"], [])[-params.get("limit", 100) :]
                return {"requests": [each.to_json() for each in told]}
            case "reconnect":
                self._reconnect()
            case "loops":
                records = self.loops.get(params["service"], [])[-params.get("limit", 100) :]
                return {"loops": [loop.to_json() for loop in records]}
            case "reload_config":
                return {"changed": []}
            case "shutdown":
                self._base = replace(self._base, stopping=True)
                self.progress([s.name for s in self._services.values() if s.state in RUNNING])
                if self.on_shutdown is not None:
                    self.on_shutdown()
        return {}

    # What a script says happens

    def status(self, name: str) -> ServiceStatus:
        """A service as it is now. Raises UsageError if there is none of this name."""
        if name not in self._services:
            raise UsageError(f"no service {name!r}", hint="see `devloop status`")
        return self._services[name]

    def update(self, name: str, **changes: Any) -> None:
        """Change fields of a service's status and tell the clients. A new state starts now."""
        if "state" in changes:
            changes.setdefault("since_at", self.clock())
        self._services[name] = replace(self.status(name), **changes)
        self._publish(self._services[name])

    def finish_loop(self, loop: Loop) -> None:
        """A loop has ended: it is told, and the service's figures follow."""
        self.loops.setdefault(loop.service, []).append(loop)
        status = self.status(loop.service)
        history = status.history
        if loop.outcome is Outcome.OK:
            history = (*history, loop.total)[-32:]
        ranked = sorted(history)
        self.update(
            loop.service,
            last_loop=loop,
            opened_at=None,
            history=history,
            loops=status.loops + (loop.outcome is Outcome.OK),
            p50=ranked[len(ranked) // 2] if ranked else None,
            p95=ranked[int(len(ranked) * 0.95)] if ranked else None,
        )
        self._publish(loop)

    def log(self, service: str, *texts: str, stream: str = "out") -> None:
        """Lines of output."""
        now = self.clock()
        self._logs.extend([LogLine(service, now, stream, text) for text in texts])
        if self._server is not None:
            self._server.logs_arrived()

    def notify(self, level: str, text: str, *, service: str | None = None, hint: str = "") -> None:
        """Something that the engine has to tell a person."""
        notice = Notice(level, text, self.clock(), service, hint)
        self._notices.append(notice)
        self._publish(notice)

    def configure(self, services: Sequence[ServiceStatus] | None = None, *, error: str = "") -> None:
        """devloop.toml has changed: other services, or an error and the old ones."""
        if services is not None:
            self._services = {status.name: status for status in services}
        self._base = replace(self._base, config_error=error)
        if self._server is not None:
            self._server.publish_snapshot()

    def connection(self, phase: str, **changes: Any) -> None:
        """The connection to the remote enters a phase, now; other fields as given, else as in a fresh one."""
        assert self._base.remote is not None, "the snapshot has no remote"
        fresh = {"since_at": self.clock(), "reason": "", "attempt": 0, "next_at": None}
        remote = replace(self._base.remote, phase=phase, **{**fresh, **changes})
        self._base = replace(self._base, remote=remote)
        self._publish(remote)

    def attachment(self, name: str, phase: str, *, target: str = "", **changes: Any) -> None:
        """An attachment of a service enters a phase, now: that of `target`, or its first.

        A service that has none gets one, an intercept unless told otherwise. Reason and notes go with the old phase.
        """
        status = self.status(name)
        others = [each for each in status.attachments if target and each.target != target]
        own = next((each for each in status.attachments if each not in others), None)
        if own is None:
            own = AttachmentStatus("intercept", target or name, phase, self.clock(), (PERSONAL,))
        fresh = {"since_at": self.clock(), "reason": "", "notes": ()}
        self.update(name, attachments=(replace(own, phase=phase, **{**fresh, **changes}), *others))

    def hear(self, *requests: RequestRecord) -> None:
        """Requests are over."""
        for each in requests:
            self.requests.setdefault(each.service, []).append(each)
        self._publish(RequestBatch(requests))

    def progress(
        self,
        alive: Sequence[str],
        survivors: Mapping[str, tuple[str, ...]] | None = None,
        *,
        done: bool = False,
    ) -> None:
        """How far a shutdown has come."""
        for name, status in self._services.items():
            if status.state in RUNNING | {State.STOPPING}:
                self.update(name, state=State.STOPPING if name in alive else State.STOPPED, reason="")
        self._publish(StopProgress(tuple(alive), dict(survivors or {}), done))

    def _publish(self, event: Published) -> None:
        if self._server is not None and not self._server.going.is_set():
            self._held.append(event)
        elif self._server is not None:
            self._server.publish(event)

    def _run_loop(self, name: str) -> None:
        status = self.status(name)
        self._numbers += 1
        stamps = {"edited": 0, "stopped": 8_000_000, "spawned": 10_000_000, "ready": 120_000_000}
        if status.has_build:
            stamps = {
                "edited": 0,
                "built": 400_000_000,
                **{k: v + 400_000_000 for k, v in stamps.items() if v},
            }
        loop = Loop(self._numbers, name, Cause.MANUAL, Outcome.OK, self.clock(), stamps)
        self.update(name, state=State.READY, reason="", restarts=status.restarts + 1, stale=False)
        self.finish_loop(loop)

    def _toggle(self, name: str, mode: str | None) -> str:
        status = self.status(name)
        modes = status.modes
        after = modes.index(status.mode) + 1 if status.mode in modes else 0
        chosen = mode or modes[after % len(modes)]
        if chosen == "remote" and chosen not in modes:
            raise UsageError(f"{name} can't be remote: the remote does not have it", hint="it can be `local` or `off`")
        states = {"local": State.READY, "remote": State.REMOTE, "off": State.OFF}
        self.update(name, mode=chosen, state=states[chosen], reason="", pid=None, attachments=())
        return chosen

    def _attach(self, name: str, kind: str | None, routes: object) -> None:
        status = self.status(name)
        if self._base.remote is None:
            raise UsageError("this project has no remote", hint="[remote] in devloop.toml names one")
        if status.mode != "local":
            raise UsageError(f"{name} is not local, so there is nothing to lead its traffic to")
        if not (kind or routes) and any(each.phase not in ("refused", "contested") for each in status.attachments):
            return  # what is attached stays
        chosen = kind or "intercept"
        taken = PERSONAL if chosen == "intercept" and routes != "all" else "all requests"
        phase = "attached" if self.on_attach is None else "attaching"
        self.update(name, attachments=())
        self.attachment(name, phase, kind=chosen, routes=(taken,))
        if self.on_attach is not None:
            self.on_attach(name)

    def _world(self, name: str) -> dict[str, Any]:
        status = self.status(name)
        here = self.mounts.get(name, ()) if status.mode == "local" else ()
        mounts = [mount.to_json() for mount in here]
        return {"workload": status.workload, "mounts": mounts, "notes": list(status.notes)}

    def _reconnect(self) -> None:
        if self._base.remote is None:
            raise UsageError("this project has no remote", hint="[remote] in devloop.toml names one")
        if self.on_reconnect is not None:
            self.on_reconnect()
        elif self._base.remote.phase != "connected":
            self.connection("connected")

    def _variables(self, name: str, reveal: bool) -> list[dict[str, Any]]:
        self.status(name)
        return [
            (variable if reveal or not variable.secret else replace(variable, value="••••••••")).to_json()
            for variable in self.environment.get(name, ())
        ]


if __name__ == "__main__":
    from devloop.testing.shop import main

    raise SystemExit(main())
