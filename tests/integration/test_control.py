"""The control socket: who may use it, and what a slow or broken client costs."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import socket
import stat
import warnings
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from devloop.control import client, server, wire
from devloop.control.client import ControlClient
from devloop.control.server import LOG_LINES_PER_FLUSH, ControlServer
from devloop.errors import DevloopError, EngineError, ServiceError, UsageError
from devloop.local.logs import LogBook
from devloop.local.terminal import KEPT, ServiceTerminal, Wiring
from devloop.protocol import (
    AttachmentStatus,
    LogBatch,
    RequestBatch,
    RequestRecord,
    ServiceStatus,
    Snapshot,
    State,
    TerminalOutput,
)


class Backend:
    """One service, and whatever is logged."""

    def __init__(self) -> None:
        self.logs = LogBook(None, lambda _: self.server.logs_arrived())
        self.server: ControlServer
        self.terminals: dict[str, ServiceTerminal] = {}

    def terminal(self, service: str) -> ServiceTerminal:
        return self.terminals.setdefault(service, ServiceTerminal(service, self.server.terminal_arrived))

    def snapshot(self) -> Snapshot:
        return Snapshot("p", "/p", "/p/devloop.toml", 1, "0", 1, (status(0),))

    async def call(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        if method == "fail":
            raise ServiceError("it failed", where="here", hint="do this")
        if method == "fault":
            raise KeyError("nobody has thought of this")
        return {"method": method, **params}


def status(restarts: int) -> ServiceStatus:
    return ServiceStatus("api", "local", State.READY, "", 1, restarts=restarts)


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[Backend, Path]]:
    backend = Backend()
    path = folder / "control.sock"
    backend.server = ControlServer(path, backend)
    await backend.server.start()
    yield backend, path
    await backend.server.close()
    assert not path.exists()


async def test_the_socket_is_the_users_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_calls_and_errors_cross_it_whole(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, path):
        async with await client.ControlClient.connect(path) as connection:
            assert await connection.call("echo", a=[1, "é"]) == {"method": "echo", "a": [1, "é"]}
            with pytest.raises(ServiceError) as error:
                await connection.call("fail")
            assert (error.value.what, error.value.where, error.value.hint) == ("it failed", "here", "do this")
        answer = await asyncio.to_thread(client.call, path, "echo", b=2)
        assert answer == {"method": "echo", "b": 2}


async def test_no_engine_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no engine runs"):
        await client.ControlClient.connect(tmp_path / "control.sock")
    with pytest.raises(EngineError, match="no engine runs"):
        client.call(tmp_path / "control.sock", "status")


async def test_garbage_is_answered_and_does_not_end_the_server(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, path):
        reader, writer = await asyncio.open_unix_connection(path)
        for line in (
            b"garbage\n",
            b"[]\n",
            b'{"id": 7}\n',
            b'{"id": 8, "method": "subscribe", "params": {"logs": 3}}\n',
            b'{"id": 9, "method": "subscribe", "params": {"logs": [["api"], {}]}}\n',
            b'{"id": 9, "method": "subscribe", "params": {"logs": "*", "tail": -1}}\n',
            b'{"id": 9, "method": "terminal_type", "params": {"service": "api", "data": "\\ud800\xc3\xa9"}}\n',
            b"[" * 200_000 + b"\n",
            b'{"id": ' + b"9" * 5000 + b"}\n",
        ):
            writer.write(line)
            answer = json.loads(await reader.readline())
            assert answer["error"]["code"] == -32602
        writer.close()
        async with await client.ControlClient.connect(path) as connection:
            assert await connection.call("echo") == {"method": "echo"}


async def test_a_fault_in_one_request_is_told_and_the_next_is_answered(tmp_path: Path) -> None:
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    async with serving(tmp_path) as (_, path), await client.ControlClient.connect(path) as connection:
        await connection.subscribe()
        with pytest.raises(DevloopError, match="a fault in devloop itself: KeyError"):
            await connection.call("fault")
        assert [type(each["exception"]) for each in faults] == [KeyError]
        assert await connection.call("echo") == {"method": "echo"}


async def test_an_engine_that_hangs_up_ends_calls_and_events(tmp_path: Path) -> None:
    async with serving(tmp_path) as (backend, path):
        connection = await client.ControlClient.connect(path)
        await connection.subscribe()
        await backend.server.close()
        assert [type(event).__name__ async for event in connection.events()] == ["Snapshot"]
        with pytest.raises(DevloopError):
            await connection.call("echo")
        await connection.close()


async def flooded(path: Path, backend: Backend) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that does not read, with more to read than fits into a socket's buffers."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b'{"id": 1, "method": "subscribe", "params": {"logs": "*"}}\n')
    await reader.readline()
    reader._transport.pause_reading()  # type: ignore[attr-defined]
    (subscriber,) = backend.server._subscribers
    while not subscriber.writer.transport.get_write_buffer_size():
        backend.logs.add("api", "out", [b"x" * 1000] * LOG_LINES_PER_FLUSH)
        await asyncio.sleep(0)
    return reader, writer


async def test_a_slow_client_gets_the_last_word_too(tmp_path: Path) -> None:
    async with serving(tmp_path) as (backend, path):
        reader, writer = await flooded(path, backend)
        backend.server.publish(status(7))
        closing = asyncio.create_task(backend.server.close())
        await asyncio.sleep(0)
        reader._transport.resume_reading()  # type: ignore[attr-defined]
        told = (await reader.read()).splitlines()
        assert json.loads(told[-1])["params"]["restarts"] == 7
        await closing
        writer.close()


async def test_a_client_that_never_reads_does_not_keep_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "GOODBYE_SECONDS", 0.05)
    async with serving(tmp_path) as (backend, path):
        _, writer = await flooded(path, backend)
        (subscriber,) = backend.server._subscribers
        await backend.server.close()
        assert subscriber.writer.transport.get_extra_info("socket").fileno() == -1, "it is closed, whatever is unsent"
        writer.close()


async def test_a_subscriber_is_told_the_newest_state_and_not_each_step(tmp_path: Path) -> None:
    async with serving(tmp_path) as (backend, path), await client.ControlClient.connect(path) as connection:
        await connection.subscribe()
        for number in range(1, 10_001):
            backend.server.publish(status(number))
        seen: list[int] = []
        async for event in connection.events():
            if isinstance(event, ServiceStatus):
                seen.append(event.restarts)
                if event.restarts == 10_000:
                    break
        assert len(seen) < 10


async def test_a_client_that_never_reads_costs_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as (backend, path):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b'{"id": 1, "method": "subscribe", "params": {"logs": "*"}}\n')
        await reader.readline()
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        (subscriber,) = backend.server._subscribers
        for _ in range(200):
            backend.logs.add("api", "out", [b"x" * 1000] * 1000)
            backend.server.publish(status(1))
            await asyncio.sleep(0)
        buffered = subscriber.writer.transport.get_write_buffer_size()
        assert buffered < 4 * LOG_LINES_PER_FLUSH * 1100, "200 MB were logged"
        writer.close()


async def test_lines_that_come_too_quickly_are_counted(tmp_path: Path) -> None:
    async with serving(tmp_path) as (backend, path), await client.ControlClient.connect(path) as connection:
        await connection.subscribe("*")
        for number in range(100):
            backend.logs.add("api", "out", [f"{number}-{i}".encode() for i in range(100)])
        got = dropped = 0
        async for event in connection.events():
            if isinstance(event, LogBatch):
                got += len(event.lines)
                dropped += event.dropped
                if got + dropped == 10_000:
                    assert event.lines[-1].text == "99-99"
                    break
        assert dropped > 0


def request(number: int) -> RequestRecord:
    return RequestRecord(
        "api", 1_000 + number, "GET", f"/{number}", 200, 40, "local", "HTTP/2", failed_over=number == 0
    )


async def test_requests_come_to_each_subscriber_in_order_and_whole(tmp_path: Path) -> None:
    async with serving(tmp_path) as (backend, path), await client.ControlClient.connect(path) as connection:
        await connection.subscribe()
        backend.server.publish(RequestBatch((request(0), request(1))))
        backend.server.publish(RequestBatch((request(2),)))
        seen: list[RequestRecord] = []
        async for event in connection.events():
            if isinstance(event, RequestBatch):
                seen += event.requests
                if len(seen) == 3:
                    break
        assert seen == [request(0), request(1), request(2)]


async def test_a_flood_of_requests_costs_a_slow_subscriber_the_oldest(tmp_path: Path) -> None:
    async with serving(tmp_path) as (backend, path), await client.ControlClient.connect(path) as connection:
        await connection.subscribe()
        for start in range(0, 50_000, 500):
            backend.server.publish(RequestBatch(tuple(request(start + n) for n in range(500))))
        seen: list[RequestRecord] = []
        async for event in connection.events():
            if isinstance(event, RequestBatch):
                seen += event.requests
                if seen[-1] == request(49_999):
                    break
        assert len(seen) <= 2_000


async def test_attachments_cross_the_socket_in_a_status(tmp_path: Path) -> None:
    held = AttachmentStatus("intercept", "api", "failed open", 5, ("all requests",), "no", ("a note",), 1.5, 2.0)
    async with serving(tmp_path) as (backend, path), await client.ControlClient.connect(path) as connection:
        await connection.subscribe()
        backend.server.publish(replace(status(1), attachments=(held,)))
        async for event in connection.events():
            if isinstance(event, ServiceStatus):
                assert event.attachments == (held,)
                break


async def test_a_client_that_does_not_read_its_terminal_costs_a_bounded_buffer_and_is_told(tmp_path: Path) -> None:
    async with serving(tmp_path) as (backend, path), await ControlClient.connect(path) as fast:
        _, slow = await asyncio.open_unix_connection(path)
        slow.transport.pause_reading()  # type: ignore[attr-defined]
        slow.write(
            wire.encode({"id": 1, "method": "terminal_open", "params": {"service": "a", "columns": 9, "rows": 9}})
        )
        await slow.drain()
        await fast.call("terminal_open", service="a", columns=80, rows=24)
        terminal = backend.terminal("a")
        events = fast.events()
        seen = 0
        for number in range(64):
            data = b"%07d\n" % number * 8192
            terminal.feed("out", data)
            while seen < len(data) * (number + 1):
                event = await anext(events)
                assert isinstance(event, TerminalOutput)
                assert not event.missed
                seen += len(base64.b64decode(event.data))
        data, end, missed = terminal.output.since(0, 10**9)
        assert KEPT <= len(data) < KEPT + 65536 + 1
        assert (end, missed) == (seen, seen - len(data))
        slow.transport.abort()


async def test_what_a_client_was_too_slow_for_is_counted(tmp_path: Path) -> None:
    async with serving(tmp_path) as (backend, path), await ControlClient.connect(path) as client:
        terminal = backend.terminal("a")
        terminal.feed("out", b"before\n" * KEPT)
        await client.call("terminal_open", service="a", columns=80, rows=24)
        events = client.events()
        first = await anext(events)
        assert isinstance(first, TerminalOutput)
        assert first.missed == 0, "what was printed before it came is not missed"
        terminal.feed("out", b"x" * KEPT)
        terminal.feed("out", b"y" * KEPT)  # nothing is sent in between: the loop has not run
        missed = 0
        async for event in events:
            assert isinstance(event, TerminalOutput)
            missed += event.missed
            if base64.b64decode(event.data).endswith(b"y"):
                break
        assert missed > 0


async def test_who_hangs_up_has_no_terminal_open_any_more(tmp_path: Path) -> None:
    async with serving(tmp_path) as (backend, path):
        terminal = backend.terminal("a")
        left = asyncio.Event()
        terminal.leave = lambda client: (ServiceTerminal.leave(terminal, client), left.set())[0]  # type: ignore[method-assign]
        async with await ControlClient.connect(path) as client:
            await client.call("terminal_open", service="a", columns=100, rows=50)
            await client.call("terminal_resize", service="a", columns=90, rows=40)
        await left.wait()


async def test_nonsense_about_terminals_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, path), await ControlClient.connect(path) as client:
        for method, params in (
            ("terminal_open", {"service": "a"}),
            ("terminal_open", {"columns": 1, "rows": 1}),
            ("terminal_type", {"service": "a", "data": "*"}),
            ("terminal_type", {"service": "a", "data": "QUFB" * 65536}),
            ("terminal_nothing", {"service": "a"}),
        ):
            with pytest.raises(UsageError):
                await client.call(method, **params)
        with pytest.raises(ServiceError, match="does not run"):
            await client.call("terminal_type", service="a", data="QQ==")


async def test_old_output_asks_the_new_clients_terminal_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as (backend, path), await ControlClient.connect(path) as client:
        terminal = backend.terminal("a")
        terminal.feed("out", b"a\x1b[6nb\x1b[c\x1b[31mc")
        await client.call("terminal_open", service="a", columns=80, rows=24)
        events = client.events()
        first = await anext(events)
        assert isinstance(first, TerminalOutput)
        assert base64.b64decode(first.data) == b"ab\x1b[31mc"
        terminal.feed("out", b"\x1b[6n")
        second = await anext(events)
        assert isinstance(second, TerminalOutput)
        assert base64.b64decode(second.data) == b"\x1b[6n"


async def test_a_clients_terminal_learns_of_another_process_between_its_bytes_and_those_before(tmp_path: Path) -> None:
    async with serving(tmp_path) as (backend, path), await ControlClient.connect(path) as client:
        terminal, book = backend.terminal("a"), backend.logs
        first = Wiring(terminal, book, ("out", "err"), tty=False)
        terminal.feed("out", b"older")
        await client.call("terminal_open", service="a", columns=80, rows=24)
        terminal.feed("out", b", old")
        first.close()
        second = Wiring(terminal, book, ("out", "err"), tty=False)
        terminal.feed("out", b"new")
        second.close()
        third = Wiring(terminal, book, ("out", "err"), tty=False)
        seen: list[tuple[bytes, bool]] = []
        async for event in client.events():
            assert isinstance(event, TerminalOutput)
            seen.append((base64.b64decode(event.data), event.starts))
            if event.starts:
                break
        assert (b"".join(data for data, _ in seen), seen[-1]) == (b"older, oldnew", (b"", True))
        third.close()
        fourth = Wiring(terminal, book, ("out", "err"), tty=False)
        terminal.feed("out", b"newest")
        event = await anext(client.events())
        assert isinstance(event, TerminalOutput)
        assert (base64.b64decode(event.data), event.starts) == (b"newest", True)
        fourth.close()


@pytest.mark.parametrize("steps", range(6))
def test_who_connects_as_the_engine_ends_is_hung_up_on(tmp_path: Path, steps: int) -> None:
    async def run() -> None:
        backend = Backend()
        backend.server = ControlServer(tmp_path / "s", backend)
        await backend.server.start()
        late.connect(str(tmp_path / "s"))
        for _ in range(steps):  # of the event loop: each finds the connection one step further
            await asyncio.sleep(0)
        await backend.server.close()

    with socket.socket(socket.AF_UNIX) as late, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        asyncio.run(run())
        gc.collect()
    assert not said, [str(each.message) for each in said]
