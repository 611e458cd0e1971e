"""The engine's end of the control socket.

A subscriber is told the newest state, not each step: what has not been sent yet is replaced by what is newer,
logs are read from the ring when the client is ready for them, and what it was too slow for is counted. So a
slow client costs the engine a few kilobytes and no time. One that wants every log line gets them in chunks, at its own
pace; the ring holds what it has not read, up to a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from devloop.agent.tasks import background
from devloop.control import wire
from devloop.control.address import address
from devloop.control.terminals import Terminal, Terminals
from devloop.errors import DevloopError, EngineError, UsageError
from devloop.failures import contained
from devloop.listening import stop_listening
from devloop.places import mine, peer
from devloop.protocol import (
    LogBatch,
    LogLine,
    Loop,
    Notice,
    RemoteStatus,
    RequestBatch,
    RequestRecord,
    ServiceStatus,
    Snapshot,
    StopProgress,
)

FLUSH_INTERVAL = 0.04
"""Seconds between two writes to one subscriber: 25 a second are more than an eye can tell apart."""
LOG_LINES_PER_FLUSH = 500
"""So a subscriber is sent at most 12,500 lines a second, whatever the service prints."""
REQUESTS = 100
"""Of one connection, carried out at once; more are read as these are answered."""
GOODBYE_SECONDS = 1.0
"""So long may a client take, at the end, for what it has not read yet."""


CHUNK_BYTES = 128 * 1024
"""Of log lines that are sent at once to a subscriber that wants every line: a millisecond of the engine's time."""


class Follower(Protocol):
    """A reader of every line, at its own pace."""

    @property
    def pending(self) -> bool:
        """Whether there is something to read."""

    def read(self, limit: int) -> tuple[list[tuple[str, int, str, str]], int]:
        """(service, time, stream, lines as one text), oldest first, some `limit` bytes; and the lines missed."""

    def close(self) -> None:
        """Nothing is held for it any more."""


class LogSource(Protocol):
    """Where subscribers read log lines from; `devloop.local.logs.LogBook` is the real one."""

    def partials(self, services: Sequence[str] | None, revision: int) -> tuple[list[LogLine], int]:
        """Lines without an end that have changed since this revision (0: all), and the new revision."""

    def follow(self, services: Sequence[str] | None) -> Follower:
        """Who gets every line from now on."""

    def tail(self, services: Sequence[str] | None, lines: int) -> list[LogLine]:
        """The last lines of these services (None: all), oldest first."""

    def since(self, services: Sequence[str] | None, cursor: int, limit: int) -> tuple[list[LogLine], int, int]:
        """The newest `limit` lines after `cursor`, the new cursor, and how many were passed over."""

    @property
    def cursor(self) -> int:
        """The number of lines ever logged."""


class Backend(Protocol):
    """What the server serves: the engine, or a fake of it."""

    @property
    def logs(self) -> LogSource:
        """The log rings."""

    def snapshot(self) -> Snapshot:
        """The whole state now."""

    def terminal(self, service: str) -> Terminal:
        """A service's terminal. Raises UsageError if there is no such service."""

    async def call(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out one of `devloop.protocol.METHODS`. Raises DevloopError."""


class _Subscriber:
    """One connection: answers at once, events when it is ready for them."""

    def __init__(self, server: ControlServer, writer: asyncio.StreamWriter) -> None:
        self.server = server
        self.writer = writer
        self.subscribed = False
        self.log_services: Sequence[str] | None = None
        self.wants_logs = False
        self.cursor = 0
        self.revision = 0
        self.follower: Follower | None = None
        self.needs_snapshot = False
        self.services: dict[str, ServiceStatus] = {}
        self.loops: deque[Loop] = deque(maxlen=500)
        self.notices: deque[Notice] = deque(maxlen=100)
        self.remote: RemoteStatus | None = None
        self.requests: deque[RequestRecord] = deque(maxlen=1000)
        self.progress: StopProgress | None = None
        self.wake = asyncio.Event()
        self.terminals = Terminals(lambda name: server.backend.terminal(name), self.wake.set)

    def send(self, message: Mapping[str, Any]) -> None:
        self.writer.write(wire.encode(message))

    def subscribe(self, params: Mapping[str, Any]) -> None:
        logs = params.get("logs")
        tail = params.get("tail", 0)
        named = isinstance(logs, list) and all(isinstance(each, str) for each in logs)
        if not (logs is None or logs == "*" or named) or not isinstance(tail, int) or tail < 0:
            raise UsageError("subscribe takes logs: [service] | '*' | null, and tail: a number of lines")
        source = self.server.backend.logs
        self.wants_logs = logs is not None
        self.log_services = None if logs == "*" else logs
        self.cursor = source.cursor
        self.revision = 0
        self.stop_following()
        if self.wants_logs and params.get("every"):
            self.follower = source.follow(self.log_services)
        self.subscribed = True
        self.send({"method": "snapshot", "params": self.server.backend.snapshot().to_json()})
        if self.wants_logs and tail:
            self.send_logs(source.tail(self.log_services, tail), 0)
        self.wake.set()  # for lines without an end, which are there already

    def stop_following(self) -> None:
        if self.follower is not None:
            self.follower.close()
            self.follower = None

    def send_logs(self, lines: Sequence[LogLine], dropped: int) -> None:
        self.send({"method": "logs", "params": LogBatch(tuple(lines), dropped).to_json()})

    async def pump(self) -> None:
        """Write what is pending, at most once in FLUSH_INTERVAL and never ahead of the client."""
        while True:
            await self.wake.wait()
            self.wake.clear()
            self.flush()
            await self.writer.drain()
            if self.follower is not None and self.follower.pending:
                self.wake.set()
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(FLUSH_INTERVAL)

    def flush(self) -> None:
        if self.needs_snapshot:
            self.needs_snapshot = False
            self.services.clear()
            self.remote = None
            self.send({"method": "snapshot", "params": self.server.backend.snapshot().to_json()})
        if self.wants_logs:
            self.flush_logs(self.server.backend.logs)
        for output in self.terminals.pending():
            self.send({"method": "terminal", "params": output.to_json()})
        if self.remote is not None:
            self.send({"method": "remote", "params": self.remote.to_json()})
            self.remote = None
        if self.requests:
            self.send({"method": "requests", "params": RequestBatch(tuple(self.requests)).to_json()})
            self.requests.clear()
        for status in self.services.values():
            self.send({"method": "service", "params": status.to_json()})
        self.services.clear()
        while self.loops:
            self.send({"method": "loop", "params": self.loops.popleft().to_json()})
        while self.notices:
            self.send({"method": "notice", "params": self.notices.popleft().to_json()})
        if self.progress is not None:
            self.send({"method": "stop_progress", "params": self.progress.to_json()})
            self.progress = None

    def flush_logs(self, source: LogSource) -> None:
        lines: list[LogLine] = []
        dropped = 0
        if self.follower is not None:
            chunks, missed = self.follower.read(CHUNK_BYTES)
            if chunks or missed:
                self.send({"method": "logs", "params": {"chunks": chunks, "dropped": missed}})
        else:
            lines, self.cursor, dropped = source.since(self.log_services, self.cursor, LOG_LINES_PER_FLUSH)
        partials, self.revision = source.partials(self.log_services, self.revision)
        if lines or dropped or partials:
            self.send_logs([*lines, *partials], dropped)


class ControlServer:
    """Serves one backend on one Unix socket."""

    def __init__(self, path: Path, backend: Backend) -> None:
        self.path = path
        self.backend = backend
        self._subscribers: set[_Subscriber] = set()
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        """Of every connection whose transport is not closed yet, whether it was a client's to end or ours."""
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._closing = False

    async def start(self) -> None:
        """Listen. A socket left by a dead engine is replaced: the caller holds the project's lock."""
        listening = _listening(self.path)
        self._inode = self.path.lstat().st_ino
        self._server = await asyncio.start_unix_server(self._connected, sock=listening, limit=wire.LIMIT)

    async def listen_again(self) -> None:
        """Listen at the same path once more, where somebody has removed the socket. Connections stay."""
        before = self._server
        await self.start()
        if before is not None:
            await stop_listening(before)

    async def close(self) -> None:
        """Send what is pending, hang up on everyone and remove the socket.

        A client that does not read what is pending is hung up on all the same, after GOODBYE_SECONDS.
        """
        self._closing = True
        if self._server is not None:
            await stop_listening(self._server)
        for subscriber in self._subscribers:
            subscriber.flush()
            while subscriber.follower is not None and subscriber.follower.pending:
                subscriber.flush()
            subscriber.writer.close()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        for writer in self._writers:
            writer.close()  # a task that was cancelled before its first step has not
        await _hung_up(list(self._writers))
        with contextlib.suppress(OSError):  # its folder may be gone, or its disk read-only by now
            if self.path.lstat().st_ino == self._inode:  # else it is another engine's
                self.path.unlink()

    def publish(self, event: ServiceStatus | Loop | Notice | RemoteStatus | RequestBatch | StopProgress) -> None:
        """Tell every subscriber, soon."""
        for subscriber in self._subscribers:
            if not subscriber.subscribed:
                continue
            match event:
                case ServiceStatus():
                    subscriber.services[event.name] = event
                case Loop():
                    subscriber.loops.append(event)
                case Notice():
                    subscriber.notices.append(event)
                case RemoteStatus():
                    subscriber.remote = event
                case RequestBatch():
                    subscriber.requests.extend(event.requests)
                case StopProgress():
                    subscriber.progress = event
            subscriber.wake.set()

    def publish_snapshot(self) -> None:
        """Tell every subscriber the whole state anew: the set of services has changed."""
        for subscriber in self._subscribers:
            if subscriber.subscribed:
                subscriber.needs_snapshot = True
                subscriber.wake.set()

    def logs_arrived(self) -> None:
        """There is something new in the log rings."""
        for subscriber in self._subscribers:
            if subscriber.wants_logs:
                subscriber.wake.set()

    def terminal_arrived(self, service: str) -> None:
        """A service has printed something, for those who have its terminal open."""
        for subscriber in self._subscribers:
            if subscriber.terminals.shows(service):
                subscriber.wake.set()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Not a coroutine: `close` has to know of a connection whose task has not run yet."""
        if self._closing:
            writer.transport.abort()
            return
        if (uid := peer(writer.get_extra_info("socket"))[1]) is not None and uid not in mine():
            writer.close()  # its mode keeps others out, where the file system has modes
            return
        self._writers.add(writer)
        task = background(self._serve(reader, writer), name="a client")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        subscriber = _Subscriber(self, writer)
        self._subscribers.add(subscriber)
        try:
            room = asyncio.Semaphore(REQUESTS)
            async with asyncio.TaskGroup() as group:
                pump = group.create_task(subscriber.pump())
                while line := await reader.readline():
                    await room.acquire()
                    group.create_task(self._answer(subscriber, line)).add_done_callback(lambda _: room.release())
                pump.cancel()
        except* (OSError, ValueError, asyncio.CancelledError):
            # A client that is gone, or a line over the limit. asyncio's own wrapper would log a cancelled
            # handler as an error (python/cpython#110894), so the cancellation ends here.
            pass
        finally:
            self._subscribers.discard(subscriber)
            subscriber.stop_following()
            subscriber.terminals.close()
            writer.close()
            if not self._closing:  # `close` waits for it otherwise, also if that comes meanwhile
                with contextlib.suppress(asyncio.CancelledError):
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
                    self._writers.discard(writer)

    async def _answer(self, subscriber: _Subscriber, line: bytes) -> None:
        number: Any = None
        try:
            message = wire.decode(line)
            method, params = message.get("method"), message.get("params", {})
            if isinstance(said := message.get("id"), int | str):  # what else it may be, an answer need not repeat
                number = said
            if not isinstance(method, str) or not isinstance(params, dict):
                raise UsageError("a request has a method and an object of params", where="control socket")
            result: dict[str, Any] = {}
            if method == "subscribe":
                subscriber.subscribe(params)
            elif method.startswith("terminal_"):
                result = await subscriber.terminals.answer(method, params)
            elif method == "ping":
                pass  # that it is answered is the answer
            else:
                result = await self.backend.call(method, params)
            answer: dict[str, Any] = {"id": number, "result": result}
        except DevloopError as error:
            answer = {"id": number, "error": wire.encode_error(error)}
        except Exception as problem:  # of this request's; the others of this client's are to be answered
            answer = {"id": number, "error": wire.encode_error(contained(problem, "this can't be done"))}
        subscriber.send(answer)
        with contextlib.suppress(OSError):
            await subscriber.writer.drain()


def _listening(path: Path) -> socket.socket:
    """A socket of mode 0600 that listens there. Raises EngineError."""
    listening = socket.socket(socket.AF_UNIX)
    try:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        with address(path) as where:
            listening.bind(where)
        # No one can connect between bind and chmod: the folder is 0700, and nobody listens yet.
        path.chmod(0o600)
        listening.listen(100)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise EngineError(
            f"can't make the control socket: {error.strerror}",
            where=str(path),
            hint="set DEVLOOP_STATE_DIR to a folder on a disk of this machine that has room",
        ) from None
    return listening


async def _hung_up(writers: Sequence[asyncio.StreamWriter]) -> None:
    """Wait until these, which are closing, have sent what they hold; whose client does not take it is cut off."""
    tasks = [asyncio.create_task(writer.wait_closed()) for writer in writers]
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=GOODBYE_SECONDS)
    if late:
        for writer in writers:
            writer.transport.abort()
    await asyncio.gather(*tasks, return_exceptions=True)
