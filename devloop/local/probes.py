"""Is it ready, and is it alive? The checks, and their rhythm."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from devloop.agent.addresses import host_port
from devloop.config.model import MS, SECOND, ExecCheck, GrpcCheck, HttpCheck, LogCheck, Probe, TcpCheck, Tls
from devloop.local.probe_http import CheckFailed, Streams, context, get

if TYPE_CHECKING:
    import ssl

__all__ = ["CheckFailed", "Connect", "Look", "RunCommand", "check_once", "until_dead", "until_ready"]

FIRST = 2 * MS
"""From the start to the first look, in nanoseconds; the pauses then grow up to the probe's period, so that a
service that starts quickly is seen quickly."""
GROWTH = 1.3
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
FIRST_EXEC = 20 * MS
"""The same for commands, which cost a process each."""
QUIET = 500 * MS
"""So long nothing is said of a check that does not pass yet: most services are ready by then."""

Look = HttpCheck | GrpcCheck | TcpCheck | ExecCheck
"""What is asked again and again; a line of the log is waited for instead."""


Connect = Callable[[int], Awaitable[socket.socket]]
"""Connects to what listens on a port of the service's own localhost. Raises OSError."""
RunCommand = Callable[[ExecCheck, float], Awaitable[int]]
"""Runs a command as the service would; returns its exit code. Has to end it after so many seconds."""


async def check_once(check: Look, timeout: float, run: RunCommand, connect: Connect | None = None) -> None:
    """Pass, or raise CheckFailed. `timeout` in seconds; without `connect` the service's localhost is the host's."""

    async def reach(host: str, port: int, tls: Tls | None) -> Streams:
        return await _connect(host, port, connect, context(tls) if tls else None, host)

    try:
        async with asyncio.timeout(timeout):
            match check:
                case HttpCheck():
                    await get(check, reach)
                case GrpcCheck():
                    from devloop.local import probe_grpc

                    tls = context(check.tls, protocols=("h2",)) if check.tls else None
                    await probe_grpc.ask(check, await _connect(check.host, check.port, connect, tls, check.host))
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
        raise CheckFailed(f"{_address(check)}: {_words(error)}") from None


def _address(check: Look) -> str:
    return check.command.text if isinstance(check, ExecCheck) else host_port(check.host, check.port)


def _words(error: OSError) -> str:
    """What went wrong; for a certificate what is wrong with it (ssl.SSLCertVerificationError.verify_message)."""
    if verify := getattr(error, "verify_message", ""):
        return f"its certificate is not accepted: {verify}"
    if reason := getattr(error, "reason", ""):  # ssl.SSLError
        return f"it does not speak TLS as expected: {str(reason).replace('_', ' ').lower()}"
    return error.strerror or str(error) or "it hung up"


async def _connect(
    host: str, port: int, connect: Connect | None, tls: ssl.SSLContext | None = None, name: str = ""
) -> Streams:
    """`localhost` is both loopback addresses, without asking a resolver (RFC 6761, 6.3)."""
    server = name if tls else None
    if connect is not None and host in _LOOPBACK:
        return await asyncio.open_connection(sock=await connect(port), ssl=tls, server_hostname=server)
    if host != "localhost":
        return await asyncio.open_connection(host, port, ssl=tls, server_hostname=server)
    try:
        return await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=server)
    except ConnectionRefusedError:
        try:
            return await asyncio.open_connection("::1", port, ssl=tls, server_hostname=server)
        except OSError:
            raise ConnectionRefusedError from None


async def until_ready(
    probe: Probe,
    run: RunCommand,
    late: Callable[[str], None],
    connect: Connect | None = None,
    waiting: Callable[[str], None] = lambda _: None,
    held: Callable[[], bool] = lambda: False,
) -> None:
    """Return when the check passes for the first time. While it is `held` nothing is asked; the grace begins anew then.

    `waiting` is told why it does not pass, after a moment and whenever that changes; `late` once, when the grace is
    over.
    """
    assert not isinstance(probe.check, LogCheck)
    began = time.monotonic_ns()
    pause = FIRST_EXEC if isinstance(probe.check, ExecCheck) else FIRST
    told, said = False, ""
    while True:
        await asyncio.sleep(pause / SECOND)
        if held():  # what is asked might run into the very breakpoint
            began, pause = time.monotonic_ns(), FIRST_EXEC
            continue
        try:
            await check_once(probe.check, probe.timeout / SECOND, run, connect)
            return
        except CheckFailed as failure:
            if held():
                continue
            waited = time.monotonic_ns() - began
            if not told and waited >= probe.grace:
                told, said = True, str(failure)
                late(said)
            elif waited >= QUIET and str(failure) != said:
                said = str(failure)
                waiting(said)
        pause = min(int(pause * GROWTH), probe.period)


async def until_dead(
    probe: Probe, run: RunCommand, connect: Connect | None = None, held: Callable[[], bool] = lambda: False
) -> str:
    """Return, with the reason, when the check has failed `failures` times in a row; not asked while it is `held`."""
    assert not isinstance(probe.check, LogCheck)
    began = time.monotonic_ns()
    failures = 0
    while True:
        await asyncio.sleep(probe.period / SECOND)
        if held():
            began, failures = time.monotonic_ns(), 0
            continue
        try:
            await check_once(probe.check, probe.timeout / SECOND, run, connect)
            failures = 0
        except CheckFailed as failure:
            if held():
                began, failures = time.monotonic_ns(), 0
            elif time.monotonic_ns() - began >= probe.grace:
                failures += 1
            if failures >= probe.failures:
                return str(failure)
