"""The records by which datagrams go to an agent and back, and both ends of a session, joined by hand."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devloop.agent import datagrams
from devloop.agent.datagrams import (
    DATA,
    END,
    MAX_BYTES,
    OPEN,
    REFUSED,
    Datagrams,
    Record,
    RecordError,
    Records,
    destination,
    destination_of,
    written,
)
from devloop.remote.datagrams import DatagramSession
from tests.waiting import until

HERE = "127.0.0.1"
RECORDS = st.builds(
    Record, st.integers(OPEN, REFUSED), st.integers(0, 0xFFFFFFFF), st.binary(max_size=40) | st.just(bytes(MAX_BYTES))
)


@given(st.lists(RECORDS, max_size=6), st.lists(st.integers(1, 70_000), max_size=8))
def test_records_come_out_as_they_went_in_however_they_are_cut(records: list[Record], cuts: list[int]) -> None:
    data, reader, found = b"".join(map(written, records)), Records(), []
    for size in cuts:
        found += reader.read(data[:size])
        data = data[size:]
    found += reader.read(data)
    assert found == records


@given(
    RECORDS, st.sampled_from([b"\0\0\0\4", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\1\0\0", b"\0\0\0\5\5", b"\0\0\0\5\0"])
)
def test_what_is_no_record_is_found_out_at_once_and_after_those_before_it(record: Record, bad: bytes) -> None:
    found: list[Record] = []
    with pytest.raises(RecordError):
        found.extend(Records().read(written(record) + bad + bytes(4 if len(bad) > 4 else 0)))
    assert found == [record]


@given(st.binary(max_size=400))
def test_no_bytes_are_too_odd(data: bytes) -> None:
    with contextlib.suppress(RecordError):
        list(Records().read(data))


@given(st.ip_addresses(), st.integers(0, 65535))
def test_a_destination_there_and_back(address: Any, port: int) -> None:
    assert destination_of(destination(str(address), port)) == (str(address), port)


@pytest.mark.parametrize("body", [b"", b"\0", b"\0\x35", b"\0\x35name", b"\0\x35\xff\xff", b"\0\x3510.0.0.0/8"])
def test_what_is_no_destination(body: bytes) -> None:
    with pytest.raises(RecordError):
        destination_of(body)


class Pipe:
    """A channel whose bytes the other end has at once."""

    def __init__(self) -> None:
        self.to: Any = None
        self.sent: list[bytes] = []
        self.exits: list[int] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.sent.append(data)
        if self.to is not None:
            self.to(data)

    def exit(self, code: int) -> None:
        self.exits.append(code)

    def close(self) -> None:
        self.closed = True


class Client:
    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.refusals = 0
        self.ends: list[str] = []

    def received(self, data: bytes) -> None:
        self.got.append(data)

    def refused(self) -> None:
        self.refusals += 1

    def ended(self, why: str) -> None:
        self.ends.append(why)


class Ends:
    """A session with both of its ends."""

    def __init__(self) -> None:
        self.up, self.down = Pipe(), Pipe()
        self.agent = Datagrams(self.down)
        self.session = DatagramSession()
        self.session.connection_made(self.up)  # type: ignore[arg-type]
        self.up.to, self.down.to = self.agent.received, self.session.data_received

    def kinds(self) -> list[int]:
        """Of what the agent has said."""
        return [each.kind for each in Records().read(b"".join(self.down.sent))]


@pytest.fixture
async def ends() -> Any:
    made = Ends()
    yield made
    made.agent.ended()


@pytest.fixture
def target() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((HERE, 0))
        sock.settimeout(5)
        yield sock


async def test_datagrams_keep_their_sizes_both_ways(ends: Ends, target: socket.socket) -> None:
    client = Client()
    flow = ends.session.flow(client, HERE, target.getsockname()[1])
    sizes = [0, 1, 1472, 8192, 65507]
    for size in sizes:
        assert flow.send(b"x" * size)
        data, back = target.recvfrom(70_000)
        assert len(data) == size
        target.sendto(data, back)
        await until(lambda: len(client.got) > sizes.index(size))  # noqa: B023
    assert [len(each) for each in client.got] == sizes
    assert len(ends.agent) == 1
    flow.close()
    assert len(ends.agent) == 0


async def test_a_port_that_nobody_has_is_said_and_the_flow_goes_on(ends: Ends, target: socket.socket) -> None:
    client = Client()
    port = target.getsockname()[1]
    target.close()
    flow = ends.session.flow(client, HERE, port)
    flow.send(b"one")
    await until(lambda: client.refusals == 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind((HERE, port))
        again.settimeout(5)
        flow.send(b"two")
        assert again.recv(10) == b"two"
    assert client.ends == []


async def test_a_name_and_one_flow_too_many_are_refused_alone(
    ends: Ends, target: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagrams, "MAX_FLOWS", 1)
    port = target.getsockname()[1]
    first, named, second = Client(), Client(), Client()
    flow = ends.session.flow(first, HERE, port)
    ends.session.flow(named, "statsd", port)
    assert not ends.session.flow(second, HERE, port).send(b"x"), "it has ended already"
    assert [len(each.ends) for each in (first, named, second)] == [0, 1, 1]
    assert "no address" in named.ends[0] and second.ends == ["there are 1 flows"]
    assert flow.send(b"still")
    assert target.recv(10) == b"still"


async def test_what_can_not_be_read_ends_the_session_and_nothing_else(ends: Ends, target: socket.socket) -> None:
    client = Client()
    flow = ends.session.flow(client, HERE, target.getsockname()[1])
    ends.agent.received(b"\xff" * 20)
    assert ends.down.exits == [1] and len(ends.agent) == 0
    ends.agent.received(written(Record(OPEN, 9, destination(HERE, 9))))
    assert len(ends.agent) == 0, "nothing is heard any more"
    ends.session.data_received(b"\xff" * 20)
    assert ends.up.closed and ends.session.over and client.ends == [""]
    assert not flow.send(b"x")


async def test_who_is_not_read_from_loses_datagrams_and_nothing_is_kept(ends: Ends, target: socket.socket) -> None:
    client = Client()
    flow = ends.session.flow(client, HERE, target.getsockname()[1])
    flow.send(b"x")
    _, back = target.recvfrom(10)
    ends.agent.stuck(True)
    for _ in range(100):
        target.sendto(b"lost", back)
    ends.session.pause_writing()
    assert not flow.send(b"lost too")
    ends.session.resume_writing()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    before = len(ends.down.sent)
    ends.agent.stuck(False)
    assert before == len(ends.down.sent) == 0
    # Whatever the kernel has still kept comes now; the last one surely.
    target.sendto(b"heard", back)
    await until(lambda: b"heard" in client.got)
    assert flow.send(b"on")


async def test_records_for_flows_that_are_over(ends: Ends, target: socket.socket) -> None:
    client = Client()
    flow = ends.session.flow(client, HERE, target.getsockname()[1])
    flow.close()
    ends.agent.received(written(Record(DATA, 1, b"late")))
    assert ends.kinds() == [END]
    ends.agent.received(written(Record(END, 1)))
    ends.session.data_received(written(Record(DATA, 1, b"late")))
    assert client.got == [] and client.ends == []


async def test_the_end_of_the_session_is_told_to_each(ends: Ends, target: socket.socket) -> None:
    clients = [Client(), Client()]
    for each in clients:
        ends.session.flow(each, HERE, target.getsockname()[1])
    ends.session.connection_lost(None)
    ends.agent.ended()
    assert [each.ends for each in clients] == [[""], [""]] and len(ends.agent) == 0
