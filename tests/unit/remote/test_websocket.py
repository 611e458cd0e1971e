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
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:
        self.sent += data

    def abort(self) -> None:
        self.aborted = True

    def set_write_buffer_limits(self, high: int) -> None: ...

    def get_extra_info(self, name: str) -> None: ...

    def pause_reading(self) -> None:
        assert not self.closing  # asyncio's TLS can't, once it is closed

    def resume_reading(self) -> None: ...

    def set_protocol(self, protocol: asyncio.BufferedProtocol) -> None:
        self.protocol = protocol

    def receive(self, data: bytes) -> None:
        while data:
            room = self.protocol.get_buffer(len(data))
            size = min(len(data), len(room))
            room[:size] = data[:size]
            self.protocol.buffer_updated(size)
            data = data[size:]


class FakeProtocol:
    read_timeout: float | None = 1
    tail = b""
    lost: list[Exception | None]

    def set_parser(self, parser: Any, payload: object) -> None:
        parser.feed_data(self.tail)

    def connection_lost(self, problem: Exception | None) -> None:
        self.lost = [problem]


class FakeConnection:
    def __init__(self) -> None:
        self.transport = FakeTransport()
        self.protocol = FakeProtocol()


class FakeResponse:
    def __init__(self, transport: FakeTransport) -> None:
        self.transport = transport

    def close(self) -> None:
        self.transport.closing = True


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


def forwarded(masked: bool = False, tail: bytes = b"") -> tuple[WebSocket, PodTransport, Heard, Any]:
    connection: Any = FakeConnection()
    connection.protocol.tail = tail
    socket = WebSocket(FakeResponse(connection.transport), connection, masked=masked)
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
@pytest.mark.parametrize("tail", [0, 1, 5, 400])
async def test_frames_are_read_in_whatever_pieces_they_come(step: int, tail: int) -> None:
    # What comes together with the answer to the handshake is still aiohttp's.
    _, _, heard, connection = forwarded(tail=CONVERSATION[:tail])
    for at in range(tail, len(CONVERSATION), step):
        connection.transport.receive(CONVERSATION[at : at + step])
    assert heard.data == b"a" * 10 + b"b" * 300 + b"c" * 70000 + b"first"
    # Both pings were answered, the second with what it carried.
    assert connection.transport.sent == bytes([0x80 | PONG, 0x80, 0, 0, 0, 0]) + (
        bytes([0x80 | PONG, 0x83, 0, 0, 0, 0]) + b"now"
    )


class Keeper:
    """Looks at what it was given when all of a read is there."""

    def __init__(self) -> None:
        self.views: list[memoryview] = []
        self.data = b""

    def received(self, data: memoryview, first: bool, /) -> None:
        self.views.append(data)

    def read(self) -> None:
        self.data += b"".join(self.views)
        self.views.clear()

    def lost(self, reason: str) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


@pytest.mark.parametrize("step", [5, 70, 71, 72, 73, 74, 997])
async def test_what_was_given_stays_until_all_of_a_read_is_there(step: int) -> None:
    """A read may end within a header, whose beginning is then put where that read began."""
    connection: Any = FakeConnection()
    socket = WebSocket(FakeResponse(connection.transport), connection, masked=False)
    keeper = Keeper()
    socket.start(keeper)
    texts = [bytes([number]) * (60 + number % 90) for number in range(200)]
    said = b"".join(map(frame, texts))
    for at in range(0, len(said), step):
        connection.transport.receive(said[at : at + step])
    assert keeper.data == b"".join(texts)


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
    _, _, heard, connection = forwarded()
    said = b"error forwarding port 8080 to pod: connection refused"
    connection.transport.receive(frame(b"\1" + PORT) + frame(b"\1" + said) + frame(b"\x03\xe8", CLOSE))
    await asyncio.sleep(0)
    (lost,) = heard.lost
    assert isinstance(lost, PortForwardLostError)
    assert "connection refused" in str(lost)


async def test_it_may_have_ended_before_it_starts() -> None:
    said = b"connection refused"
    _, _, heard, _ = forwarded(tail=frame(b"\1" + PORT) + frame(b"\1" + said) + frame(b"\x03\xe8", CLOSE))
    await asyncio.sleep(0)
    assert "connection refused" in str(heard.lost[0])
    connection: Any = FakeConnection()
    connection.transport.closing = True
    socket = WebSocket(FakeResponse(connection.transport), connection, masked=False)
    heard = Heard()
    PodTransport(socket, heard, "web-1", 8080).begin()
    await asyncio.sleep(0)
    assert "lost" in str(heard.lost[0])


async def test_nonsense_ends_it() -> None:
    _, _, heard, connection = forwarded()
    connection.transport.receive(b"\x82\x85masked")
    await asyncio.sleep(0)
    assert connection.transport.aborted
    assert "masked" in str(heard.lost[0])


async def test_the_end_is_told_once() -> None:
    _, transport, heard, connection = forwarded()
    transport.close()
    connection.transport.protocol.eof_received()
    connection.transport.protocol.connection_lost(OSError("reset"))
    await asyncio.sleep(0)
    assert heard.lost == [None]
    assert isinstance(connection.protocol.lost[0], OSError)
    transport.write(b"too late")
