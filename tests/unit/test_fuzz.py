"""A fuzz test for each protocol that devloop reads by hand.

Whatever comes, in whatever pieces, it is read or refused in the words of that protocol, and no more is kept than its
bounds say.

`docs/security.md` has a row for them. What they have found is an example of theirs, which is tried each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import struct
from collections.abc import Awaitable, Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import dns.exception
import dns.message
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from devloop import http2
from devloop.agent import datagrams, goaway, sockets
from devloop.agent.datagrams import OPEN, REFUSED, Datagrams, Record, RecordError, Records, destination_of, written
from devloop.agent.desk import Desk
from devloop.agent.doors import LINE_BYTES, Door
from devloop.agent.forward import Connection as AgentConnection
from devloop.agent.lane import CLOSE, LENGTH_BYTES, OFFSET_BYTES, Lane, Laned
from devloop.agent.lanes import Arrived, Lanes
from devloop.agent.request_rate import Compared, RequestRate, estimate
from devloop.agent.spec import Spec, SpecError
from devloop.attach.http1 import Exchange
from devloop.attach.session import Session
from devloop.control import wire
from devloop.control.server import ControlServer
from devloop.errors import DevloopError
from devloop.http1 import Conversation
from devloop.net.rebinding import Guard, Names
from devloop.remote.datagrams import DatagramSession
from devloop.remote.kubernetes.spdy import CONTROL_BYTES, Connection
from devloop.remote.kubernetes.websocket import BINARY, WebSocket

from .net.test_dns import API, Bench
from .remote.test_websocket import FakeConnection, FakeResponse, Heard, forwarded, frame

pytestmark = pytest.mark.slow

fuzz = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
PIECES = st.lists(st.binary(max_size=400), max_size=8)
DEEP = "[" * 100_000
"""More than the parser of JSON goes into."""


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """One loop for all examples: each is some 0.1 ms, and making a loop 1 ms."""
    with asyncio.Runner() as made:
        yield made


def cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """In pieces of these sizes, and the rest."""
    for size in sizes:
        yield data[:size]
        data = data[size:]
    yield data


SIZES = st.lists(st.integers(1, 60), max_size=20)
_EVIL = http2.frame(http2.HEADERS, b"\x41\x09evil.test", flags=http2.END_HEADERS, stream=1)
"""`:authority`, as a literal (RFC 7541, 6.2.1)."""


# --- To pods, through the API server ------------------------------------------------------------------------------


@fuzz
@given(pieces=PIECES, frames=st.lists(st.tuples(st.integers(0, 15), st.binary(max_size=300)), max_size=6))
def test_fuzz_websocket(runner: asyncio.Runner, pieces: list[bytes], frames: list[tuple[int, bytes]]) -> None:
    async def run() -> None:
        _, _, heard, connection = forwarded()
        said = [*(frame(b"\0\0\0" + body, kind) for kind, body in frames), *pieces]
        for each in said:
            if not connection.transport.aborted:
                connection.transport.receive(each)
        await asyncio.sleep(0)
        assert len(heard.data) <= sum(map(len, said))

    runner.run(run())


def spdy() -> tuple[Connection, Any]:
    made: Any = FakeConnection()
    socket = WebSocket(FakeResponse(made.transport), made, masked=False)
    return Connection(socket, "web-1", lambda *_: None), made.transport


@fuzz
@given(
    pieces=PIECES,
    frames=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 255), st.binary(max_size=300)), max_size=8),
)
def test_fuzz_spdy(runner: asyncio.Runner, pieces: list[bytes], frames: list[tuple[int, int, bytes]]) -> None:
    async def run() -> None:
        connection, transport = spdy()
        opening = asyncio.ensure_future(connection.open(Heard, 80))
        await asyncio.sleep(0)
        controls = (struct.pack(">HHI", 0x8003, kind, flags << 24 | len(b)) + b for kind, flags, b in frames)
        for said in (*controls, *pieces):
            if not transport.aborted:
                transport.receive(frame(said, BINARY))
        assert len(connection._frame) <= CONTROL_BYTES + 8
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)

    runner.run(run())


# --- Between an engine and the agent ------------------------------------------------------------------------------


class Wire:
    """A transport."""

    def __init__(self) -> None:
        self.closed = False
        self.said = b""

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    close = abort

    def write(self, data: bytes) -> None:
        self.said += data

    def pause_reading(self) -> None: ...

    resume_reading = pause_reading

    def set_write_buffer_limits(self, high: int) -> None: ...


class Tap(Laned):
    def __init__(self) -> None:
        super().__init__()
        self.channel = Wire()
        self.number = 1
        self.heard = b""
        self.ended = False

    def deliver(self, data: Any) -> None:
        assert not self.ended, "nothing comes after the end"
        self.heard += data

    def deliver_end(self) -> None:
        assert not self.ended, "it ends once"
        self.ended = True

    def flow(self) -> None: ...


def _lengths(parts: list[int | bytes]) -> bytes:
    return b"".join(
        each.to_bytes(LENGTH_BYTES, "big") if isinstance(each, int) else len(each).to_bytes(LENGTH_BYTES, "big") + each
        for each in parts
    )


LANE = st.one_of(
    st.binary(max_size=400),
    st.lists(st.sampled_from([0, CLOSE, CLOSE - 1, 7]) | st.binary(max_size=60), max_size=10).map(_lengths),
)


@fuzz
@given(offset=st.sampled_from([0, 0, 0, 5, 2**63]), said=LANE, sizes=SIZES)
@example(0, _lengths([0, b"x"]), [])
@example(0, _lengths([0, 0]), [])
def test_fuzz_lanes(offset: int, said: bytes, sizes: list[int]) -> None:
    lane, end, wire_ = Lane(), Tap(), Wire()
    lane.connection_made(cast(Any, wire_))
    end.attach(lane)
    for each in cut(offset.to_bytes(OFFSET_BYTES, "big") + said, sizes):
        if not wire_.closed:
            lane.data_received(each)
    kept = sum(map(len, lane._kept))
    assert len(end.heard) + kept <= len(said)
    assert not offset or not end.heard, "what comes after an offset waits for it"
    lane.connection_lost(None)


@fuzz
@given(key=st.sampled_from([b"", b"k" * 16, b"k" * 32]), said=LANE, sizes=SIZES)
def test_fuzz_greetings_of_lanes(runner: asyncio.Runner, key: bytes, said: bytes, sizes: list[int]) -> None:
    async def run() -> None:
        lanes, wire_ = Lanes(), Wire()
        connection: Any = SimpleNamespace(open={Tap()})
        lanes._keys[b"k" * 32] = (cast(AgentConnection, connection), b"a" * 32)
        lane = Arrived(lanes)
        lane.connection_made(cast(Any, wire_))
        for each in cut(key + said, sizes):
            if not wire_.closed:
                lane.data_received(each)
        assert lane.end is None or wire_.said == b"a" * 32, "only who knows the key is answered"
        lane.connection_lost(None)
        assert not len(lanes._strangers)

    runner.run(run())


def _record(kind: int, flow: int, body: bytes) -> bytes:
    return written(Record(kind, flow, body))


RECORDS = st.lists(
    st.builds(_record, st.integers(OPEN, REFUSED), st.integers(0, 3), st.binary(max_size=60))
    | st.builds(_record, st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=60))
    | st.binary(max_size=20),
    max_size=8,
).map(b"".join)


@fuzz
@given(said=RECORDS, sizes=SIZES)
def test_fuzz_records_of_datagrams(said: bytes, sizes: list[int]) -> None:
    records, found = Records(), 0
    with contextlib.suppress(RecordError):
        for each in cut(said, sizes):
            for record in records.read(each):
                found += len(written(record))
                with contextlib.suppress(RecordError):
                    destination_of(record.body)
        assert found + len(records._rest) == len(said)


@fuzz
@given(said=RECORDS, sizes=SIZES)
def test_fuzz_datagrams_at_both_ends(runner: asyncio.Runner, said: bytes, sizes: list[int]) -> None:
    class Socket:
        """No real one: what the records say may be an address."""

        def __init__(self, *_: object) -> None: ...

        def send(self, data: bytes) -> bool:
            return True

        def close(self) -> None: ...

    async def run() -> None:
        channel: Any = SimpleNamespace(write=lambda _: None, exit=lambda _: None, close=lambda: None)
        agent, engine = Datagrams(channel), DatagramSession()
        engine.connection_made(channel)
        client: Any = SimpleNamespace(received=lambda _: None, refused=lambda: None, ended=lambda _: None)
        engine.flow(client, "192.0.2.1", 53)
        for each in cut(said, sizes):
            agent.received(each)
            engine.data_received(each)
        agent.ended()
        engine.connection_lost(None)
        assert not len(agent)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datagrams, "DatagramSocket", Socket)
        runner.run(run())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
WORDS = ["n", "do", "id", "spec", "up", "deaf", "pods", "answer", "requests", "counts", "holders", "error", "tls"]
MESSAGES = ["attach", "detach", "local", "doors", "led", "beat", "reach", "earlier", "hello", "renew"]
LINES = st.lists(
    st.one_of(
        st.text(max_size=60),
        JSON.map(json.dumps),
        st.dictionaries(st.sampled_from(WORDS), JSON | st.sampled_from(MESSAGES), max_size=6).map(json.dumps),
    ),
    max_size=6,
)
INFINITE = '{"requests": [], "counts": {"api": {"original": Infinity}}}'
NESTED = '{"n": ' + "[" * 900 + "]" * 900 + "}"
"""It is read, but not written from a place that is a little deeper."""


@fuzz
@given(lines=LINES)
@example([DEEP, INFINITE, NESTED, '{"requests": [7], "counts": {}}', '{"requests": [], "counts": []}'])
def test_fuzz_what_an_agent_says(runner: asyncio.Runner, lines: list[str]) -> None:
    async def run() -> None:
        def heard(requests: Any, counts: Any, holders: Any) -> None:
            assert all(isinstance(number, int) for by in counts.values() for number in by.values())
            assert all(isinstance(user, str) for user in holders.values())

        session = Session(cast(Any, SimpleNamespace(where="here")), heard)
        for each in lines:
            session.received(each + "\n")

    runner.run(run())


LISTENERS = ["listeners", "unreached", "ports", "pods", "again", "error", "agent", "token"]
HELLO = ["reached", "tls", "alpn", "client", "authorities", "pins"]
ANSWERS = st.dictionaries(
    st.sampled_from(LISTENERS),
    JSON | st.dictionaries(st.text(max_size=3), JSON | st.dictionaries(st.sampled_from(HELLO), JSON), max_size=3),
    max_size=4,
)
GREETED = {"reached": 1, "tls": 1, "alpn": [1, {}], "client": [], "authorities": [[], 5], "pins": "x"}


@fuzz
@given(answer=ANSWERS, asked=st.integers(0, 6))
@example({"again": True}, 0)
@example({"ports": {"1": GREETED}}, 1)
@example({"listeners": {"1": float("inf")}, "unreached": [[]]}, 0)
def test_fuzz_what_an_agent_answers(runner: asyncio.Runner, answer: dict[str, Any], asked: int) -> None:
    """It is read as what it should be, or told as an error of the agent's."""
    spec = Spec("one", "ada", "h", "intercept", "now", "api", {})

    async def run() -> None:
        session = Session(cast(Any, SimpleNamespace(where="here")), lambda *_: None)

        def write(text: str) -> None:
            session.received(json.dumps({**answer, "answer": json.loads(text)["n"]}) + "\n")

        session._channel = SimpleNamespace(write=write, close=lambda: None)
        ways: tuple[Callable[[], Awaitable[Any]], ...] = (
            lambda: session.attach(spec, cast(Any, None), lambda: None),
            lambda: session.hello(spec, {80: [("a", 1)]}, "name"),
            lambda: session.reach(spec),
            lambda: session.led(spec),
            lambda: session.detach(spec),
            lambda: session.tell(spec, True),
            lambda: session.renew(spec, {}),
        )
        with contextlib.suppress(DevloopError):
            match await ways[asked](), asked:
                case (listeners, unreached), 0:
                    assert all(isinstance(each, int) for pair in listeners.items() for each in pair)
                    assert all(isinstance(each, str) for each in unreached)
                case said, 1:
                    for each in said.values():
                        words = (*each.alpn, *each.authorities, *each.pins, each.client)
                        assert all(isinstance(word, str) for word in words)

    runner.run(run())


HEADS = st.lists(
    st.sampled_from(
        [b"GET / HTTP/1.1\r\n", b"POST /x HTTP/1.0\r\n", b"Host: localhost\r\n", b"Host: evil.test\r\n",
         b"\r\n", b"\n", b"Origin: http://evil.test\r\n", b"Content-Length: 7\r\n", b"Transfer-Encoding: chunked\r\n",
         b"5\r\nabcde\r\n", b"0\r\n\r\n", b"Upgrade: x\r\n", b"PING\r\n", http2.PREFACE, _EVIL]
    )
    | st.binary(max_size=12),
    max_size=12,
).map(b"".join)  # fmt: skip


@fuzz
@given(said=HEADS, sizes=SIZES)
@example(
    b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 7\r\n\r\n1234567GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n",
    [],
)
@example(http2.PREFACE + _EVIL, [1])
def test_fuzz_names_in_requests(said: bytes, sizes: list[int]) -> None:
    """What is refused does not depend on the pieces that it comes in, and little is kept."""

    def told(pieces: Iterable[bytes]) -> str | None:
        guard = Guard(Names())
        for piece in pieces:
            found = guard.take(piece)
            assert len(guard._head) + len(guard._block) + len(guard._preface) <= len(said)
            if found is not None:
                return found.what
        return None

    assert told([said]) == told(cut(said, sizes)) == told(bytes((each,)) for each in said)


class Nobody:
    """Attachments, of which there are none; whoever asks is answered."""

    def came(self, _: object) -> None: ...

    def beat(self, _: object) -> None: ...

    async def left(self, _: object) -> None: ...

    async def warm(self) -> None: ...

    async def _none(self, *_: object) -> dict[str, Any]:
        return {}

    attach = unreached = doors = led = detach = tell = reach = earlier = look = renew = _none


@fuzz
@given(lines=LINES)
@example([DEEP, NESTED, '{"n": 1, "do": "local", "id": 1, "up": 1, "deaf": [Infinity]}'])
def test_fuzz_what_an_engine_says(runner: asyncio.Runner, lines: list[str]) -> None:
    async def run() -> None:
        said: list[str] = []
        channel = SimpleNamespace(write=said.append, close=lambda: None)
        desk = Desk(cast(Any, Nobody()), cast(Any, None), channel)
        for each in lines:
            desk.received(each + "\n")
        desk.received('{"n": 123456, "do": "led", "id": "last"}\n')
        async with asyncio.timeout(5):
            while desk._unanswered:
                assert not desk._task.done(), "the next message is answered too"
                await asyncio.sleep(0)
        assert any('"answer": 123456' in each for each in said)
        assert desk._characters == 0
        desk.ended()
        await asyncio.gather(desk._task, return_exceptions=True)

    runner.run(run())


@fuzz
@given(document=st.one_of(JSON, st.dictionaries(st.sampled_from(["id", "user", "kind", "ports", "routes"]), JSON)))
def test_fuzz_specs(document: object) -> None:
    with contextlib.suppress(SpecError):
        Spec.read(document)


@fuzz
@given(lines=LINES)
@example([DEEP])
@example(['{"n": 1, "places": {"80": Infinity}}'])
@example(['{"n": 1, "clients": {"80": Infinity}}'])
@example([NESTED])
def test_fuzz_what_a_door_says(runner: asyncio.Runner, lines: list[str]) -> None:
    """Of whoever is in a pod: to what it is asked, and of its own."""

    async def run(asked: str) -> None:
        reader = asyncio.StreamReader(limit=LINE_BYTES)
        door = Door("uid", "10.0.0.1", reader, cast(Any, Wire()))
        heeding = asyncio.ensure_future(door.heed())
        wants = asyncio.ensure_future(door.open([80]) if asked == "open" else door.count([80]))
        await asyncio.sleep(0)
        reader.feed_data("".join(f"{each}\n" for each in lines).encode(errors="replace"))
        reader.feed_eof()
        await heeding
        (found,) = await asyncio.gather(wants, return_exceptions=True)
        assert not isinstance(found, Exception) or type(found).__name__ == "DoorLostError", found

    for each in ("open", "count"):
        runner.run(run(each))


COUNTED = st.sampled_from(
    (
        *(
            "uptime 5.0\n",
            "uptime ",
            "uptime nan\n",
            "uptime -1\n",
            "\t",
            "\n",
            " ",
            "0 0 10.0.0.1:8080 10.0.0.9:1 sk:a\n",
        ),
        *(
            "0 0 [::1]:8080 [fe80::1]%eth0:2 ino:1 sk:b\n",
            "\t data_segs_in:5 data_segs_out:6\n",
            "data_segs_in:",
            "sk:",
        ),
        *("9" * 5000, "\u0663", ":8080", "[", "%", "0 0 ", "data_segs_out:99999999999999\n", "\x00", "\x85", "-1"),
    )
)


@fuzz
@given(pieces=st.lists(st.one_of(COUNTED, st.text(max_size=20)), max_size=30), at=st.floats(0, 1e12))
def test_fuzz_what_a_pod_prints_of_packets(pieces: list[str], at: float) -> None:
    """Whatever stands in an image as `ss` or `python3`."""
    printed = "".join(pieces)
    found, told = sockets._carried(printed)
    assert told is not None or not found
    rate = RequestRate[sockets.Carried]()
    led = sockets.others(found, {8080}, ("10.0.0.1",))
    for moment in (at, at + 10, told or 0.0):
        compared = rate.look(moment, {each: each.packets for each in led}, len(led))
        estimated = estimate([compared])
        assert estimated is None or (math.isfinite(estimated) and estimated >= 0)


@fuzz
@given(answer=JSON)
def test_fuzz_what_a_door_says_of_packets(answer: Any) -> None:
    found = Compared.read(answer)
    assert found is None or Compared.read(found.document()) == found


# --- Of clients and services --------------------------------------------------------------------------------------


QUERIES = [
    dns.message.make_query(name, kind).to_wire() for name, kind in ((API, "A"), ("x.example.", "SRV"), (".", "ANY"))
]


def _changed(query: bytes, changes: list[tuple[int, int]]) -> bytes:
    made = bytearray(query)
    for at, value in changes:
        made[at % len(made)] = value
    return bytes(made)


@fuzz
@given(
    asked=st.one_of(
        st.binary(max_size=100),
        st.builds(
            _changed,
            st.sampled_from(QUERIES),
            st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), max_size=5),
        ),
    ),
    tcp=st.booleans(),
)
@example(QUERIES[0][:12] + b"\xc0\x0c" + b"\0\1\0\1", False)
def test_fuzz_dns(runner: asyncio.Runner, asked: bytes, tcp: bool) -> None:
    async def run() -> None:
        bench = Bench()
        for _ in range(2):  # the second may come from what is kept
            answer = bench.resolver.known(asked) or await bench.resolver.answer(asked, tcp=tcp)
            assert answer is None or (answer[:2] == asked[:2] and answer[2] & 0x80 and len(answer) >= 12)
            if answer is not None:
                dns.message.from_wire(answer)

    runner.run(run())


HTTP = st.lists(
    st.one_of(
        st.binary(max_size=100),
        st.sampled_from(
            [
                b"GET / HTTP/1.1\r\n",
                b"POST / HTTP/1.0\r\n",
                b"HTTP/1.1 200 OK\r\n",
                b"content-length: 5\r\n",
                b"content-length: 99999999999999999999999\r\n",
                b"transfer-encoding: chunked\r\n",
                b"connection: close\r\n",
                b"\r\n",
                b"5\r\nabcde\r\n",
                b"0\r\n\r\n",
                b"fffffffffffffffff\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            ]
        ),
    ),
    max_size=20,
)


@fuzz
@given(requests=HTTP, answers=HTTP)
def test_fuzz_http1(requests: list[bytes], answers: list[bytes]) -> None:
    for talk in (Conversation(), Exchange()):
        for asked, answered in _both(requests, answers):
            talk.asked(asked)
            talk.answered(answered)


def _both(one: list[bytes], other: list[bytes]) -> Iterable[tuple[bytes, bytes]]:
    size = max(len(one), len(other))
    return zip(one + [b""] * (size - len(one)), other + [b""] * (size - len(other)), strict=True)


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + body


FRAMES = st.lists(
    st.builds(
        _frame,
        st.integers(0, 10),
        st.sampled_from([0, 1, 4, 5, 0x2D, 255]),
        st.sampled_from([0, 1, 2, 3, 5, 2**32 - 1]),
        st.binary(max_size=16) | st.just(b"devlmove"),
    )
    | st.binary(max_size=12),
    max_size=10,
).map(b"".join)
SETTINGS = _frame(4, 0, 0, b"")


@fuzz
@given(asks=FRAMES, answers=FRAMES, sizes=SIZES, preface=st.booleans(), leave=st.integers(0, 5))
def test_fuzz_http2(asks: bytes, answers: bytes, sizes: list[int], preface: bool, leave: int) -> None:
    """All is passed on as it came, but for the GOAWAY and the PING that the client is told, and that one's answer."""
    talk = http2.Conversation()
    asks = http2.PREFACE + asks if preface else asks
    answers = SETTINGS + answers if preface else answers
    client, server = b"", b""
    for number, (asked, answered) in enumerate(_both(list(cut(asks, sizes)), list(cut(answers, sizes)))):
        server += talk.asked(asked)
        client += talk.answered(answered)
        if number == leave:
            client += talk.leave()
        assert len(talk._held) <= 17
        assert len(talk._asks.header) < http2.HEADER_BYTES
        assert len(talk._answers.header) < http2.HEADER_BYTES
    server += talk.rest()
    told = client.replace(http2.LEAVE, b"", 1)
    assert told == answers
    assert server in (asks, asks.replace(_frame(6, 1, 0, b"devlmove"), b"", 1)) or talk._heard
    assert len(asks) - len(server) in (0, 17)


@fuzz
@given(said=FRAMES, sizes=SIZES, unsure=st.integers(0, 30), honest=st.integers(0, 4))
def test_fuzz_goaway(said: bytes, sizes: list[int], unsure: int, honest: int) -> None:
    """Whatever a server says goes on, with at most one word more."""
    said = SETTINGS * honest + said
    last = goaway.Http2Last(unsure)
    passed = b""
    for each in cut(said, sizes):
        last.asked()
        passed += last.passed(each)
        assert len(last._head) < 9
    passed += last.rest()
    assert passed == said or any(
        passed == said[:at] + goaway.GOAWAY + said[at:] for at in range(unsure, len(said) + 1)
    ), "once, and not before what may have arrived"


@fuzz
@given(pieces=HTTP, unsure=st.integers(0, 30), asked=st.lists(st.booleans(), min_size=20, max_size=20))
def test_fuzz_goaway_of_http1(pieces: list[bytes], unsure: int, asked: list[bool]) -> None:
    last = goaway.Http1Last(unsure)
    passed = b""
    for each, said in zip(pieces, asked, strict=False):
        if said:
            last.asked()
        passed += last.passed(each)
    whole = b"".join(pieces)
    word = b"connection: close\r\n"
    assert len(passed) - len(whole) == (len(word) if last.said else 0)
    assert passed == whole or any(passed == whole[:at] + word + whole[at:] for at in range(len(whole) + 1))


# --- Of this machine's user ---------------------------------------------------------------------------------------


@fuzz
@given(
    line=st.one_of(
        st.binary(max_size=100),
        JSON.map(lambda each: json.dumps(each).encode()),
        st.dictionaries(st.sampled_from(["id", "method", "params"]), JSON | st.sampled_from(["ping", "x"])).map(
            lambda each: json.dumps(each).encode()
        ),
    )
)
@example(DEEP.encode())
@example(b'{"method": "ping", "id": ' + b"[" * 900 + b"]" * 900 + b"}")
def test_fuzz_control_socket(runner: asyncio.Runner, line: bytes) -> None:
    """Each is answered, with a result or an error in words."""

    async def run() -> None:
        async def call(method: str, params: dict[str, Any]) -> dict[str, Any]:
            raise DevloopError(f"there is no {method}")

        async def drain() -> None: ...

        said: list[bytes] = []
        server = object.__new__(ControlServer)
        server.backend = cast(Any, SimpleNamespace(call=call))
        subscriber: Any = SimpleNamespace(
            send=lambda message: said.append(wire.encode(message)),
            writer=SimpleNamespace(drain=drain),
            subscribe=lambda _: None,
            terminals=SimpleNamespace(answer=call),
        )
        await server._answer(subscriber, line)
        (answer,) = said
        assert wire.decode(answer).keys() & {"result", "error"}

    runner.run(run())
