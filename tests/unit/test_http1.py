"""Whether anything is under way on an HTTP/1.1 connection, by what has passed."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devloop import http1
from devloop.http1 import Conversation, may_begin

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
NOTHING = b"HTTP/1.1 204 No Content\r\n\r\n"
HEAD_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
PAIRS = [(GET, OK), (POST, CHUNKS), (CHUNKED, CONTINUE + NOTHING), (HEAD, HEAD_ANSWER), (b"\r\n" + GET, OK)]


@given(st.lists(st.sampled_from(PAIRS), min_size=1, max_size=4), st.lists(st.integers(1, 40), min_size=1, max_size=9))
def test_it_is_idle_between_requests_and_only_there(pairs: list[tuple[bytes, bytes]], sizes: list[int]) -> None:
    talk = Conversation()
    lengths = itertools.cycle(sizes)
    for request, answer in pairs:
        assert talk.idle
        for said, follow in ((request, talk.asked), (answer, talk.answered)):
            at = 0
            while at < len(said):
                size = next(lengths)
                assert follow(memoryview(said)[at : at + size]) == said[at : at + size]
                at += size
                begun = said is answer or bool(said[:at].strip(b"\r\n"))
                assert talk.idle == (not begun or (said is answer and at >= len(said)))
    assert not talk.closes
    assert not talk.raw


def test_requests_that_do_not_wait_for_answers_are_counted() -> None:
    talk = Conversation()
    talk.asked(GET + POST + GET)
    for answered in (OK, CHUNKS):
        talk.answered(answered)
        assert not talk.idle
    talk.answered(OK)
    assert talk.idle


def test_an_answer_that_comes_before_the_request_is_whole() -> None:
    talk = Conversation()
    talk.asked(POST[:-1])
    talk.answered(OK)
    assert not talk.idle
    talk.asked(POST[-1:])
    assert talk.idle


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (GET.replace(b"Host: a", b"Host: a\r\nConnection: close"), OK),
        (GET.replace(b"1.1", b"1.0"), OK),
        (GET, OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n")),
        (GET, OK.replace(b"1.1", b"1.0")),
        (GET, b"HTTP/1.1 200 OK\r\n\r\nto the end"),
    ],
)
def test_what_ends_with_its_answer_is_known(request_: bytes, answer: bytes) -> None:
    talk = Conversation()
    talk.asked(request_)
    talk.answered(answer)
    assert talk.closes


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (GET, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x02hi"),
        (b"CONNECT a:443 HTTP/1.1\r\n\r\n", b""),
        (b"HELO there\r\n", b""),
        (GET, b"+PONG\r\n"),
        (GET, OK + OK),
    ],
)
def test_what_is_something_else_is_never_idle(request_: bytes, answer: bytes) -> None:
    talk = Conversation()
    talk.asked(request_)
    talk.answered(answer)
    assert talk.raw
    assert not talk.idle
    assert talk.asked(b"on") == b"on"


def test_what_may_begin_a_connection() -> None:
    assert all(may_begin(GET[:size]) for size in range(1, len(GET)))
    assert not any(may_begin(each) for each in (b"\x16\x03\x01", b"*1\r\n$4\r\nPING\r\n", b"\x00\x00\x00\x08", b""))


def test_requests_that_nobody_answers_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "PIPELINED", 100)
    talk = Conversation()
    talk.asked(b"GET / HTTP/1.1\r\n\r\n" * 101)
    assert talk.raw and not talk._asked
