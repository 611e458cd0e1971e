"""The host's own resolvers, asked for what the cluster doesn't know: UDP first, TCP for what is truncated."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

_TRY = 2.0
"""Seconds until the next resolver is asked (resolv.conf(5) waits 5, but a pod's client gives up at 5)."""
_ROUNDS = 2
_RESOLV_CONF = Path("/etc/resolv.conf")


class Upstream(Protocol):
    """Answers whole messages."""

    async def ask(self, query: bytes) -> bytes:
        """The answer to a query in wire format, with its id. Raises OSError, TimeoutError."""


class HostResolvers:
    """The name servers of the host's resolv.conf(5), which is read again when it has changed."""

    def __init__(self, file: Path = _RESOLV_CONF, servers: Sequence[tuple[str, int]] | None = None) -> None:
        """`servers` are addresses and ports to use instead of the file's."""
        self._file = file
        self._fixed = None if servers is None else list(servers)
        self._stamp: tuple[int, int] | None = None
        self._servers: list[tuple[str, int]] = []

    @property
    def servers(self) -> list[tuple[str, int]]:
        """(address, port), in the order in which they are asked."""
        if self._fixed is not None:
            return self._fixed
        try:
            status = self._file.stat()
        except OSError:
            return [("127.0.0.1", 53)]  # resolv.conf(5): the local machine
        stamp = (status.st_mtime_ns, status.st_ino)
        if stamp != self._stamp:
            self._stamp = stamp
            with contextlib.suppress(OSError):
                self._servers = parse_resolv_conf(self._file.read_text(errors="replace"))
        return self._servers or [("127.0.0.1", 53)]

    async def ask(self, query: bytes) -> bytes:
        """Part of `Upstream`. A resolver that fails (SERVFAIL, REFUSED) is passed over if there is another."""
        error: Exception = TimeoutError("the host's resolvers don't answer")
        answer = b""
        for _ in range(_ROUNDS):
            for server in self.servers:
                try:
                    async with asyncio.timeout(_TRY):
                        answer = await _exchange(query, server)
                except OSError as failure:  # TimeoutError is one
                    error = failure
                    continue
                if answer[3] & 15 not in (2, 5):
                    return answer
            if answer:
                return answer
        raise error


def parse_resolv_conf(text: str) -> list[tuple[str, int]]:
    """The name servers of a resolv.conf(5)."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            found.append((words[1], 53))
    return found


async def _exchange(query: bytes, server: tuple[str, int]) -> bytes:
    """One question to one server."""
    answer = await _exchange_udp(query, server)
    if answer[2] & 2:  # TC: truncated
        answer = await _exchange_tcp(query, server)
    return answer


async def _exchange_udp(query: bytes, server: tuple[str, int]) -> bytes:
    # An id and a port of its own for each question make a forged answer a matter of luck (RFC 5452).
    ident = os.urandom(2)
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        address, _, scope = server[0].partition("%")
        if scope:
            sock.connect((address, server[1], 0, _scope(scope)))
        else:
            sock.connect((address, server[1]))
        await loop.sock_sendall(sock, ident + query[2:])
        while True:
            answer = await loop.sock_recv(sock, 65535)
            if len(answer) >= 12 and answer[:2] == ident and answer[2] & 0x80:
                return query[:2] + answer[2:]


async def _exchange_tcp(query: bytes, server: tuple[str, int]) -> bytes:
    reader, writer = await asyncio.open_connection(*server)
    try:
        writer.write(len(query).to_bytes(2, "big") + query)
        size = int.from_bytes(await reader.readexactly(2), "big")
        return await reader.readexactly(size)
    except asyncio.IncompleteReadError:
        raise ConnectionResetError("the resolver hung up") from None
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _scope(name: str) -> int:
    return int(name) if name.isdigit() else socket.if_nametoindex(name)
