from __future__ import annotations

import h11
from hypothesis import given
from hypothesis import strategies as st

from devloop.agent.turns import LOST, Turns
from devloop.attach.http1 import KEPT_BYTES, Exchange, Where

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


def after(request: bytes, *answers: bytes) -> Exchange:
    exchange = Exchange()
    exchange.asked(request)
    for each in answers:
        exchange.answered(each)
    return exchange


def test_an_answer_with_a_length() -> None:
    assert after(GET).where is Where.WAITING
    assert after(GET, OK).where is Where.ANSWERING
    assert after(GET, OK + b"Content-Length: 3\r\n\r\nab").where is Where.ANSWERING
    done = after(GET, OK + b"Content-Length: 3\r\n\r\nab", b"c")
    assert (done.where, done.closes) == (Where.IDLE, False)


def test_answers_that_have_no_body() -> None:
    assert after(HEAD, OK + b"Content-Length: 3\r\n\r\n").where is Where.IDLE
    assert after(GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n").where is Where.IDLE
    assert after(GET, b"HTTP/1.1 204 No Content\r\n\r\n").where is Where.IDLE


def test_a_word_before_the_answer() -> None:
    going = after(POST, b"HTTP/1.1 100 Continue\r\n\r\n")
    assert going.where is Where.ANSWERING
    going.asked(b"ab")
    going.answered(OK + b"content-length: 0\r\n\r\n")
    assert going.where is Where.IDLE


def test_who_closes_says_so() -> None:
    assert after(GET, OK + b"connection: close\r\ncontent-length: 0\r\n\r\n").closes
    assert after(GET, b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n").closes
    until_the_end = after(GET, OK + b"\r\n", b"whatever")
    assert (until_the_end.where, until_the_end.closes) == (Where.ANSWERING, True)


def test_an_upgrade_is_not_followed() -> None:
    assert after(GET, b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n", b"\x81").where is Where.RAW
    assert after(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").where is Where.RAW
    assert after(GET, OK + b"content-length: 0\r\n\r\nmore").where is Where.RAW


def test_what_may_be_repeated() -> None:
    assert after(GET).repeatable and not after(POST).repeatable
    kept = after(POST)
    assert (kept.kept, kept.pieces) == (POST, 1)
    kept.asked(b"ab")
    assert (kept.kept, kept.pieces) == (POST + b"ab", 2)
    kept.asked(b"x" * KEPT_BYTES)
    assert kept.kept is None


def test_the_next_request_is_a_new_one() -> None:
    both = after(POST, OK + b"content-length: 0\r\n\r\n")
    both.asked(GET)
    assert (both.where, both.repeatable, both.kept) == (Where.WAITING, True, GET)


@given(
    bodies=st.lists(st.binary(max_size=300), min_size=1, max_size=3),
    chunked=st.booleans(),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=30),
)
def test_answers_end_where_h11_says(bodies: list[bytes], chunked: bool, cuts: list[int]) -> None:
    exchange = Exchange()
    for body in bodies:
        server = h11.Connection(h11.SERVER)
        server.receive_data(GET)
        server.next_event()
        headers = [("transfer-encoding", "chunked")] if chunked else [("content-length", str(len(body)))]
        data = server.send(h11.Response(status_code=200, headers=headers))
        if body:
            data += server.send(h11.Data(data=body))
        data += server.send(h11.EndOfMessage(headers=[("x-trailer", "1")] if chunked else []))
        exchange.asked(GET)
        at = 0
        for index in range(len(data)):
            cut = cuts[index % len(cuts)]
            if at >= len(data):
                break
            assert exchange.where is not Where.IDLE
            exchange.answered(data[at : at + cut])
            at += cut
        assert exchange.where is Where.IDLE


def test_the_agent_knows_what_may_be_given_to_somebody_else() -> None:
    turns = Turns()
    assert not turns.waiting
    turns.asked(POST)
    turns.asked(b"ab")
    assert (turns.waiting, turns.repeatable) == (True, False)
    turns.answered()
    assert not turns.waiting
    turns.asked(GET)
    assert (turns.waiting, turns.repeatable) == (True, True)
    other = Turns()
    other.asked(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert not other.waiting


def test_the_answer_for_what_is_lost_is_whole() -> None:
    lost = h11.Connection(h11.CLIENT)
    lost.send(h11.Request(method="POST", target="/", headers=[("host", "x")]))
    lost.receive_data(LOST)
    assert isinstance(answer := lost.next_event(), h11.Response) and answer.status_code == 502
    assert isinstance(lost.next_event(), h11.Data)
    assert isinstance(lost.next_event(), h11.EndOfMessage)
