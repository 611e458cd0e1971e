"""Is it ready, and is it alive? The checks, and their rhythm."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable

import h11

from devloop.config.model import MS, SECOND, ExecCheck, HttpCheck, LogCheck, Probe, TcpCheck

FIRST = 2 * MS
"""From the start to the first look, in nanoseconds; the pauses then grow up to the probe's period, so that a
service that starts quickly is seen quickly."""
GROWTH = 1.3
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
FIRST_EXEC = 20 * MS
"""The same for commands, which cost a process each."""


class CheckFailed(Exception):  # noqa: N818 - an answer, not a fault
    """Why a check did not pass, in words for a person."""


Connect = Callable[[int], Awaitable[socket.socket]]
"""Connects to what listens on a port of the service's own localhost. Raises OSError."""
RunCommand = Callable[[ExecCheck, float], Awaitable[int]]
"""Runs a command as the service would; returns its exit code. Has to end it after so many seconds."""


async def check_once(
    check: HttpCheck | TcpCheck | ExecCheck, timeout: float, run: RunCommand, connect: Connect | None = None
) -> None:
    """Pass, or raise CheckFailed. `timeout` in seconds; without `connect` the service's localhost is the host's."""
    try:
        async with asyncio.timeout(timeout):
            match check:
                case HttpCheck():
                    await _http(check, connect)
                case TcpCheck():
                    _, writer = await _connect(check.host, check.port, connect)
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
                case ExecCheck():
                    code = await run(check, timeout)
                    if code != 0:
                        raise CheckFailed(f"`{check.command.text}` exited with {code}")
    except TimeoutError:
        raise CheckFailed(f"no answer within {timeout:g} s") from None
    except ConnectionRefusedError:
        raise CheckFailed(f"nothing listens on {_address(check)}") from None
    except OSError as error:
        raise CheckFailed(f"{_address(check)}: {error.strerror or error}") from None


def _address(check: HttpCheck | TcpCheck | ExecCheck) -> str:
    return check.command.text if isinstance(check, ExecCheck) else f"{check.host}:{check.port}"


async def _connect(host: str, port: int, connect: Connect | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """`localhost` is both loopback addresses, without asking a resolver (RFC 6761, 6.3)."""
    if connect is not None and host in _LOOPBACK:
        return await asyncio.open_connection(sock=await connect(port))
    if host != "localhost":
        return await asyncio.open_connection(host, port)
    try:
        return await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        try:
            return await asyncio.open_connection("::1", port)
        except OSError:
            raise ConnectionRefusedError from None


async def _http(check: HttpCheck, connect: Connect | None) -> None:
    reader, writer = await _connect(check.host, check.port, connect)
    try:
        connection = h11.Connection(h11.CLIENT)
        host = f"{check.host}:{check.port}"
        headers = [
            ("Host", host),
            ("User-Agent", "devloop-probe"),
            ("Connection", "close"),
            ("Accept", "*/*"),
        ]
        writer.write(connection.send(h11.Request(method="GET", target=check.path, headers=headers)) or b"")
        while (event := connection.next_event()) is h11.NEED_DATA or isinstance(event, h11.InformationalResponse):
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(65536))
        if not isinstance(event, h11.Response):
            raise CheckFailed(f"{host} hung up without an answer")
        if not 200 <= event.status_code < 400:
            raise CheckFailed(f"GET {check.path} answered {event.status_code}")
    except h11.RemoteProtocolError as error:
        raise CheckFailed(f"{host} does not speak HTTP: {error}") from None
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def until_ready(
    probe: Probe, run: RunCommand, late: Callable[[str], None], connect: Connect | None = None
) -> None:
    """Return when the check passes for the first time. `late` is told once, when the grace is over."""
    assert not isinstance(probe.check, LogCheck)
    began = time.monotonic_ns()
    pause = FIRST_EXEC if isinstance(probe.check, ExecCheck) else FIRST
    told = False
    while True:
        await asyncio.sleep(pause / SECOND)
        try:
            await check_once(probe.check, probe.timeout / SECOND, run, connect)
            return
        except CheckFailed as failure:
            if not told and time.monotonic_ns() - began >= probe.grace:
                told = True
                late(str(failure))
        pause = min(int(pause * GROWTH), probe.period)


async def until_dead(probe: Probe, run: RunCommand, connect: Connect | None = None) -> str:
    """Return, with the reason, when the check has failed `failures` times in a row."""
    assert not isinstance(probe.check, LogCheck)
    began = time.monotonic_ns()
    failures = 0
    while True:
        await asyncio.sleep(probe.period / SECOND)
        try:
            await check_once(probe.check, probe.timeout / SECOND, run, connect)
            failures = 0
        except CheckFailed as failure:
            if time.monotonic_ns() - began >= probe.grace:
                failures += 1
            if failures >= probe.failures:
                return str(failure)
