"""A connection of Envoy's over the life of several local processes, with transports in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from devloop.agent.turns import LOST
from devloop.attach import relay
from devloop.attach.http1 import KEPT_BYTES
from devloop.attach.relay import REPEATS, Far, Near

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nab"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """RFC 9113, 4.1."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def goaway(last: int) -> bytes:
    return frame(7, 0, 0, last.to_bytes(4, "big") + bytes(4))


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0)
HEADERS = frame(1, 4, 1, b"first")
SETTINGS = frame(4, 0, 0, bytes(6))


class Wire:
    """A transport that notes what is done with it."""

    def __init__(self) -> None:
        self.sent = b""
        self.done: list[str] = []
        self.paused = False
        self.lost = False
        self.state = 1
        """As tcp(7)'s tcpi_state has it: established; 8 if the other end has said that it sends no more."""

    def write(self, data: bytes) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.lost or bool({"close", "abort"} & set(self.done))

    def can_write_eof(self) -> bool:
        return True

    def get_extra_info(self, name: str) -> Any:
        return self

    def fileno(self) -> int:
        return 3

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        return bytes((self.state,)) if size else 0

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: self.done.append(name)


class Rig:
    def __init__(self) -> None:
        self.processes: list[tuple[Wire, Near]] = []
        self.up = asyncio.Event()
        self.up.set()
        self.refused = False
        self.served = 0
        self.at_once: list[bytes] = []
        """What a process says before anybody has learned that it is connected, and how it ends then."""
        self.at_once_ends: str | None = None
        self.envoy = Wire()
        self.far = Far(self.connect, self.answered)

    def answered(self) -> None:
        self.served += 1

    async def connect(self, factory: Callable[[], Near]) -> tuple[asyncio.Transport, Near]:
        await self.up.wait()
        if self.refused:
            raise ConnectionRefusedError
        near, wire = factory(), Wire()
        near.connection_made(cast(asyncio.Transport, wire))
        self.processes.append((wire, near))
        for data in self.at_once:
            near.data_received(data)
        if self.at_once_ends is not None:
            problem = ConnectionResetError() if self.at_once_ends == "reset" else None
            stays = near.eof_received() if problem is None else False
            assert stays == (problem is None)
            near.connection_lost(problem)
            wire.lost = True
        return cast(asyncio.Transport, wire), near

    @classmethod
    async def open(cls, first: bytes = GET) -> Rig:
        rig = cls()
        await rig.far.join()
        rig.far.connection_made(cast(asyncio.Transport, rig.envoy))
        rig.far.data_received(first)
        return rig

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    @property
    def wire(self) -> Wire:
        return self.processes[-1][0]

    def ends(self, problem: Exception | None = None) -> None:
        """The newest process closes its connection, or is reset."""
        near = self.processes[-1][1]
        if problem is None and near.eof_received():
            return
        near.connection_lost(problem)


async def test_a_connection_between_two_requests_outlives_the_process() -> None:
    rig = await Rig.open()
    rig.far.answered(rig.processes[-1][1], OK)
    rig.ends()
    assert rig.envoy.done == []
    rig.up.clear()
    rig.far.data_received(POST)
    await rig.settle()
    assert len(rig.processes) == 1
    rig.up.set()
    await rig.settle()
    assert rig.wire.sent == POST
    rig.far.answered(rig.processes[-1][1], OK)
    assert rig.envoy.sent == OK + OK
    assert rig.served == 2


async def test_an_unanswered_request_goes_to_the_next_process_if_it_may_be_repeated() -> None:
    rig = await Rig.open(GET)
    rig.ends()
    await rig.settle()
    assert [wire.sent for wire, _ in rig.processes] == [GET, GET]
    assert rig.envoy.done == []


async def test_one_that_may_not_be_is_answered_and_given_to_nobody() -> None:
    rig = await Rig.open(POST)
    rig.ends()
    await rig.settle()
    assert len(rig.processes) == 1
    assert (rig.envoy.sent, rig.envoy.done) == (LOST, ["close"])


async def test_one_that_was_never_read_is_given_to_the_next_process() -> None:
    rig = await Rig.open(POST)
    rig.ends(ConnectionResetError())
    await rig.settle()
    assert [wire.sent for wire, _ in rig.processes] == [POST, POST]
    # In two pieces, the first of which may have been read.
    other = await Rig.open(POST[:-1])
    other.far.data_received(POST[-1:])
    other.ends(ConnectionResetError())
    await other.settle()
    assert other.envoy.sent == LOST


async def test_a_request_that_kills_every_process_ends() -> None:
    rig = await Rig.open(GET)
    for _ in range(REPEATS + 1):
        rig.ends()
        await rig.settle()
    assert len(rig.processes) == REPEATS + 1
    # Without an answer: Envoy asks the original.
    assert (rig.envoy.sent, rig.envoy.done) == (b"", ["abort"])


async def test_when_no_process_comes_envoy_asks_the_original() -> None:
    rig = await Rig.open(GET)
    rig.far.answered(rig.processes[-1][1], OK)
    rig.ends()
    rig.refused = True
    rig.far.data_received(POST)
    await rig.settle()
    assert (rig.envoy.sent, rig.envoy.done) == (OK, ["abort"])


async def test_half_an_answer_is_cut_and_a_closing_one_is_closed() -> None:
    rig = await Rig.open(GET)
    rig.far.answered(rig.processes[-1][1], OK[:-1])
    rig.ends()
    assert rig.envoy.done[-1] == "abort"
    other = await Rig.open(GET)
    other.far.answered(other.processes[-1][1], b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
    other.ends()
    assert other.envoy.done == ["write_eof"]
    other.processes[-1][1].connection_lost(None)
    assert other.envoy.done == ["write_eof", "close"]


async def test_what_is_no_http1_ends_with_its_process() -> None:
    rig = await Rig.open(b"EHLO x\r\n")
    rig.ends(ConnectionResetError())
    assert rig.envoy.done == ["abort"]


# --- What a process says before anybody has looked ------------------------------------------------------------------


@pytest.mark.parametrize("ends", [None, "close", "reset"])
async def test_what_a_process_says_at_once_is_said_to_envoy(ends: str | None) -> None:
    rig = Rig()
    rig.at_once = [b"220 ", b"hello\r\n"]
    rig.at_once_ends = ends
    await rig.far.join()
    assert rig.wire.paused  # what else it says waits in its socket
    rig.far.connection_made(cast(asyncio.Transport, rig.envoy))
    assert rig.envoy.sent == b"220 hello\r\n"
    assert rig.envoy.done == {None: [], "close": ["write_eof", "close"], "reset": ["abort"]}[ends]
    assert rig.wire.paused == (ends is not None)


async def test_what_the_next_process_says_at_once_is_said_after_it_was_asked() -> None:
    rig = await Rig.open(GET)
    rig.far.answered(rig.processes[-1][1], OK)
    rig.ends()
    rig.at_once = [OK]  # a process that answers within the same turn
    rig.far.data_received(POST)
    await rig.settle()
    assert (rig.wire.sent, rig.envoy.sent, rig.envoy.done) == (POST, OK + OK, [])


async def test_a_process_that_ends_before_it_was_asked_anything_is_followed_by_the_next_one() -> None:
    for first in (GET, POST, PREFACE + HEADERS, b"EHLO x\r\n"):
        rig = Rig()
        await rig.far.join()
        rig.far.connection_made(cast(asyncio.Transport, rig.envoy))
        rig.ends()
        assert rig.envoy.done == []
        rig.far.data_received(first)
        await rig.settle()
        assert rig.wire.sent == first and len(rig.processes) == 2
        rig.far.answered(rig.processes[-1][1], b"answer")
        assert (rig.envoy.sent, rig.envoy.done) == (b"answer", [])


async def test_nobody_asks_and_the_process_ends_so_the_connection_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "FIRST_SECONDS", 0)
    for problem, done in ((None, ["write_eof", "close"]), (ConnectionResetError(), ["abort"])):
        rig = Rig()
        await rig.far.join()
        rig.far.connection_made(cast(asyncio.Transport, rig.envoy))
        rig.ends(problem)
        await rig.settle()
        if problem is None:  # a half-close, which is handed on as that
            assert rig.envoy.done == ["write_eof"]
            rig.processes[-1][1].connection_lost(None)
            await rig.settle()
        assert rig.envoy.done == done


async def test_a_channel_that_is_never_opened_leaves_no_connection_behind() -> None:
    rig = Rig()
    await rig.far.join()
    await rig.settle()
    assert rig.wire.done == ["abort"]


async def test_a_request_meets_a_connection_that_is_just_being_closed() -> None:
    rig = await Rig.open(GET)
    rig.far.answered(rig.processes[-1][1], OK)
    rig.wire.close()  # its connection_lost comes in the next turn
    first = rig.processes[-1][1]
    rig.far.data_received(POST)
    first.connection_lost(None)
    await rig.settle()
    assert (rig.wire.sent, rig.envoy.sent, rig.envoy.done) == (POST, OK, [])


async def test_the_rest_of_a_request_that_was_answered_early_is_given_to_no_other_process() -> None:
    head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 90\r\n\r\n"
    rig = await Rig.open(head)
    rig.wire.state = 8  # it has refused the upload and closed, and nobody has read that yet
    rig.far.data_received(GET)  # a part of the body, whatever it looks like
    await rig.settle()
    assert len(rig.processes) == 1
    near = rig.processes[-1][1]
    refusal = b"HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    near.data_received(refusal)
    rig.ends()
    assert (rig.envoy.sent, rig.envoy.done) == (refusal, ["write_eof"])


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("cut", [0, 1, len(GET)])
async def test_what_comes_after_an_early_answer_is_given_to_nobody(keeps: bool, cut: int) -> None:
    head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n"
    rig = await Rig.open(head)
    refusal = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n"
    rig.processes[-1][1].data_received(refusal)
    assert (rig.envoy.sent, rig.envoy.done, rig.wire.done) == (refusal, ["write_eof"], ["close"])
    if not keeps:
        rig.ends()
    for _ in range(100):
        rig.far.data_received(GET[:cut])
        rig.far.data_received(GET[cut:])
    await rig.settle()
    assert [wire.sent for wire, _ in rig.processes] == [head]
    assert (rig.envoy.sent, rig.envoy.done, rig.far.busy) == (refusal, ["write_eof"], False)


async def test_a_request_whose_process_ends_while_its_body_comes_is_repeated_whole_or_answered() -> None:
    for method, sent in ((b"PUT", 2), (b"POST", 1)):
        head = method + b" / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n"
        rig = await Rig.open(head)
        rig.wire.state = 8
        rig.far.data_received(b"ab")
        rig.ends()
        await rig.settle()
        assert [wire.sent for wire, _ in rig.processes] == [head, head + b"ab"][:sent]
        assert rig.envoy.sent == (b"" if sent == 2 else LOST)


@pytest.mark.parametrize("first", [b"EHLO x\r\n", GET])
async def test_one_that_sends_no_more_may_still_read(first: bytes) -> None:
    rig = await Rig.open(first)
    near = rig.processes[-1][1]
    near.data_received(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n" if first == GET else b"250 hello\r\n")
    rig.wire.state = 8
    assert near.eof_received()
    rig.far.data_received(b"more")
    assert (rig.wire.sent, rig.envoy.done) == (first + b"more", ["write_eof"])


# --- HTTP/2 --------------------------------------------------------------------------------------------------------


async def test_http2_ends_with_its_process_and_says_which_requests_it_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay, "LAST_SECONDS", 0)
    rig = await Rig.open(PREFACE + HEADERS)
    near = rig.processes[-1][1]
    rig.far.answered(near, SETTINGS)
    rig.far.data_received(frame(1, 4, 3, b"second"))
    rig.ends()
    rig.far.data_received(frame(1, 4, 5, b"third"))  # on its way when the process ended
    lost = b"".join(frame(3, 0, stream, (2).to_bytes(4, "big")) for stream in (1, 3))
    assert (rig.envoy.sent, rig.envoy.done) == (SETTINGS + goaway(3) + lost, [])
    await rig.settle()
    assert rig.envoy.done == ["close"]  # Envoy has not done it
    assert len(rig.processes) == 1


async def test_http2_that_no_process_has_read_is_refused_as_a_whole() -> None:
    rig = await Rig.open(PREFACE + HEADERS)
    rig.ends(ConnectionResetError())
    assert (rig.envoy.sent, rig.envoy.done) == (frame(4, 0, 0) + goaway(0), [])


async def test_http2_that_ends_within_a_frame_is_cut() -> None:
    rig = await Rig.open(PREFACE + HEADERS)
    rig.far.answered(rig.processes[-1][1], SETTINGS + frame(0, 0, 1, b"half an answer")[:-3])
    rig.ends()
    assert rig.envoy.done == ["abort"]
    rig = await Rig.open(PREFACE + HEADERS)
    rig.far.answered(rig.processes[-1][1], SETTINGS + frame(1, 0, 1, b"half a head"))
    rig.ends()
    assert rig.envoy.done == ["abort"]


async def test_a_server_of_http2_that_ends_before_it_was_asked_refuses_what_comes() -> None:
    rig = Rig()
    rig.at_once = [SETTINGS[:4], SETTINGS[4:]]
    await rig.far.join()
    rig.far.connection_made(cast(asyncio.Transport, rig.envoy))
    rig.ends()
    rig.far.data_received(PREFACE + HEADERS)
    await rig.settle()
    assert (rig.envoy.sent, rig.envoy.done) == (SETTINGS + goaway(0), [])


async def test_an_upload_that_waits_is_not_read() -> None:
    rig = await Rig.open(GET)
    rig.far.answered(rig.processes[-1][1], OK)
    rig.ends()
    rig.up.clear()
    rig.far.data_received(POST)
    rig.far.data_received(b"x" * KEPT_BYTES)
    assert rig.envoy.paused
    rig.up.set()
    await rig.settle()
    assert not rig.envoy.paused and rig.wire.sent == POST + b"x" * KEPT_BYTES


async def test_a_cut_from_the_agents_side_reaches_the_process() -> None:
    rig = await Rig.open(GET)
    rig.far.connection_lost(ConnectionResetError())
    assert rig.wire.done == ["abort"]
    rig.ends()
    assert rig.envoy.sent == b""
