"""Probes, against sockets of this test."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from devloop.sandbox import probes
from devloop.sandbox.probes import FailedError, look, until_failed, until_passed

CONTAINER: Any = {"name": "main", "ports": [{"name": "http", "containerPort": 8000}]}


def answering(text: bytes, heard: list[bytes]) -> Callable[[int], Awaitable[socket.socket]]:
    """What gives connections to a server that says this."""

    async def connect(port: int) -> socket.socket:
        assert port == 8000
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=theirs)

        async def answer() -> None:
            heard.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(text)
            writer.close()
            await writer.wait_closed()

        tasks.append(asyncio.create_task(answer()))
        return ours

    tasks: list[asyncio.Task[None]] = []
    return connect


async def refuse(port: int) -> socket.socket:
    raise ConnectionRefusedError(111, "Connection refused")


async def no_command(argv: list[str], timeout: float) -> int:
    raise AssertionError


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", ""),
        (b"HTTP/1.1 302 Found\r\n\r\n", ""),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "GET /up answered 404"),
        (b"SSH-2.0-x\r\n", "no answer in HTTP"),
        (b"", "no answer in HTTP"),
    ],
)
async def test_http(answer: bytes, problem: str) -> None:
    heard: list[bytes] = []
    probe = {"httpGet": {"path": "/up", "port": "http", "httpHeaders": [{"name": "Host", "value": "shop"}]}}
    if problem:
        with pytest.raises(FailedError, match=problem):
            await look(probe, CONTAINER, answering(answer, heard), no_command)
    else:
        await look(probe, CONTAINER, answering(answer, heard), no_command)
    assert heard[0].startswith(b"GET /up HTTP/1.1\r\nHost: shop\r\n")


async def test_tcp_and_commands() -> None:
    with pytest.raises(FailedError, match="refused"):
        await look({"tcpSocket": {"port": 8000}}, CONTAINER, refuse, no_command)
    with pytest.raises(FailedError, match="no port 'nope'"):
        await look({"tcpSocket": {"port": "nope"}}, CONTAINER, refuse, no_command)
    ran: list[Any] = []

    async def run(argv: list[str], timeout: float) -> int:
        ran.append((argv, timeout))
        return len(ran) - 1

    probe = {"exec": {"command": ["true"]}, "timeoutSeconds": 3}
    await look(probe, CONTAINER, refuse, run)
    with pytest.raises(FailedError, match="exited with 1"):
        await look(probe, CONTAINER, refuse, run)
    assert ran[0] == (["true"], 3.0)


async def test_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    results: list[bool] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    async def once() -> None:
        if not results.pop(0):
            raise FailedError("not yet")

    monkeypatch.setattr(probes.asyncio, "sleep", pause)
    late: list[str] = []
    results[:] = [False, True, False, True, True]
    await until_passed({"successThreshold": 2, "periodSeconds": 1}, once, late.append)
    assert results == []
    assert pauses[0] == probes.FIRST_SECONDS  # quick at first, then slower
    assert pauses == sorted(pauses)
    assert late == []
    results[:] = [False] * 30 + [True]
    await until_passed({"periodSeconds": 1}, once, late.append)
    assert late == ["not yet"]  # told once
    assert pauses[-1] == 1.0
    pauses.clear()
    results[:] = [False, False, True, False, False, False]
    assert await until_failed({"periodSeconds": 7}, once) == "not yet"
    assert results == []
    assert pauses == [7.0] * 6
