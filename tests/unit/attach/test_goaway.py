"""Clients are told to connect anew where it harms nothing: between two frames, or in an answer's head."""

from __future__ import annotations

import h2.config
import h2.connection
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devloop.agent.goaway import GOAWAY, Http1Last, Http2Last, possible

ASK = [(":method", "POST"), (":path", "/"), (":scheme", "http"), (":authority", "a")]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


def answers(number: int, body: bytes) -> bytes:
    """What h2's server says to so many calls."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    client.initiate_connection()
    server.initiate_connection()
    server.receive_data(client.data_to_send())
    server.data_to_send()
    for stream in range(1, 2 * number, 2):
        client.send_headers(stream, ASK, end_stream=True)
        server.receive_data(client.data_to_send())
        server.send_headers(stream, [(":status", "200")])
        server.send_data(stream, body)
        server.send_headers(stream, [("grpc-status", "0")], end_stream=True)
    return server.data_to_send()


def kinds(data: bytes) -> list[int]:
    """Of all frames; what is left in the end is a fault."""
    found = []
    at = 0
    while at < len(data):
        found.append(data[at + 3])
        at += 9 + int.from_bytes(data[at : at + 3], "big")
    assert at == len(data)
    return found


def passed(last: Http2Last, data: bytes, size: int) -> bytes:
    return b"".join(last.passed(data[at : at + size]) for at in range(0, len(data), size))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 400), st.binary(max_size=300))
def test_a_goaway_comes_between_two_frames(size: int, body: bytes) -> None:
    data = answers(3, body)
    last = Http2Last()
    said = passed(last, data, size)
    assert last.said
    assert kinds(said).count(7) == 1
    assert said.replace(GOAWAY, b"") == data


@pytest.mark.parametrize("skip", [20, 40, 70])
def test_what_begins_within_a_frame_is_followed_from_where_one_begins(skip: int) -> None:
    """The first bytes are a body's; after a pause a frame begins."""
    data, more = answers(1, b"x" * 80), answers(2, b"y")
    last = Http2Last()
    said = data[:skip] + last.passed(data[skip:]) + last.passed(more)
    assert kinds(said).count(7) == 1
    assert said.replace(GOAWAY, b"") == data + more


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 200))
def test_nothing_is_put_in_front_of_what_the_client_may_have(unsure: int) -> None:
    data = answers(10, b"abc")
    said = passed(Http2Last(unsure), data, 50)
    assert said.startswith(data[:unsure])
    assert kinds(said).count(7) == 1
    assert said.replace(GOAWAY, b"") == data


def test_a_quiet_connection_is_told_at_once_unless_a_frame_is_under_way() -> None:
    last = Http2Last()
    assert last.rest() == GOAWAY
    assert last.rest() == b""
    last = Http2Last()
    last.passed(bytes.fromhex("000005 00 00 00000001") + b"ab")
    assert last.rest() == b""
    last.passed(b"cde")
    assert last.rest() == GOAWAY
    last = Http2Last()
    last.passed(bytes.fromhex("000000 01 00 00000001"))  # headers go on
    assert last.rest() == b""


def test_a_goaway_of_the_servers_own_is_enough() -> None:
    last = Http2Last()
    data = bytes.fromhex("000008 06 00 00000000 0000000000000000") * 2 + GOAWAY
    assert last.passed(data) == data
    assert last.said


@settings(deadline=None, max_examples=40)
@given(st.binary(min_size=27, max_size=400))
def test_what_is_no_http_2_is_left_alone(data: bytes) -> None:
    """By chance, three heads in a row don't come about."""
    assert Http2Last().passed(data) == data


def test_what_can_be_a_head() -> None:
    assert possible(bytes.fromhex("000000 04 01 00000000"))
    assert not possible(bytes.fromhex("000000 04 00 00000001"))  # settings of a stream
    assert not possible(bytes.fromhex("000000 00 00 00000000"))  # zeros
    assert not possible(bytes.fromhex("000004 08 00 80000000"))
    assert not possible(b"HTTP/1.1 ")


def test_an_answer_says_that_it_is_the_last_one() -> None:
    last = Http1Last(asked=False)
    assert last.passed(HEAD + b"ok") == HEAD + b"ok"  # of an answer that is under way, for all that is known
    last.asked()
    said = last.passed(HEAD + b"ok")
    assert said == b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"
    assert last.said
    last.asked()
    assert last.passed(HEAD) == HEAD


def test_what_is_not_an_answers_head_passes() -> None:
    last = Http1Last()
    for said in (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"ok\r\n", HEAD[:12]):
        last.asked()
        assert last.passed(said) == said
    assert not last.said
    assert last.idle
    last.asked()
    assert not last.idle


def test_an_answer_that_the_client_may_have_is_left_alone() -> None:
    last = Http1Last(10)
    assert last.passed(HEAD) == HEAD
    last.asked()
    assert last.passed(HEAD) != HEAD
