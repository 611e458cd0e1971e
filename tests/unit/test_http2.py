"""A client is asked for another connection, between two frames, and loses nothing. Both ends are h2's."""

from __future__ import annotations

import h2.config
import h2.connection
import h2.events
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devloop import http2
from devloop.http2 import LEAVE, Conversation, begins, goaway, greets

ASK = [(":method", "POST"), (":path", "/"), (":scheme", "http"), (":authority", "a")]
ANSWER = [(":status", "200")]


class Ends:
    """A client and a server, and what passes between them in pieces of some size."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.talk = Conversation()
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.size = size
        self.seen: list[h2.events.Event] = []
        self.served: list[h2.events.Event] = []
        self.client.initiate_connection()
        self.server.initiate_connection()

    def pass_on(self) -> None:
        """Until neither has anything to say."""
        while True:
            out, back = self.client.data_to_send(), self.server.data_to_send()
            if not out and not back:
                return
            for at in range(0, len(out), self.size):
                if passed := self.talk.asked(out[at : at + self.size]):
                    self.served += self.server.receive_data(bytes(passed))
            for at in range(0, len(back), self.size):
                if passed := self.talk.answered(memoryview(back)[at : at + self.size]):
                    self.hear(bytes(passed))

    def hear(self, said: bytes) -> None:
        """The client's. h2 takes any GOAWAY for the end, and not only for that of new streams (RFC 9113, 6.8)."""
        first, leave, rest = said.partition(LEAVE)
        parts = [first, LEAVE[:17], LEAVE[17:], rest] if leave else [said]
        for part in filter(None, parts):
            self.seen += self.client.receive_data(part)
            self.client.state_machine.state = h2.connection.ConnectionState.CLIENT_OPEN

    def leave(self) -> None:
        if said := self.talk.leave():
            self.hear(said)


@given(st.integers(1, 40), st.integers(0, 6))
def test_what_has_begun_ends_and_nothing_else_begins(size: int, when: int) -> None:
    ends = Ends(size)
    ends.pass_on()
    steps = [
        lambda: ends.client.send_headers(1, ASK),
        lambda: ends.client.send_data(1, b"x" * 100, end_stream=True),
        lambda: ends.client.send_headers(3, ASK, end_stream=True),
        lambda: ends.server.send_headers(1, ANSWER),
        lambda: (ends.server.send_headers(3, ANSWER), ends.server.send_data(3, b"y" * 50, end_stream=True)),
        lambda: ends.server.send_data(1, b"z" * 200, end_stream=True),
    ]
    for number, step in enumerate(steps):
        if number == when:
            ends.leave()
        step()
        ends.pass_on()
    if when == len(steps):
        ends.leave()
    ends.pass_on()
    assert [e.last_stream_id for e in ends.seen if isinstance(e, h2.events.ConnectionTerminated)] == [0x7FFFFFFF]
    assert {e.stream_id for e in ends.seen if isinstance(e, h2.events.StreamEnded)} == {1, 3}
    assert {e.stream_id for e in ends.served if isinstance(e, h2.events.StreamEnded)} == {1, 3}
    assert not any(isinstance(e, h2.events.PingAckReceived) for e in ends.served)
    assert ends.talk.over
    assert ends.talk.farewell() == goaway(3)


def test_the_pings_of_others_pass() -> None:
    ends = Ends(5)
    ends.pass_on()
    ends.leave()
    ends.server.ping(b"12345678")
    ends.client.ping(b"87654321")
    ends.pass_on()
    assert [e.ping_data for e in ends.served if isinstance(e, h2.events.PingAckReceived)] == [b"12345678"]
    assert [e.ping_data for e in ends.seen if isinstance(e, h2.events.PingAckReceived)] == [b"87654321"]
    assert ends.talk.over


def test_nothing_comes_before_the_servers_settings_or_into_a_frame() -> None:
    ends = Ends()
    assert ends.talk.leave() == b""
    settings = ends.server.data_to_send()
    assert ends.talk.answered(settings[:4]) == settings[:4]
    assert ends.talk.answered(settings[4:12]) == settings[4:12]
    assert ends.talk.answered(settings[12:]) == settings[12:] + LEAVE


def test_nothing_comes_into_a_block_of_fields() -> None:
    ends = Ends()
    ends.client.send_headers(1, ASK, end_stream=True)
    ends.pass_on()
    ends.server.send_headers(1, [(":status", "200"), ("x", "y" * 40_000)], end_stream=True)
    block = ends.server.data_to_send()
    first = 9 + int.from_bytes(block[:3], "big")
    assert ends.talk.answered(block[:first]) == block[:first]
    assert ends.talk.leave() == b""
    assert ends.talk.answered(block[first:]).endswith(LEAVE)


def test_a_reset_stream_is_over() -> None:
    ends = Ends()
    ends.client.send_headers(1, ASK)
    ends.client.send_headers(3, ASK)
    ends.pass_on()
    ends.client.reset_stream(1)
    ends.server.reset_stream(3)
    assert not ends.talk.idle
    ends.pass_on()
    assert ends.talk.idle
    ends.leave()
    ends.pass_on()
    assert ends.talk.over


def test_a_server_that_speaks_first_is_known() -> None:
    ends = Ends()
    settings = ends.server.data_to_send()
    assert greets(settings)
    assert ends.talk.answered(settings) == settings
    assert ends.talk.leave() == LEAVE
    assert not any(
        greets(each) for each in (b"220 mail.test ready\r\n", b"\x4a\x00\x00\x00\x0a8.0.36\x00", b"\x00\x00", b"")
    )


def test_a_client_that_speaks_something_else_is_left_alone() -> None:
    talk = Conversation()
    talk.answered(Ends().server.data_to_send())
    assert talk.asked(b"PRI * HTTP/2.0\r\n") == b"PRI * HTTP/2.0\r\n"
    assert talk.asked(b"on with it") == b"on with it"
    assert talk.raw


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x0a" * 3])
def test_a_server_that_speaks_something_else_is_left_alone(answer: bytes) -> None:
    talk = Conversation()
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    assert begins(preface)
    assert talk.asked(preface) == preface
    assert talk.answered(answer[:3]) + talk.answered(answer[3:]) == answer
    assert talk.raw
    assert talk.leave() == b""


def test_an_answer_to_no_ping_of_ours_passes_whatever_its_length() -> None:
    ends = Ends()
    ends.pass_on()
    ends.leave()
    for payload in (b"", b"x", b"another1", b"x" * 9):
        answer = len(payload).to_bytes(3, "big") + bytes((6, 1)) + bytes(4) + payload
        assert b"".join(bytes(ends.talk.asked(answer[at : at + 5])) for at in range(0, len(answer), 5)) == answer


def test_streams_without_end_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "OPEN_STREAMS", 100)
    talk = http2.Conversation()
    talk.asked(http2.PREFACE)
    opened = b"".join(http2.frame(http2.HEADERS, flags=http2.END_HEADERS, stream=n) for n in range(1, 401, 2))
    assert talk.asked(opened) == opened
    assert talk.raw and not talk._open
