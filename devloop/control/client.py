"""The other end: what the TUI and the commands talk through."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from devloop.agent.tasks import background
from devloop.control import wire
from devloop.errors import EngineError
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


def _not_running(path: Path) -> EngineError:
    return EngineError(
        "no engine runs for this project", where=str(path.parent.parent), hint="start it with `devloop up`"
    )


def call(path: Path, method: str, **params: Any) -> dict[str, Any]:
    """One request, blocking, without asyncio. Raises EngineError if no engine listens, or what it answers."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            raise _not_running(path) from None
        connection.sendall(wire.encode({"id": 1, "method": method, "params": params}))
        with connection.makefile("rb") as lines:
            for line in lines:
                message = wire.decode(line)
                if message.get("id") == 1:
                    if "error" in message:
                        raise wire.decode_error(message["error"])
                    result = message["result"]
                    assert isinstance(result, dict)
                    return result
    raise EngineError("the engine hung up before it answered", where=str(path), hint="see `devloop status`")


class ControlClient:
    """One connection: calls, and after `subscribe` the events.

    Use `async with await ControlClient.connect(path) as client`.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._task = background(self._read(), name="control-client")

    @classmethod
    async def connect(cls, path: Path) -> ControlClient:
        """Connect. Raises EngineError if no engine listens there."""
        try:
            reader, writer = await asyncio.open_unix_connection(path, limit=wire.LIMIT)
        except OSError:
            raise _not_running(path) from None
        return cls(reader, writer)

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
        """One request. Raises what the engine answers, or EngineError if it hangs up."""
        if self._task.done():
            raise EngineError("the engine is gone")
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        self._writer.write(wire.encode({"id": number, "method": method, "params": params}))
        try:
            return await answer
        finally:
            self._answers.pop(number, None)

    async def subscribe(self, logs: Sequence[str] | str | None = None, tail: int = 0) -> None:
        """Ask for events; `events` yields a Snapshot first. `logs` is '*', names or None for no logs."""
        await self.call("subscribe", logs=logs, tail=tail)

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
