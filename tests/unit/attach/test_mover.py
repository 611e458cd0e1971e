"""Which connections are between two requests, and that the kernel ends those and no others (as root)."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import struct
import sys
from collections import Counter
from typing import Any, cast

import pytest

from devloop.agent import diag, order, packetlog
from devloop.agent.diag import Connection
from devloop.agent.mover import Plan, due
from devloop.agent.protocols import OPAQUE
from devloop.attach.moving import spoken


def quiet(sent: int, received: int, *, queued: bool = False, more: bool = False) -> Connection:
    return Connection(socket.AF_INET, b"", 8080, "10.0.0.1", 5000, queued, sent, received, (1, 0) if more else (1, 1))


@pytest.mark.parametrize(
    ("found", "speaks", "asked", "wanted"),
    [
        (quiet(100, 104), "http", None, True),  # answered a moment ago
        (quiet(99, 104), "http", None, False),
        (quiet(100, 100), "http", False, True),
        (quiet(4999, 5010), "detect", None, False),  # it may be a call of HTTP/2
        (quiet(5000, 5010), "detect", None, True),
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
    def seen(packet: bytes) -> tuple[order.Ends, bool, bool] | None:
        said = packetlog.segment(packet)
        return None if said is None else (*order.ends_of(said, {8080}), said.carries)

    ends = (8080, client, 5000)
    assert seen(_packet(client, pod, (5000, 8080), b"GET /")) == (ends, True, True)
    assert seen(_packet(pod, client, (8080, 5000), b"HTTP/1.1")) == (ends, False, True)
    assert seen(_packet(client, pod, (5000, 8080), b"")) == (ends, True, False)  # it only acknowledges
    assert seen(b"") is None


def test_what_is_spoken_is_seen_in_an_answers_first_bytes() -> None:
    assert order.spoken(b"HTTP/1.1 200 OK\r\n") == "http"
    headers = bytes.fromhex("000002 01 04 00000001") + b"ab"
    assert order.spoken(headers) == "http2"
    assert order.spoken(headers + bytes.fromhex("000005 00 00 00000001")) == "http2"
    assert order.spoken(headers + b"something else") == ""
    assert order.spoken(b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03") == ""  # TLS
    assert order.spoken(b"* OK IMAP ready\r\n") == ""


def test_a_plan_arrives_as_it_was_sent() -> None:
    plan = Plan({8080: "http", 9090: "http2"}, ("10.0.0.9",), 5.0, force=True, take=True)
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
            found = {each.identity: each for each in diag.connections(sock, {port})}
            assert len(found) == 2
            assert all(each.client == "127.0.0.1" and not each.queued for each in found.values())
            pairs[0][0].send(b"hello")
            queued = [each for each in diag.connections(sock, {port}) if each.queued and each.more_asked]
            assert len(queued) == 1
            other = next(each for key, each in found.items() if key != queued[0].identity)
            try:
                assert diag.destroy(sock, other)
            except OSError as problem:
                pytest.skip(f"connections can't be ended here: {problem.strerror}; run as root")
            with pytest.raises(ConnectionResetError):
                pairs[1][0].recv(1)
            assert pairs[0][1].recv(5) == b"hello"
            assert not diag.destroy(sock, other)


def test_what_is_left_fits_in_a_pods_status() -> None:
    left = Counter({f"2001:db8:ffff:ffff:ffff:ffff:ffff:{number:04x}": 10_000 + number for number in range(500)})
    found = diag.fitting(left)
    assert sum(found.values()) == left.total()
    assert found["2001:db8:ffff:ffff:ffff:ffff:ffff:01f3"] == 10_499
    assert len(json.dumps({"ended": 1, "left": found})) < 4096
    assert diag.fitting(Counter(a=2)) == {"a": 2}
    assert diag.fitting(Counter()) == {}


def test_two_that_move_connections_of_one_pod_leave_each_other_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    taken = False

    def configure(found: packetlog.PacketLog, kind: int, value: bytes) -> None:
        if kind == 1 and taken:
            raise OSError(errno.EBUSY, "nfnetlink_log")

    monkeypatch.setattr(packetlog.PacketLog, "_configure", configure)
    monkeypatch.setattr(order, "nft", told.append)
    sockets = list(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
    monkeypatch.setattr(socket, "socket", lambda *_: sockets.pop())
    first = order.Order({8080})
    taken = True
    with pytest.raises(OSError, match="nfnetlink_log"):
        order.Order({8080})
    assert len(told) == 1, "the first one's table stays"
    first.close()
    assert "delete table" in told[1]


def test_more_than_can_be_read_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flood:
        def read(self) -> list[bytes]:
            return [b""]

    monkeypatch.setattr(order, "READ_SECONDS", 0.01)
    found = object.__new__(order.Order)
    found._log, found._ports, found.asked = cast(Any, Flood()), frozenset({8080}), {(8080, "a", 1): True}
    assert not found.read()
    assert not found.asked


def test_what_a_port_speaks_is_what_the_agent_takes_it_for() -> None:
    ports = [
        {"port": 53, "name": "http-dns", "protocol": "TCP"},
        {"port": 53, "name": "dns", "protocol": "UDP"},
        {"port": 25, "name": "mail"},
    ]
    service = {"metadata": {"annotations": {OPAQUE: "25"}}, "spec": {"ports": ports}}
    assert spoken(service) == {53: "http", 25: "tcp"}
