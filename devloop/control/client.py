"""The other end: what the TUI and the commands talk through.

An engine that does not answer is not waited for: after PATIENCE its process is looked at, and it is asked something
easy. Only while it answers that, a call that takes its time goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from devloop import presence
from devloop.agent.tasks import background
from devloop.control import wire
from devloop.control.address import address
from devloop.errors import EngineError, UnansweredError
from devloop.places import mine, peer, user_name
from devloop.protocol import (
    EVENTS,
    LogBatch,
    Loop,
    Notice,
    RemoteStatus,
    RequestBatch,
    ServiceStatus,
    Snapshot,
    StopProgress,
    TerminalOutput,
)

Event = (
    Snapshot | ServiceStatus | Loop | LogBatch | Notice | RemoteStatus | RequestBatch | StopProgress | TerminalOutput
)

LOOK = 1.0
"""Seconds between two looks at an engine that owes an answer."""
PATIENCE = 2.0
"""Seconds that an engine may take for an answer before it is asked whether it answers at all."""
ANSWER = 3.0
"""Seconds that it may take for that one."""
_RETRY = 0.05


def _not_running(path: Path) -> EngineError:
    return EngineError(
        "no engine runs for this project", where=str(path.parent.parent), hint="start it with `devloop up`"
    )


class _Patience:
    """With one engine, for one answer."""

    def __init__(self, path: Path, pid: int | None) -> None:
        self._path = path
        self._pid = pid
        self._began = time.monotonic()
        self._stopped = 0

    def look(self) -> None:
        """To be called each LOOK seconds. Blocks for ANSWER at most; raises UnansweredError."""
        stopped = presence.is_stopped(self._pid)
        self._stopped = self._stopped + 1 if stopped else 0
        if self._stopped >= 2:  # once may be a debugger that has just come
            raise UnansweredError(self._path.parent, self._pid, stopped=True)
        if time.monotonic() - self._began >= PATIENCE and not stopped:
            self.ask()
            self._began = time.monotonic()

    def ask(self) -> None:
        """Ask it what any engine answers at once, whatever it is doing."""
        try:
            with _connected(self._path) as connection:
                connection.settimeout(ANSWER)
                connection.sendall(wire.encode({"id": 1, "method": "ping", "params": {}}))
                connection.recv(1)
        except TimeoutError:
            raise UnansweredError(self._path.parent, self._pid) from None
        except OSError:
            pass  # it has just gone: the other connection tells


def _attempt(path: Path) -> socket.socket | None:
    """A connection to the engine, not blocking; None if it takes nobody in now.

    Raises EngineError if none listens, or somebody else's.
    """
    connection = socket.socket(socket.AF_UNIX)
    connection.setblocking(False)
    try:
        with address(path) as where:
            connection.connect(where)
    except BlockingIOError:  # as many wait as may
        connection.close()
        return None
    except PermissionError as error:
        connection.close()
        hint = "ask as the user who runs it"
        raise EngineError(f"can't reach the engine: {error.strerror}", where=str(path), hint=hint) from None
    except OSError:
        connection.close()
        raise _not_running(path) from None
    uid = peer(connection)[1]
    if uid is not None and uid not in mine():
        connection.close()
        raise EngineError(
            f"what listens here is {user_name(uid)}'s, and no engine of yours",
            where=str(path),
            hint="end it, or set DEVLOOP_STATE_DIR to a folder of your own",
        )
    return connection


def _connected(path: Path) -> socket.socket:
    """A connection to the engine. Raises EngineError if none listens, UnansweredError if it takes nobody in."""
    until = time.monotonic() + ANSWER
    while (connection := _attempt(path)) is None:
        if time.monotonic() > until:
            raise UnansweredError(path.parent, None)
        time.sleep(_RETRY)
    return connection


def call(path: Path, method: str, **params: Any) -> dict[str, Any]:
    """One request, blocking, without asyncio.

    Raises EngineError if no engine listens, UnansweredError if it does not answer, or what it answers.
    """
    with _connected(path) as connection:
        connection.settimeout(LOOK)
        patience = _Patience(path, peer(connection)[0])
        buffer = bytearray()
        try:
            connection.sendall(wire.encode({"id": 1, "method": method, "params": params}))
            while True:
                try:
                    data = connection.recv(1 << 16)
                except TimeoutError:
                    patience.look()
                    continue
                if not data:
                    break
                seen = len(buffer)
                buffer += data
                if buffer.find(b"\n", seen) < 0:
                    continue
                *lines, rest = buffer.split(b"\n")
                buffer = bytearray(rest)
                for line in lines:
                    message = wire.decode(bytes(line))
                    if message.get("id") == 1:
                        if "error" in message:
                            raise wire.decode_error(message["error"])
                        result = message["result"]
                        assert isinstance(result, dict)
                        return result
        except OSError:
            pass  # a reset is a hang-up
    raise EngineError("the engine hung up before it answered", where=str(path), hint="see `devloop status`")


class ControlClient:
    """One connection: calls, and after `subscribe` the events.

    Use `async with await ControlClient.connect(path) as client`.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: Path) -> None:
        self.path = path
        sock = writer.get_extra_info("socket")
        self.pid: int | None = None if sock is None else peer(sock)[0]
        """The engine's process."""
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._task = background(self._read(), name="control-client")

    @classmethod
    async def connect(cls, path: Path) -> ControlClient:
        """Connect. Raises EngineError if no engine listens there, UnansweredError if it takes nobody in."""
        until = time.monotonic() + ANSWER
        while (connection := _attempt(path)) is None:
            if time.monotonic() > until:
                raise UnansweredError(path.parent, None)
            await asyncio.sleep(_RETRY)
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=wire.LIMIT)
        return cls(reader, writer, path)

    async def __aenter__(self) -> ControlClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One request. Raises what the engine answers, EngineError if it hangs up, UnansweredError if it is silent."""
        if self._task.done():
            raise EngineError("the engine is gone")
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        self._writer.write(wire.encode({"id": number, "method": method, "params": params}))
        patience = _Patience(self.path, self.pid)
        try:
            while not (await asyncio.wait([answer], timeout=LOOK))[0]:
                await asyncio.to_thread(patience.look)
            return answer.result()
        finally:
            self._answers.pop(number, None)
            answer.cancel()

    async def subscribe(self, logs: Sequence[str] | str | None = None, tail: int = 0, *, every: bool = False) -> None:
        """Ask for events; `events` yields a Snapshot first. `logs` is '*', names or None for no logs.

        With `every` no line is passed over as long as this client reads about as fast as services print.
        """
        await self.call("subscribe", logs=logs, tail=tail, every=every)

    async def events(self) -> AsyncIterator[Event]:
        """Events as they come. Ends when the engine hangs up."""
        while (event := await self._events.get()) is not None:
            yield event

    async def _read(self) -> None:
        try:
            while line := await self._reader.readline():
                message = wire.decode(line)
                kind = EVENTS.get(message.get("method", ""))
                if kind is not None:
                    event = kind.from_json(message["params"])
                    assert isinstance(event, Event)
                    self._events.put_nowait(event)
                    continue
                answer = self._answers.get(message.get("id", 0))
                if answer is not None and not answer.done():
                    if "error" in message:
                        answer.set_exception(wire.decode_error(message["error"]))
                    else:
                        answer.set_result(message["result"])
        except OSError:
            pass  # a reset is a hang-up
        finally:
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(EngineError("the engine hung up before it answered"))
            self._events.put_nowait(None)
