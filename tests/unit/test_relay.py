"""Whatever two ends say to each other, a relay changes nothing of it, however it is cut and whenever it is led away."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devloop.http2 import LEAVE, PREFACE
from devloop.relay import Relay, Side

MARK = LEAVE[-8:]
ASK = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
CLIENTS = (
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ASK,
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nX: y\r\n\r\n",
    b"HEAD / HTTP/1.1\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\nHost: a\n\n",
    PREFACE,
    PREFACE[:13],
    SETTINGS,
    b"\x00\x00\x08\x06\x01\x00\x00\x00\x00" + MARK,
    b"\x00\x00\x08\x06\x01\x00\x00\x00\x00whatever",
    b"\x00\x00\x01\x01\x05\x00\x00\x00\x01\x82",
    b"\xff\xff\xff\x06\x01\x00\x00\x00\x00",
    b"PING\r\n",
    b"\r\n",
    b"\x16\x03\x01",
)
SERVERS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    SETTINGS,
    b"\x00\x00\x01\x01\x05\x00\x00\x00\x01\x88",
    b"\x00\x00\x00\x00\x01\x00\x00\x00\x01",
    b"zz\r\n",
    b"220 ready\r\n",
)


class Transport:
    """What was written to one side."""

    def __init__(self) -> None:
        self.said = b""
        self.over = False
        self.broken = False

    def write(self, data: bytes) -> None:
        assert not self.over
        self.said += bytes(data)

    def write_eof(self) -> None:
        self.over = True

    def can_write_eof(self) -> bool:
        return True

    def abort(self) -> None:
        self.broken = True

    def get_extra_info(self, name: str) -> Any:
        return None

    def close(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


class Connected:
    """A relay whose targets are there as soon as they are asked for."""

    def __init__(self) -> None:
        self.targets: list[tuple[Side, Transport]] = []
        self.relay = Relay(self._connect, lambda relay: None, self._anew)
        self.client = Transport()
        self.relay.client.connection_made(self.client)  # type: ignore[arg-type]

    def _connect(self, relay: Relay) -> None:
        self.targets.append((relay.target, Transport()))
        relay.target.connection_made(self.targets[-1][1])  # type: ignore[arg-type]

    def _anew(self, relay: Relay) -> None:
        relay.fresh_target()
        self._connect(relay)

    @property
    def given(self) -> bytes:
        return b"".join(transport.said for _, transport in self.targets)


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


step = st.one_of(
    st.tuples(st.just("client"), st.one_of(st.sampled_from(CLIENTS), st.binary(max_size=30))),
    st.tuples(st.just("server"), st.one_of(st.sampled_from(SERVERS), st.binary(max_size=30))),
    st.tuples(st.just("leave"), st.just(b"")),
)


@settings(max_examples=100, deadline=None)  # how quick a shared machine is decides nothing
@given(st.lists(step, max_size=8), st.sampled_from((1, 3, 8, 1 << 20)), st.booleans())
def test_what_is_said_arrives_as_it_is(steps: list[tuple[str, bytes]], size: int, ends: bool) -> None:
    async def passes() -> None:
        here = Connected()
        relay = here.relay
        asked = answered = b""
        for who, data in steps:
            if who == "leave":
                if not relay.leaving:
                    relay.leave(lambda: None)
                continue
            for part in cut(data, size):
                if who == "client":
                    relay.client.data_received(part)
                    asked += part
                else:
                    side = here.targets[-1][0]
                    if side is relay.target and side.transport is not None:
                        side.data_received(part)
                        answered += part
        if ends:
            relay.client.eof_received()
            assert here.targets[-1][1].over or relay.target.transport is None
        assert not here.client.broken
        # Only what asks a client of HTTP/2 to go, and its answer to that, is the relay's own.
        told = here.client.said.count(LEAVE) > answered.count(LEAVE)
        assert here.client.said.replace(LEAVE, b"", 1) == answered if told else here.client.said == answered
        given = here.given
        if told:
            answer = b"\x00\x00\x08\x06\x01\x00\x00\x00\x00" + MARK
            assert ends or asked.startswith(given) or asked.replace(answer, b"", 1).startswith(given)
            assert not ends or given in (asked, asked.replace(answer, b"", 1))
        else:
            assert given == asked

    asyncio.run(passes())


@pytest.mark.parametrize("said", [b"no", b"HTTP/1.1"])
async def test_what_is_no_http2_arrives_before_there_is_more_of_it(said: bytes) -> None:
    """A peer may wait for an answer to it, or end."""
    here = Connected()
    here.relay.client.data_received(PREFACE + b"\x00\x00")
    assert here.given == PREFACE + b"\x00\x00"
    here.relay.target.data_received(said)
    assert here.client.said == said
    here.relay.client.data_received(b"more")
    assert here.given == PREFACE + b"\x00\x00more"


async def test_an_end_that_is_told_late_is_not_the_next_targets() -> None:
    """A channel of the link that was closed may still tell what the other end had said before it heard of that."""
    here = Connected()
    here.relay.client.data_received(ASK)
    here.relay.target.data_received(SERVERS[0])
    old = here.relay.target
    here.relay.leave(lambda: None)
    old.eof_received()
    old.connection_lost(None)
    here.relay.client.data_received(ASK)
    here.relay.target.data_received(SERVERS[6])
    assert here.client.said == SERVERS[0] + SERVERS[6]


async def test_an_endless_line_of_a_chunk_is_not_kept() -> None:
    here = Connected()
    here.relay.client.data_received(ASK)
    here.relay.target.data_received(SERVERS[2])
    for _ in range(20):
        here.relay.target.data_received(b"0" * (64 * 1024))
    talk: Any = here.relay._talk
    assert len(here.client.said) > 1 << 20
    assert talk is None or len(talk._answers._body._line) < 1 << 19
