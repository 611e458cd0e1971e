"""A gRPC service small enough to need no library: it answers every call with its name (gRPC over HTTP/2, RFC 9113)."""

from __future__ import annotations

import asyncio
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 4, 6, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4


def literal(name: str, value: str) -> bytes:
    """A header that no table has (RFC 7541, 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def message(text: str) -> bytes:
    """A gRPC message: not compressed, and its length."""
    return b"\0" + struct.pack(">I", len(text)) + text.encode()


STREAM, MESSAGES, GAP_SECONDS = "str", 24, 0.5
"""Who says that is answered with a stream of so many messages."""


class Greeter:
    """Keeps what it was sent, by call."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[bytes] = []
        self.writers: set[asyncio.StreamWriter] = set()
        self.streams: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        bodies: dict[int, bytes] = {}
        try:
            assert await reader.readexactly(len(PREFACE)) == PREFACE
            writer.write(frame(SETTINGS, 0, 0))
            while True:
                head = await reader.readexactly(9)
                payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
                kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big") & 0x7FFFFFFF
                if kind == SETTINGS and not flags & ACK:
                    writer.write(frame(SETTINGS, ACK, 0))
                elif kind == PING and not flags & ACK:
                    writer.write(frame(PING, ACK, 0, payload))
                elif kind == DATA:
                    bodies[stream] = bodies.get(stream, b"") + payload
                if kind in (DATA, HEADERS) and flags & END_STREAM:
                    self.calls.append(bodies.pop(stream, b""))
                    many = MESSAGES if self.calls[-1] == message(STREAM) else 1
                    task = asyncio.create_task(self._answer(writer, stream, many))
                    self.streams.add(task)
                    task.add_done_callback(self.streams.discard)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, stream: int, many: int) -> None:
        begin = b"\x88" + literal("content-type", "application/grpc")
        writer.write(frame(HEADERS, END_HEADERS, stream, begin))
        for number in range(many):
            if number:
                await asyncio.sleep(GAP_SECONDS)
            writer.write(frame(DATA, 0, stream, message(self.name)))
        writer.write(frame(HEADERS, END_HEADERS | END_STREAM, stream, literal("grpc-status", "0")))
