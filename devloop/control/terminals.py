"""The terminals that one connection of the control socket has open.

A slow client costs nothing: output is read from the service's own bounded buffer when the client is ready for it, and
what it was too slow for is counted.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from devloop.errors import UsageError
from devloop.protocol import TerminalOutput

PER_FLUSH = 64 * 1024
"""Bytes of one service that a client is sent at once."""
_QUESTION = re.compile(rb"\x1b\[[0-9;?>=]*[cn]")
"""A terminal answers these (ECMA-48, DSR; DEC, DA), and what it answers is typed."""
LONGEST = 64 * 1024
"""Bytes that may be typed in one request."""


class Output(Protocol):
    """Where output is read from; `devloop.local.terminal.Output` is the real one."""

    @property
    def end(self) -> int:
        """The position after the newest byte."""

    def since(self, position: int, limit: int) -> tuple[bytes, int, int]:
        """At most `limit` bytes from a position on, the position after them, and how many before them are lost."""


class Terminal(Protocol):
    """One service's; `devloop.local.terminal.ServiceTerminal` is the real one."""

    @property
    def tty(self) -> bool:
        """Whether it is a terminal; else there are pipes."""

    @property
    def output(self) -> Output:
        """What its processes have printed."""

    @property
    def runs(self) -> int:
        """How many processes it has had."""

    @property
    def began(self) -> int:
        """Where in `output` the newest of them begins."""

    async def type(self, data: bytes) -> None:
        """Give it input; waits while too much waits already. Raises ServiceError if nothing could read it."""

    def interrupt(self) -> None:
        """SIGINT to its process group. Raises ServiceError if it does not run."""

    def resize(self, client: object | None, columns: int, rows: int) -> None:
        """A client is so large; None: one that only looks on."""

    def leave(self, client: object) -> None:
        """A client is gone."""


class Terminals:
    """Those that one client has open. `find` raises UsageError for what is no service."""

    def __init__(self, find: Callable[[str], Terminal], wake: Callable[[], None]) -> None:
        self._find = find
        self._wake = wake
        self._positions: dict[str, int] = {}
        self._past: dict[str, int] = {}
        """Service → the position up to which output is older than this client."""
        self._runs: dict[str, int] = {}
        """Service → how many of its processes this client knows of."""
        self._open: dict[str, Terminal] = {}

    def shows(self, service: str) -> bool:
        """Whether this client has it open."""
        return service in self._open

    async def answer(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """One of the `terminal_…` methods. Raises DevloopError."""
        service = params.get("service")
        if not isinstance(service, str):
            raise UsageError("a terminal is a service's: `service` is its name", where="control socket")
        terminal = self._find(service)
        match method:
            case "terminal_open":
                self._open[service] = terminal
                tail = params.get("tail")
                self._positions[service] = max(0, terminal.output.end - max(0, tail)) if isinstance(tail, int) else 0
                self._past[service] = terminal.output.end
                self._runs[service] = terminal.runs
                terminal.resize(self, *_size(params))
                self._wake()
                return {"tty": terminal.tty}
            case "terminal_type":
                await terminal.type(_data(params))
            case "terminal_interrupt":
                terminal.interrupt()
            case "terminal_resize":
                terminal.resize(self if service in self._open else None, *_size(params))
            case "terminal_close":
                self._close(service)
            case _:
                raise UsageError(f"there is no method {method!r}", where="control socket")
        return {}

    def pending(self) -> Iterator[TerminalOutput]:
        """What there is to send; wakes the writer again if that was not all."""
        for service, terminal in self._open.items():
            position, limit = self._positions[service], PER_FLUSH
            starts = False
            if terminal.runs != self._runs[service]:
                before = terminal.began - position
                if before > 0:  # what the one before has printed comes first
                    limit = min(limit, before)
                else:
                    starts = True
                    self._runs[service] = terminal.runs
            data, self._positions[service], missed = terminal.output.since(position, limit)
            if len(data) == limit:
                self._wake()
            if position < self._past[service]:
                data = _QUESTION.sub(b"", data)  # the program has its answers already
            if data or starts:
                # Of what was printed before it came, a client does not count what it did not see.
                yield TerminalOutput(service, base64.b64encode(data).decode(), missed if position else 0, starts)

    def close(self) -> None:
        """The client has hung up."""
        for service in tuple(self._open):
            self._close(service)

    def _close(self, service: str) -> None:
        terminal = self._open.pop(service, None)
        self._positions.pop(service, None)
        self._past.pop(service, None)
        self._runs.pop(service, None)
        if terminal is not None:
            terminal.leave(self)


def _size(params: Mapping[str, Any]) -> tuple[int, int]:
    columns, rows = params.get("columns"), params.get("rows")
    if not isinstance(columns, int) or not isinstance(rows, int):
        raise UsageError("a terminal has a number of columns and one of rows", where="control socket")
    return columns, rows


def _data(params: Mapping[str, Any]) -> bytes:
    try:
        data = base64.b64decode(params.get("data", ""), validate=True)
    except (TypeError, ValueError):  # binascii.Error is one
        raise UsageError("`data` is base64", where="control socket") from None
    if len(data) > LONGEST:
        raise UsageError(f"`data` is at most {LONGEST} bytes", where="control socket")
    return data
