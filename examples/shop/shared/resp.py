"""A client for Redis's protocol (RESP2): enough of it for this shop, with nothing to install.

    store = Store.from_env()
    store("SET", "greeting", "hello")
    store("GET", "greeting")  # b"hello"

One Store can be used by many threads: each call takes a connection from a small pool. A connection that has
gone stale (the store was restarted) is replaced once, without the caller seeing it. A command that may have
been carried out is not sent twice: only one whose sending failed, or that reads.
"""

from __future__ import annotations

import os
import socket
from typing import BinaryIO
from urllib.parse import urlsplit

Reply = bytes | int | list["Reply"] | None

READS = {"GET", "LLEN", "LRANGE", "MGET", "PING", "EXISTS"}


class StoreError(Exception):
    """The store answered with an error."""


def encode(*words: str | bytes | int) -> bytes:
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        data = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
    return b"".join(parts)


def decode(stream: BinaryIO) -> Reply:
    """One reply. Raises StoreError for an error reply, ConnectionError at the end of the stream."""
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("the store closed the connection")
    kind, rest = line[:1], line[1:-2]
    if kind == b"-":
        raise StoreError(rest.decode(errors="replace"))
    if kind == b":":
        return int(rest)
    if kind == b"$":
        size = int(rest)
        return None if size < 0 else stream.read(size + 2)[:-2]
    if kind == b"*":
        size = int(rest)
        return None if size < 0 else [decode(stream) for _ in range(size)]
    return rest  # "+OK"


class Connection:
    """One socket to the store."""

    def __init__(self, address: tuple[str, int], timeout: float | None) -> None:
        self.socket = socket.create_connection(address, timeout=5)
        self.socket.settimeout(timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = self.socket.makefile("rb")
        self.sent = False

    def call(self, *words: str | bytes | int) -> Reply:
        self.sent = False
        self.socket.sendall(encode(*words))
        self.sent = True
        return decode(self.stream)

    def close(self) -> None:
        self.stream.close()
        self.socket.close()


class Store:
    """The store at `address`. `timeout` in seconds holds for each answer; None waits for ever (BRPOP)."""

    def __init__(self, address: tuple[str, int], timeout: float | None = 5) -> None:
        self.address = address
        self.timeout = timeout
        self.idle: list[Connection] = []  # append and pop of a list are atomic: no lock needed

    @classmethod
    def from_env(cls, timeout: float | None = 5) -> Store:
        url = urlsplit(os.environ.get("STORE_URL", "redis://127.0.0.1:7379"))
        return cls((url.hostname or "127.0.0.1", url.port or 6379), timeout)

    def __str__(self) -> str:
        return f"redis://{self.address[0]}:{self.address[1]}"

    def __call__(self, *words: str | bytes | int) -> Reply:
        """Run one command. Raises StoreError if the store refuses it, OSError if it can't be reached."""
        while self.idle:
            try:
                connection = self.idle.pop()
            except IndexError:
                break
            try:
                return self._on(connection, *words)
            except OSError:
                if connection.sent and words[0] not in READS:
                    raise
        return self._on(Connection(self.address, self.timeout), *words)

    def _on(self, connection: Connection, *words: str | bytes | int) -> Reply:
        try:
            reply = connection.call(*words)
        except StoreError:
            self.idle.append(connection)
            raise
        except BaseException:
            connection.close()
            raise
        self.idle.append(connection)
        return reply
