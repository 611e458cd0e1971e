from __future__ import annotations

import h11
import pytest
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


def test_what_nobody_has_asked_for_ends_it() -> None:
    assert after(GET, OK + b"content-length: 0\r\n\r\nmore").where is Where.SPENT
    assert after(GET, OK + b"content-length: 0\r\n\r\n", b"more").where is Where.SPENT


LONG = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 900\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
LARGE = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno"


@pytest.mark.parametrize(
    "begun",
    [
        LONG,
        LONG + b"x" * 899,
        LONG.replace(b"host", b"Expect: 100-continue\r\nhost"),
        LONG.replace(b"1.1", b"1.0"),
        CHUNKED,
        CHUNKED + b"5\r\nabcde\r\n",
        CHUNKED + b"0\r\nx-trailer: 1\r\n",
        CHUNKED.replace(b"chunked", b"chunked, odd") + b"0\r\n\r\n",
        LONG.replace(b"900", b"9" * 30),
    ],
)
@pytest.mark.parametrize("answer", [LARGE, LARGE.replace(b"1.1", b"1.0"), LARGE.replace(b"HTTP", b"HTTP", 1) + b"more"])
def test_an_answer_before_the_request_is_whole_is_the_last_one(begun: bytes, answer: bytes) -> None:
    early = after(begun, answer)
    assert early.where is Where.SPENT
    early.asked(GET)  # a part of the body that looks like a request
    assert (early.where, early.kept) == (Where.SPENT, begun)


@pytest.mark.parametrize(
    "whole",
    [GET, HEAD, LONG + b"x" * 900, CHUNKED + b"1\r\na\r\n0\r\nx-trailer: 1\r\n\r\n", GET.replace(b"1.1", b"1.0")],
)
def test_one_that_is_whole_makes_room_for_the_next(whole: bytes) -> None:
    done = after(whole, b"HTTP/1.1 204 No Content\r\n\r\n")
    assert done.where is Where.IDLE
    done.asked(GET)
    assert done.where is Where.WAITING


@given(cuts=st.lists(st.integers(1, 60), min_size=1, max_size=30), body=st.binary(max_size=300), chunked=st.booleans())
def test_only_a_whole_request_is_followed_by_another(cuts: list[int], body: bytes, chunked: bool) -> None:
    """However it is cut, and whatever a stranger puts into the body."""
    framed = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked and body else b"0\r\n\r\n"
    said = CHUNKED + framed if chunked else LONG.replace(b"900", b"%d" % len(body)) + body
    exchange, at = Exchange(), len(CHUNKED if chunked else LONG.replace(b"900", b"%d" % len(body)))
    exchange.asked(said[:at])
    for cut in cuts:
        exchange.asked(said[at : at + cut])
        at += cut
    exchange.answered(LARGE)
    assert (exchange.where is Where.IDLE) == (at >= len(said))


def test_what_may_be_repeated() -> None:
    assert after(GET).repeatable and not after(POST).repeatable
    kept = after(POST)
    assert (kept.kept, kept.pieces) == (POST, 1)
    kept.asked(b"ab")
    assert (kept.kept, kept.pieces) == (POST + b"ab", 2)
    kept.asked(b"x" * KEPT_BYTES)
    assert kept.kept is None


def test_the_next_request_is_a_new_one() -> None:
    both = after(POST + b"ab", OK + b"content-length: 0\r\n\r\n")
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
    assert turns.answered(OK + b"content-length: 0\r\n\r\n")
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


def test_a_word_before_the_answer_is_none_to_the_agent_either() -> None:
    """Else a POST whose process is lost after its 100 Continue would be given to somebody else."""
    turns = Turns()
    turns.asked(POST)
    turns.answered(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")
    turns.asked(GET)  # the body, whatever it looks like
    assert turns.waiting and not turns.repeatable
    turns.answered(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert turns.waiting and turns.begun
    turns.answered(b"\r\n")
    assert not turns.waiting
    turns.asked(GET)
    turns.answered(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
    assert not turns.waiting


HEADS = [
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nset-cookie: a=b\r\ncontent-length: 4\r\n\r\n",
]
ANSWER = b"".join(HEADS) + b"\r\n\r\n"


@pytest.mark.parametrize("size", [1, 2, 7, 50, len(ANSWER)])
def test_a_request_waits_until_the_head_of_its_answer_is_whole(size: int) -> None:
    """Half a head is kept, as 502 behind it would be a part of it."""
    turns, said = Turns(), b""
    turns.asked(POST)
    for at in range(0, len(ANSWER), size):
        assert turns.waiting is (at < len(b"".join(HEADS)))
        said += turns.answered(ANSWER[at : at + size])
        if turns.waiting:
            assert said in (b"", HEADS[0], HEADS[0] + HEADS[1])
    assert said == ANSWER


@pytest.mark.parametrize("said", [b"ICY 200 OK\r\n", b"\0\1\2", b"HTTP/2 x", b"HTTP/1.1 200 OK\nx: y\n\n"])
def test_what_is_no_head_or_a_whole_one_is_kept_by_nobody(said: bytes) -> None:
    turns = Turns()
    turns.asked(POST)
    assert turns.answered(said) == said and not turns.waiting
