"""A container's probes: `startupProbe`, `readinessProbe`, `livenessProbe` (core/v1 Probe).

HTTP and TCP go to the pod's address, as the kubelet's do; commands run in the pod. The first looks come in quick
succession, up to the probe's period: `initialDelaySeconds` is honoured for liveness alone, because nothing here
is gained by waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from devloop.errors import DevloopError
from devloop.remote.workload.model import Object

FIRST_SECONDS = 0.01
FIRST_EXEC_SECONDS = 0.05
GROWTH = 1.5

Connect = Callable[[int], Awaitable[socket.socket]]
RunCommand = Callable[[list[str], float], Awaitable[int]]


class FailedError(Exception):
    """A look that did not pass; the text says why."""


async def look(probe: Object, container: Object, connect: Connect, run: RunCommand) -> None:
    """One look. Raises FailedError."""
    timeout = float(probe.get("timeoutSeconds") or 1)
    try:
        async with asyncio.timeout(timeout):
            if (action := probe.get("exec")) is not None:
                code = await run(list(action.get("command") or []), timeout)
                if code:
                    raise FailedError(f"its command exited with {code}")
            elif (action := probe.get("httpGet")) is not None:
                await _http(action, await connect(_port(container, action["port"])))
            elif (action := probe.get("tcpSocket") or probe.get("grpc")) is not None:
                (await connect(_port(container, action["port"]))).close()
    except TimeoutError:
        raise FailedError(f"no answer within {timeout:g} s") from None
    except (OSError, DevloopError) as problem:
        raise FailedError(str(problem)) from None


async def until_passed(probe: Object, once: Callable[[], Awaitable[None]], late: Callable[[str], None]) -> None:
    """Return when it has passed `successThreshold` times in a row. `late` is told once, after the first period."""
    period = float(probe.get("periodSeconds") or 10)
    wait = FIRST_EXEC_SECONDS if "exec" in probe else FIRST_SECONDS
    waited, passed, told = 0.0, 0, False
    while True:
        try:
            await once()
            passed += 1
        except FailedError as failure:
            passed = 0
            if waited >= period and not told:
                told = True
                late(str(failure))
        if passed >= int(probe.get("successThreshold") or 1):
            return
        await asyncio.sleep(wait)
        waited += wait
        wait = min(wait * GROWTH, period)


async def until_failed(probe: Object, once: Callable[[], Awaitable[None]]) -> str:
    """Return, with the reason, when it has failed `failureThreshold` times in a row."""
    failures = 0
    while True:
        await asyncio.sleep(float(probe.get("periodSeconds") or 10))
        try:
            await once()
            failures = 0
        except FailedError as failure:
            failures += 1
            if failures >= int(probe.get("failureThreshold") or 3):
                return str(failure)


def _port(container: Object, port: Any) -> int:
    if isinstance(port, int):
        return port
    if str(port).isdecimal():
        return int(port)
    for each in container.get("ports") or []:
        if each.get("name") == port:
            return int(each["containerPort"])
    raise FailedError(f"the container has no port {port!r}")


async def _http(action: Object, sock: socket.socket) -> None:
    """A GET; 200 to 399 is well."""
    context: ssl.SSLContext | None = None
    if str(action.get("scheme") or "HTTP").upper() == "HTTPS":
        # As the kubelet does: a probe does not check certificates.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    try:
        name = "localhost" if context else None
        reader, writer = await asyncio.open_connection(sock=sock, ssl=context, server_hostname=name)
    except BaseException:
        sock.close()
        raise
    try:
        headers = {"Host": str(action.get("host") or "localhost"), "User-Agent": "kube-probe/devloop", "Accept": "*/*"}
        headers |= {each["name"]: each["value"] for each in action.get("httpHeaders") or []}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        path = str(action.get("path") or "/")
        path = path if path.startswith("/") else f"/{path}"
        writer.write(f"GET {path} HTTP/1.1\r\n{head}Connection: close\r\n\r\n".encode())
        words = (await reader.readline()).split(None, 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
            raise FailedError("it gave no answer in HTTP")
        if not 200 <= int(words[1]) < 400:
            raise FailedError(f"GET {path} answered {int(words[1])}")
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
