"""Which connections are between two requests, and that the kernel ends those and no others (as root)."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys

import pytest

from devloop.agent import mover, order
from devloop.agent.mover import Connection, Plan, due


def quiet(sent: int, received: int, *, queued: bool = False, more: bool = False) -> Connection:
    return Connection(socket.AF_INET, b"", 8080, "10.0.0.1", 5000, queued, sent, received, more)


@pytest.mark.parametrize(
    ("found", "speaks", "asked", "wanted"),
    [
        (quiet(100, 104), "http", None, True),  # answered a moment ago
        (quiet(99, 104), "http", None, False),
        (quiet(100, 100), "detect", False, True),
        (quiet(100, 100), "http", True, False),
        (quiet(100, 104, queued=True), "http", False, False),
        (quiet(60_000, 500), "http", None, False),  # asked, and not answered yet
        (quiet(60_000, 59_000), "detect", True, False),
        (quiet(5000, 5000), "http", None, False),  # which came last?
        (quiet(10_000, 10_000), "http", None, True),
        (quiet(10_000, 10_000, more=True), "http", None, False),  # a first request, in the tick of its connection
        (quiet(9000, 4999), "http2", False, False),
        (quiet(9000, 5000), "http2", True, True),
        (quiet(60_000, 60_000), "tcp", False, False),  # a transaction may be open
    ],
)
def test_what_is_between_two_requests(found: Connection, speaks: str, asked: bool | None, wanted: bool) -> None:
    assert due(found, speaks, asked) is wanted


def _packet(source: str, target: str, ports: tuple[int, int], payload: bytes) -> bytes:
    tcp = struct.pack(">HHIIBBHHH", *ports, 0, 0, 8 << 4, 0, 0, 0, 0) + bytes(12) + payload
    if ":" in source:
        ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, target)
        return struct.pack(">IHBB", 6 << 28, len(tcp), 6, 64) + ends + tcp
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    return struct.pack(">BBHIBBH", 0x45, 0, 20 + len(tcp), 0, 64, 6, 0) + ends + tcp


@pytest.mark.parametrize(("pod", "client"), [("10.0.0.2", "10.0.0.9"), ("fd00::2", "fd00::9")])
def test_which_way_bytes_went(pod: str, client: str) -> None:
    ends = (8080, client, 5000)
    assert order.passed(_packet(client, pod, (5000, 8080), b"GET /"), {8080}) == (ends, True)
    assert order.passed(_packet(pod, client, (8080, 5000), b"HTTP/1.1"), {8080}) == (ends, False)
    assert order.passed(_packet(client, pod, (5000, 8080), b""), {8080}) is None  # it only acknowledges
    assert order.passed(b"", {8080}) is None


def test_a_plan_arrives_as_it_was_sent() -> None:
    plan = Plan({8080: "http", 9090: "http2"}, ("10.0.0.9",), 5.0, force=True)
    assert Plan.read(plan.text()) == plan
    with pytest.raises(ValueError, match="Expecting value"):
        Plan.read("")


@pytest.mark.skipif(sys.platform != "linux", reason="sock_diag is Linux's")
def test_a_connection_is_ended_for_its_client_and_no_other_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as stack:
        pairs = []
        for _ in range(2):
            client = stack.enter_context(socket.create_connection(server.getsockname()))
            pairs.append((client, stack.enter_context(server.accept()[0])))
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 4) as sock:
            port = server.getsockname()[1]
            found = {each.identity: each for each in mover.connections(sock, {port})}
            assert len(found) == 2
            assert all(each.client == "127.0.0.1" and not each.queued for each in found.values())
            pairs[0][0].send(b"hello")
            queued = [each for each in mover.connections(sock, {port}) if each.queued and each.more_asked]
            assert len(queued) == 1
            other = next(each for key, each in found.items() if key != queued[0].identity)
            try:
                assert mover.destroy(sock, other)
            except OSError as problem:
                pytest.skip(f"connections can't be ended here: {problem.strerror}; run as root")
            with pytest.raises(ConnectionResetError):
                pairs[1][0].recv(1)
            assert pairs[0][1].recv(5) == b"hello"
            assert not mover.destroy(sock, other)
