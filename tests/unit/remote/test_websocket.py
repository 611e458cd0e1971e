"""Frames in whatever pieces they come, and what is written."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import pytest

from devloop.remote.kubernetes.podport import PodTransport, PortForwardLostError
from devloop.remote.kubernetes.websocket import BINARY, CLOSE, CONTINUATION, PING, PONG, WebSocket


class FakeTransport:
    def __init__(self) -> None:
        self.sent = b""
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def abort(self) -> None:
        self.aborted = True

    def set_write_buffer_limits(self, high: int) -> None: ...


class FakeProtocol:
    read_timeout: float | None = 1

    def set_parser(self, parser: object, payload: object) -> None:
        self.parser = parser


class FakeConnection:
    def __init__(self) -> None:
        self.transport = FakeTransport()
        self.protocol = FakeProtocol()


class FakeResponse:
    closed = False

    def close(self) -> None:
        self.closed = True


class Heard(asyncio.Protocol):
    def __init__(self) -> None:
        self.data = b""
        self.lost: list[Exception | None] = []

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


def frame(payload: bytes, opcode: int = BINARY, final: bool = True) -> bytes:
    size = len(payload)
    head = bytes([(0x80 if final else 0) | opcode])
    if size < 126:
        return head + bytes([size]) + payload
    if size < 1 << 16:
        return head + b"\x7e" + struct.pack(">H", size) + payload
    return head + b"\x7f" + struct.pack(">Q", size) + payload


def forwarded(masked: bool = False) -> tuple[WebSocket, PodTransport, Heard, Any]:
    connection: Any = FakeConnection()
    socket = WebSocket(FakeResponse(), connection, masked=masked)
    heard = Heard()
    transport = PodTransport(socket, heard, "web-1", 8080)
    transport.begin()
    return socket, transport, heard, connection


PORT = struct.pack("<H", 8080)
CONVERSATION = (
    frame(b"\0" + PORT)
    + frame(b"\1" + PORT)
    + frame(b"\0" + b"a" * 10)
    + frame(b"", PING)
    + frame(b"\0" + b"b" * 300)
    + frame(b"\0" + b"c" * 70000)
    + frame(b"\0fir", final=False)
    + frame(b"now", PING)
    + frame(b"st", CONTINUATION)
)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000, 10**6])
async def test_frames_are_read_in_whatever_pieces_they_come(step: int) -> None:
    socket, _, heard, connection = forwarded()
    for at in range(0, len(CONVERSATION), step):
        assert socket.feed_data(CONVERSATION[at : at + step]) == (False, b"")
    assert heard.data == b"a" * 10 + b"b" * 300 + b"c" * 70000 + b"first"
    # Both pings were answered, the second with what it carried.
    assert connection.transport.sent == bytes([0x80 | PONG, 0x80, 0, 0, 0, 0]) + (
        bytes([0x80 | PONG, 0x83, 0, 0, 0, 0]) + b"now"
    )


async def test_what_is_written_in_one_turn_goes_as_one_message() -> None:
    _, transport, _, connection = forwarded()
    transport.write(b"one")
    transport.write(b"two")
    assert connection.transport.sent == b""
    await asyncio.sleep(0)
    assert connection.transport.sent == bytes([0x82, 0x80 | 7, 0, 0, 0, 0]) + b"\0onetwo"


async def test_without_tls_the_payload_is_masked() -> None:
    _, transport, _, connection = forwarded(masked=True)
    transport.write(b"GET / HTTP/1.1")
    await asyncio.sleep(0)
    sent = connection.transport.sent
    assert b"GET" not in sent
    mask, payload = sent[2:6], sent[6:]
    assert bytes(each ^ mask[index % 4] for index, each in enumerate(payload)) == b"\0GET / HTTP/1.1"


async def test_the_kubelets_word_is_the_reason() -> None:
    socket, _, heard, _ = forwarded()
    said = b"error forwarding port 8080 to pod: connection refused"
    socket.feed_data(frame(b"\1" + PORT) + frame(b"\1" + said) + frame(b"\x03\xe8", CLOSE))
    await asyncio.sleep(0)
    (lost,) = heard.lost
    assert isinstance(lost, PortForwardLostError)
    assert "connection refused" in str(lost)


async def test_nonsense_ends_it() -> None:
    socket, _, heard, connection = forwarded()
    assert socket.feed_data(b"\x82\x85masked")[0] is True
    await asyncio.sleep(0)
    assert connection.transport.aborted
    assert "masked" in str(heard.lost[0])


async def test_the_end_is_told_once() -> None:
    socket, transport, heard, _ = forwarded()
    transport.close()
    socket.feed_eof()
    socket.set_exception(OSError("reset"))
    await asyncio.sleep(0)
    assert heard.lost == [None]
    transport.write(b"too late")
